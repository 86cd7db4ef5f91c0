"""The command line: python -m tpec quantize | inspect | verify | demo."""

import argparse
import glob
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..check import inspect as inspection
from ..device import choose_devices
from ..errors import TpecError, one_line, sentence
from ..files.checkpoint import open_checkpoint
from ..files.naming import default_output, is_model_name, named_output, names_folder, refuse_shared_outputs
from ..model.families import family_names
from ..model.plan import Plan, make_plan
from ..model.recipe import follow, read_recipe, recipe_of, write_recipe
from ..model.template import recipe_like
from ..run.memory import describe_needs
from ..run.pipeline import check_output, quantize, settle
from ..run.processes import PeersLost, World, join_world, leave_world
from ..run.report import Report
from ..settings import FORMATS, MATMULS, METHODS, Settings, part_names
from ..statistics.calibration import Calibration
from ..version import __version__
from .terminal import TerminalProgress

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
#: What a user gets one sentence about; anything else is a fault of this program.
FAILURES = (TpecError, OSError, RuntimeError, MemoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; failures are one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        # File and tensor names may hold what the terminal's encoding does not.
        stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except FAILURES as error:
        _complain(sentence(error))
        return FAILED
    finally:
        # Whoever ends the process while it winds up (torchrun, when another rank was quicker) gets no traceback.
        signal.signal(signal.SIGTERM, before)


def _complain(error: object) -> None:
    """One line on stderr, whatever names the message holds."""
    print("tpec: " + one_line(str(error)), file=sys.stderr)


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tpec", description="Quantize models to ComfyUI's native scaled FP8.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_quantize(commands.add_parser("quantize", help="write a scaled FP8 file", allow_abbrev=False))
    inspect = commands.add_parser("inspect", help="say what a file is and what would become of it")
    inspect.add_argument("file", type=Path)
    inspect.add_argument("--json", action="store_true", help="machine-readable")
    inspect.set_defaults(run=_inspect)
    verify = commands.add_parser("verify", help="hold a quantized file against its original; exit 1 on any fault")
    verify.add_argument("original", type=Path)
    verify.add_argument("quantized", type=Path)
    verify.set_defaults(run=_verify)
    demo = commands.add_parser("demo", help="make a small Flux-layout model, quantize and verify it")
    demo.add_argument("--folder", type=Path, default=Path("tpec_demo"), help="where to write it (default: tpec_demo)")
    demo.set_defaults(run=_demo)
    return parser


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="safetensors files, shards, indexes of shards or their folders")
    add("--input", dest="input_option", help="the input, as the published TPEC script takes it")
    add("-o", "--output", help="output file; a folder when there are several inputs or the name ends in a slash")
    add("--family", choices=family_names(), default="auto", help="model layout (default: recognised from the keys)")
    add("--method", choices=METHODS, default="tpec")
    add("--format", choices=FORMATS, default="universal", help="universal loads in every ComfyUI since 2024")
    add("--matmul", choices=MATMULS, default="full_precision", help="what the file asks ComfyUI to do")
    add("--top-k", "--top_k", type=int, metavar="K", help="principal components corrected (default: width / 16)")
    add("--num-iter", "--num_iter", type=int, metavar="N", help="sweeps of coordinate descent after rounding")
    add("--calibration", type=Path, metavar="FILE", help="statistics written by the calibration nodes")
    add("--calib-samples", "--calib_samples", type=int, metavar="N",
        help="accepted for the published script's sake; random inputs do not help and are not used")
    add("--keep-distillation", "--keep_distillation", action="store_true", help="keep Chroma's distilled guidance")
    add("--t5xxl", action="store_true", help="the input is a T5-XXL text encoder")
    add("--part", action="append", default=[], metavar="NAME",
        help="quantize this text encoder of a full checkpoint (t5xxl, ...) as well; several, or repeated: a,b")
    add("--only-part", action="store_true", help="write the diffusion model (and what --part names) alone")
    add("--include", default="", metavar="RE", help="quantize Linear weights whose name matches, too")
    add("--exclude", default="", metavar="RE", help="keep tensors whose name matches")
    add("--keep-quality", "--keep_quality", type=float, default=0.0, metavar="PERCENT",
        help="extra size, in percent, to spend on keeping the layers that matter most in high precision")
    add("--embeddings", action="store_true",
        help="make a text encoder's token embedding FP8 as well (needs --format comfy_quant)")
    add("--recipe", type=Path, metavar="FILE.json", help="what becomes of each layer, as --write-recipe wrote it")
    add("--write-recipe", type=Path, metavar="FILE.json", help="write what becomes of each layer and why")
    add("--like", type=Path, metavar="FILE", help="quantize the layers that this quantized file has in FP8")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N, or several separated by commas")
    add("--keep-nonfinite", action="store_true", help="copy parameters that hold NaN or infinite values as they are")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--resume", action="store_true", help="go on where a killed run stopped, and keep what an interrupt leaves")
    add("--dry-run", action="store_true", help="show what would happen and stop")
    add("--report", type=Path, metavar="FILE.json", help="write the full report")
    add("--quiet", action="store_true", help="print errors only")
    parser.set_defaults(run=_quantize, wrong_usage=parser.error)


