"""The command `quantize`: plan, report and write each input in turn."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..device import choose_devices
from ..errors import TpecError, sentence
from ..files.checkpoint import open_checkpoint
from ..files.replace import write_text
from ..model.plan import Plan, make_plan
from ..model.recipe import follow, read_recipe, recipe_of, write_recipe
from ..model.template import recipe_like
from ..page.page import write_page
from ..run.job import check_output
from ..run.memory import describe_needs
from ..run.pipeline import quantize, settle
from ..run.processes import PeersLost, World, join_world, leave_world
from ..run.report import Report
from ..settings import Settings, part_names
from ..statistics.calibration import Calibration
from .places import PAGES, check_texts, input_paths, output_paths
from .terminal import DONE, FAILED, FAILURES, TerminalProgress, complain


def quantize_inputs(options: argparse.Namespace) -> int:
    """Quantize every input; one that fails is complained about, and the next is worked on.

    The exit code is 1 if any failed. Under torchrun all ranks work on each input together, and rank 0 talks. Raises
    TpecError before any work for options that contradict each other.
    """
    settings = _settings(options)
    given = [*options.inputs, *([options.input_option] if options.input_option else [])]
    if not given:
        options.wrong_usage("no input was given: name a .safetensors file")
    inputs = input_paths(given)
    outputs = output_paths(options, inputs)
    check_texts(options, inputs, outputs)
    world = join_world()
    talk = not options.quiet and world.rank == 0
    if options.calib_samples is not None and talk:
        print("--calib_samples is not used: random inputs say nothing about real ones.")
    results: list[tuple[Path, Report | Exception | None]] = []
    try:
        for source, output in zip(inputs, outputs, strict=True):
            try:
                results.append((source, _quantize_one(options, settings, source, output, world, talk)))
            except (BrokenPipeError, PeersLost):
                raise
            except FAILURES as error:
                results.append((source, error))
                # Every rank has the same error, so one of them says it.
                if world.rank == 0:
                    complain(sentence(error))
    finally:
        leave_world(world)
    if len(inputs) > 1 and talk:
        print(_batch_table(results))
    return FAILED if any(isinstance(result, Exception) for _, result in results) else DONE


def _quantize_one(options: argparse.Namespace, settings: Settings, source: Path, output: Path, world: World,
                  talk: bool) -> Report | None:
    plan, devices, calibration = world.agree(lambda: (
        _plan(options, settings, source), choose_devices(options.device, world.rank), _calibration(options)))
    first = devices[0]
    if not options.dry_run:
        world.agree(lambda: check_output(plan, output, options.overwrite))
    with TerminalProgress(enabled=talk and settings.keep_quality > 0) as progress:
        plan = settle(plan, calibration, first, progress, world)
    if options.write_recipe:
        world.agree(lambda: write_recipe(options.write_recipe, recipe_of(plan)) if world.rank == 0 else None)
    if talk:
        print(plan.summary())
        where = ("each of " if len(devices) > 1 else "") + ", ".join(map(str, devices))
        print(f"{describe_needs(plan, first, calibration)}; on {where}")
    if options.dry_run:
        if world.rank == 0:
            print(plan.table())
        return None
    with TerminalProgress(enabled=talk) as progress:
        report = quantize(plan, output, devices=devices, calibration=calibration, progress=progress,
                          overwrite=options.overwrite, resume=options.resume, world=world)
    if talk:
        print(report.result())
        print(f"saved {output}")
    if options.report:
        world.agree(lambda: _write_report(options.report, report) if world.rank == 0 else None)
    return report


def _settings(options: argparse.Namespace) -> Settings:
    names = ("family", "method", "format", "matmul", "keep_distillation", "t5xxl", "top_k", "num_iter", "include",
             "exclude", "keep_nonfinite", "only_part", "keep_quality", "embeddings")
    return Settings(**{name: getattr(options, name) for name in names}, part=part_names(",".join(options.part)))


def _plan(options: argparse.Namespace, settings: Settings, source: Path) -> Plan:
    """The input's plan, with the layers as a recipe or a quantized file has them if one is given."""
    if options.recipe and options.like:
        raise TpecError("--recipe and --like both say what becomes of the layers: give one of them.")
    plan = make_plan(open_checkpoint(source), settings)
    if options.recipe:
        return follow(plan, read_recipe(options.recipe))
    return follow(plan, recipe_like(open_checkpoint(options.like))) if options.like else plan


def _calibration(options: argparse.Namespace) -> Calibration | None:
    if options.calibration is None:
        return None
    from ..statistics.storage import open_calibration

    return open_calibration(options.calibration)


def _write_report(path: Path, report: Report) -> None:
    try:
        if path.suffix.lower() in PAGES:
            write_page(path, report)
        else:
            write_text(path, json.dumps(report.to_json(), indent=1))
    except TpecError as error:
        raise TpecError(f"The model was saved, but not its report: {error}") from None


def _batch_table(results: Sequence[tuple[Path, Report | Exception | None]]) -> str:
    lines = [f"{'input':40} {'size':>7} {'time':>8}  result"]
    for source, result in results:
        if isinstance(result, Report):
            ratio = result.output_nbytes / result.source_nbytes
            lines.append(f"{source.name:40} {ratio:6.3f}x {result.seconds:7.1f}s  {result.output.name}")
        else:
            lines.append(f"{source.name:40} {'-':>7} {'-':>8}  {'failed' if result else 'planned'}")
    return "\n".join(lines)
