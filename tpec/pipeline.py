"""Quantize a checkpoint file to file: what is known is checked first, then lanes stream it, then it gets its name."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from . import spool
from .calibrated import calibration_record, check_calibration, layer_options
from .calibration import Calibration
from .checkpoint import Reader
from .compute import Compute
from .device import fast_products, load_libraries
from .errors import TpecError
from .estimate import compute_threads
from .families import DROP, QUANTIZE
from .lane import Lane, Stages
from .layout import Layout, make_layout
from .plan import Plan
from .progress import Meter, OnProgress
from .report import LayerReport, Report
from .work import Task, make_tasks, split
from .world import World

log = logging.getLogger(__name__)

_POLL = 0.2


@dataclass(frozen=True)
class Job:
    """A run that passed every check: what to write where, and which tasks an earlier run has finished."""

    plan: Plan
    output: Path
    layout: Layout
    digest: str
    calibration: Calibration | None
    tasks: tuple[Task, ...]
    finished: dict[str, dict[str, object] | None]


def quantize(plan: Plan, output: Path | str, *, devices: Sequence[str | torch.device] = ("cpu",),
             calibration: Calibration | None = None, progress: OnProgress | None = None, overwrite: bool = False,
             resume: bool = False, world: World | None = None) -> Report:
    """Carry out `plan` into `output` and return what was done.

    `progress` is called often, also within layers, from any lane's thread; an exception it raises stops the run. Unless
    `resume` is set an error or interrupt removes everything; with it the partial file and its journal stay for the next
    run. Raises TpecError.
    """
    begun = time.monotonic()
    output, world = Path(output), world or World()
    found = [torch.device(device) for device in devices]
    job = _prepare(plan, output, calibration, overwrite, resume, world)
    try:
        facts, stages, notes = _run(job, found, progress, world)
        parts = world.gather((facts, stages, notes))
        if world.rank == 0:
            _refuse_existing(output, overwrite)
            spool.finish(output)
        world.share(None)
    except BaseException:
        if world.rank == 0 and not resume:
            spool.discard(output)
        raise
    return _report(job, parts, found, world, time.monotonic() - begun)


def check_output(plan: Plan, output: Path, overwrite: bool) -> None:
    """Raises TpecError when `output` cannot or must not be written."""
    try:
        if not output.parent.is_dir():
            raise TpecError(f"The folder {output.parent} does not exist: create it or choose another.")
        if output.is_dir():
            raise TpecError(f"{output} is a folder: name a file.")
        # The working file replaces whatever has its name, so that must not be the input either.
        for target in (output, spool.partial_path(output)):
            if target.exists() and any(path.exists() and path.samefile(target) for path in plan.checkpoint.files):
                raise TpecError(f"{target.name} is the input itself: choose another name for the output.")
        _refuse_existing(output, overwrite)
    except OSError as error:
        raise TpecError(spool.disk_fault(error, output)) from None


def _refuse_existing(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise TpecError(f"{output} exists already: choose another name or allow overwriting (--overwrite).")


def _prepare(plan: Plan, output: Path, calibration: Calibration | None, overwrite: bool, resume: bool,
             world: World) -> Job:
    check_output(plan, output, overwrite)
    if plan.settings.method == "nearest" and plan.settings.matmul == "full_precision":
        calibration = None
    covered = check_calibration(plan, calibration) if calibration else ()
    # Rounding to nearest has no use for statistics; the input scales of fp8 matmul come from them all the same.
    steering = calibration if plan.settings.method == "tpec" else None
    coupled = frozenset(layer.layer for layer in plan.of(QUANTIZE)
                        if steering and layer.local_layer in steering.outputs)
    tasks = make_tasks(plan, frozenset(covered if steering else ()), coupled)
    layout = make_layout(plan, layer_options(plan, calibration), calibration_record(tasks, steering))
    recipe = plan.settings.recipe() | {"calibration": calibration.digest() if covered else ""}
    digest = spool.job_digest(layout, plan.checkpoint.identity(), recipe)
    outcome: dict | TpecError = {}
    if world.rank == 0:
        try:
            finished = spool.finished(output, layout, digest) if resume else None
            if finished is None:
                spool.create(output, layout)
            outcome = finished or {}
        except TpecError as error:
            outcome = error
    outcome = world.share(outcome)
    if isinstance(outcome, TpecError):
        raise outcome
    return Job(plan, output, layout, digest, steering, tasks, outcome)


def _group(job: Job, task: Task) -> object:
    """Tasks that share a metric belong together."""
    if job.calibration is None or not task.quantize:
        return task.layer.name
    name = job.calibration.layers.get(task.layer.local_layer)
    return ("group", name) if name is not None else task.layer.name


def _run(job: Job, devices: list[torch.device], progress: OnProgress | None,
         world: World) -> tuple[dict[str, dict[str, object]], Stages, list[str]]:
    """Run this process's lanes; returns facts by layer, summed stage times and notes."""
    open_tasks = [task for task in job.tasks if task.layer.name not in job.finished]
    shares = split(open_tasks, [_group(job, task) for task in open_tasks], world.size * len(devices))
    mine = shares[world.rank * len(devices): (world.rank + 1) * len(devices)]
    total = sum(task.cost for task in job.tasks)
    done = [task for task in job.tasks if task.layer.name in job.finished]
    meter = Meter(total, sum(task.quantize for task in job.tasks), sum(task.cost for task in done),
                  sum(task.quantize for task in done), progress)
    if world.size > 1:
        # Another rank's work is not seen here: show this rank's share as the whole.
        meter = Meter(sum(task.cost for share in mine for task in share) or 1.0,
                      sum(task.quantize for share in mine for task in share), 0.0, 0, progress)
    facts: dict[str, dict[str, object]] = {}
    compute = [[Compute(job.plan, job.calibration, job.layout, device, meter)
                for _ in range(compute_threads(job.plan, device, job.calibration))] for device in devices]
    readers = [Reader(job.plan.checkpoint) for _ in devices]
    writers = [spool.SpoolFile(job.output, job.layout) for _ in devices]
    journals = [spool.Journal(job.output, job.digest, world.rank * len(devices) + at, writer)
                for at, writer in enumerate(writers)]
    lanes = [Lane(device, tasks, reader, writer, journal, [one.run for one in several],
                  partial(_finished, meter, facts))
             for device, tasks, reader, writer, journal, several
             in zip(devices, mine, readers, writers, journals, compute, strict=True)]
    try:
        load_libraries(devices)
        with fast_products(devices):
            _run_lanes(lanes, meter)
    finally:
        for closable in (*readers, *journals, *writers):
            closable.close()
    stages = Stages(*(sum(getattr(lane.stages, name) for lane in lanes) for name in ("read", "compute", "write")))
    notes = [note for several in compute for one in several for note in one.notes]
    return facts, stages, notes