def _settings(options: argparse.Namespace) -> Settings:
    names = ("family", "method", "format", "matmul", "keep_distillation", "t5xxl", "top_k", "num_iter", "include",
             "exclude", "keep_nonfinite", "only_part", "keep_quality", "embeddings")
    return Settings(**{name: getattr(options, name) for name in names}, part=part_names(",".join(options.part)))


def _inputs(options: argparse.Namespace) -> list[Path]:
    given = [*options.inputs, *([options.input_option] if options.input_option else [])]
    if not given:
        options.wrong_usage("no input was given: name a .safetensors file")
    # Windows shells pass wildcards on.
    return [Path(name) for pattern in given
            for name in (sorted(glob.glob(pattern)) if glob.has_magic(pattern) and not Path(pattern).exists()
                         else [pattern]) or [pattern]]


def _outputs(options: argparse.Namespace, inputs: list[Path]) -> list[Path]:
    outputs = [default_output(path, options.keep_distillation) for path in inputs]
    if options.output is not None and names_folder(options.output):
        outputs = [Path(options.output, path.name) for path in outputs]
    elif options.output is not None and len(inputs) == 1:
        outputs = [named_output(options.output)]
    elif options.output is not None:
        raise TpecError(f"{options.output} is not a folder: with several inputs -o names the folder for the results.")
    refuse_shared_outputs(inputs, outputs)
    return outputs


def _check_texts(options: argparse.Namespace, inputs: list[Path], outputs: list[Path]) -> None:
    """The places of the report and of the recipe, before any work is done."""
    places = (("--report", "report", options.report), ("--write-recipe", "recipe", options.write_recipe))
    for flag, word, path in places:
        if path is None:
            continue
        if len(inputs) > 1:
            raise TpecError(f"{flag} takes one input: run it for each.")
        if not os.path.isdir(path.parent) or os.path.isdir(path):
            raise TpecError(f"The {word} {path} cannot be written: there is no such folder, or it is one itself.")
        if is_model_name(path.name) or path.resolve() in [other.resolve() for other in (*inputs, *outputs)]:
            raise TpecError(f"The {word} {path} would replace a model: choose a name that ends in .json.")


def _quantize(options: argparse.Namespace) -> int:
    settings = _settings(options)
    inputs = _inputs(options)
    outputs = _outputs(options, inputs)
    _check_texts(options, inputs, outputs)
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
                    _complain(sentence(error))
    finally:
        leave_world(world)
    if len(inputs) > 1 and talk:
        print(_batch_table(results))
    return FAILED if any(isinstance(result, Exception) for _, result in results) else DONE


def _quantize_one(options: argparse.Namespace, settings: Settings, source: Path, output: Path, world: World,
                  talk: bool) -> Report | None:
    plan, devices, calibration = world.agree(lambda: (
        _plan(options, settings, source), choose_devices(options.device, world.rank), _calibration(options)))
    if not options.dry_run:
        world.agree(lambda: check_output(plan, output, options.overwrite))
    with TerminalProgress(enabled=talk and settings.keep_quality > 0) as progress:
        plan = settle(plan, calibration, devices[0], progress, world)
    if options.write_recipe:
        world.agree(lambda: write_recipe(options.write_recipe, recipe_of(plan)) if world.rank == 0 else None)
    if talk:
        print(plan.summary())
        where = ("each of " if len(devices) > 1 else "") + ", ".join(map(str, devices))
        print(f"{describe_needs(plan, devices[0], calibration)}; on {where}")
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
        path.write_text(json.dumps(report.to_json(), indent=1), "utf-8")
    except OSError as error:
        raise TpecError(f"The report {path} cannot be written: {error.strerror}; the model was saved.") from None


def _batch_table(results: Sequence[tuple[Path, Report | Exception | None]]) -> str:
    lines = [f"{'input':40} {'size':>7} {'time':>8}  result"]
    for source, result in results:
        if isinstance(result, Report):
            ratio = result.output_nbytes / result.source_nbytes
            lines.append(f"{source.name:40} {ratio:6.3f}x {result.seconds:7.1f}s  {result.output.name}")
        else:
            lines.append(f"{source.name:40} {'-':>7} {'-':>8}  {'failed' if result else 'planned'}")
    return "\n".join(lines)


def _inspect(options: argparse.Namespace) -> int:
    data = inspection.inspect(options.file)
    print(json.dumps(data, indent=1) if options.json else inspection.text(data))
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from ..check.verify import verify

    result = verify(options.original, options.quantized)
    print(result.text(), file=sys.stdout if result.ok else sys.stderr)
    return DONE if result.ok else FAILED


def _demo(options: argparse.Namespace) -> int:
    from ..check.verify import verify
    from ..files.plain import write_safetensors
    from .demo import demo_tensors

    options.folder.mkdir(parents=True, exist_ok=True)
    source, output = options.folder / "demo_bf16.safetensors", options.folder / "demo_fp8.safetensors"
    write_safetensors(source, demo_tensors(), {"title": "TPEC demo, Flux layout, made-up weights"})
    print(f"made {source}")
    plan: Plan = make_plan(open_checkpoint(source), Settings())
    print(plan.summary())
    with TerminalProgress(enabled=True) as progress:
        report = quantize(plan, output, devices=choose_devices("auto"), progress=progress, overwrite=True)
    print(report.result())
    result = verify(source, output)
    print(result.text())
    print(f"{'verified' if result.ok else 'FAULTY'}: {output}")
    return DONE if result.ok else FAILED