def _finished(meter: Meter, facts: dict[str, dict[str, object]], task: Task, fact: dict[str, object] | None) -> None:
    message = ""
    if fact is not None:
        facts[task.layer.name] = fact
        message = f"error {fact['relative_error']:.4f}"
    meter.advance(task.cost, task.quantize, message)


def _run_lanes(lanes: list[Lane], meter: Meter) -> None:
    if len(lanes) == 1:
        lanes[0].run()
        return
    errors: list[BaseException] = []

    def guarded(lane: Lane) -> None:
        try:
            lane.run()
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)
            meter.stop(error)
            for other in lanes:
                other.stop()

    threads = [threading.Thread(target=guarded, args=(lane,), daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            time.sleep(_POLL)
    except BaseException as error:
        meter.stop(error)
        raise
    finally:
        for lane in lanes:
            lane.stop()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def _uncovered(job: Job) -> list[str]:
    """A note on layers that a calibration says nothing about."""
    if job.calibration is None:
        return []
    names = [layer.layer for layer in job.plan.of(QUANTIZE) if job.calibration.stats(layer.local_layer) is None]
    if not names:
        return []
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return [f"{len(names)} layers have no statistics in the calibration and were rounded without: {shown}"]


def _report(job: Job, parts: list[tuple[dict, Stages, list[str]]], devices: list[torch.device], world: World,
            seconds: float) -> Report:
    facts = {name: fact for name, fact in job.finished.items() if fact}
    for part, _, _ in parts:
        facts |= part
    plan = job.plan
    layers = tuple(LayerReport(**{**facts[layer.name], "shape": layer.shape}) for layer in plan.of(QUANTIZE))
    stages = {name: sum(getattr(part[1], name) for part in parts) for name in ("read", "compute", "write")}
    notes = tuple(dict.fromkeys([*_uncovered(job), *(note for part in parts for note in part[2])]))
    where = ", ".join(str(device) for device in devices) + (f" x {world.size}" if world.size > 1 else "")
    kept = sum(layer.action not in (QUANTIZE, DROP) for layer in plan.layers)
    return Report(plan.checkpoint.name, job.output, plan.kind, plan.family.name, plan.why, plan.settings.recipe(),
                  layers, kept, len(plan.of(DROP)), plan.checkpoint.nbytes, job.layout.nbytes, seconds, where,
                  stages, notes)
