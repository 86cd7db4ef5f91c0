"""Quantize a checkpoint file to file: what is known is checked first, then lanes stream it, then it gets its name."""

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..device import fast_products, load_libraries, workspaces_freed
from ..errors import TpecError, is_out_of_memory
from ..files import partial as spool
from ..files.lock import OutputLock
from ..files.replace import disk_errors
from ..model.plan import Plan
from ..statistics.calibration import Calibration
from .choices.losses import Measured, measure
from .choices.matmul import with_matmul
from .choices.quality import find_quality, with_quality
from .compute import Compute, memory_note
from .fit import check_calibration
from .job import Job, check_output, make_job, refuse_existing
from .lane import Known, Lane, Stages
from .memory import compute_threads
from .outcome import Done, make_report
from .processes import World
from .progress import Halt, Meter, OnProgress, nothing_kept
from .report import Report
from .tasks import Task, split


@nothing_kept()
def quantize(plan: Plan, output: Path | str, *, devices: Sequence[str | torch.device] = ("cpu",),
             calibration: Calibration | None = None, progress: OnProgress | None = None, overwrite: bool = False,
             resume: bool = False, world: World | None = None, sync_bytes: int = spool.SYNC_BYTES) -> Report:
    """Carry out `plan` into `output` and return what was done.

    `progress` is called often, also within layers, from any lane's thread; an exception it raises stops the run. Unless
    `resume` is set an error or interrupt removes everything; with it the partial file and its journal stay for the next
    run, which loses at most the `sync_bytes` written last. Of several processes all fail when one does, with the same
    sentence. Raises TpecError, also when another run writes `output`.
    """
    begun = time.monotonic()
    output, world = Path(output), world or World()
    found = [torch.device(device) for device in devices]
    world.agree(partial(check_output, plan, output, overwrite))
    plan = settle(plan, calibration, found[0], progress, world)
    job = world.agree(partial(make_job, plan, output, calibration, overwrite))
    with spool.output_lock(output) as lock:
        world.agree(lock.acquire if world.rank == 0 else _nothing)
        try:
            # From here on without `resume` a working file of that name is this run's own.
            begin = partial(_begin, job, overwrite, resume, lock)
            done, working_file = world.share(world.agree(begin if world.rank == 0 else _nothing))
            lock.follow(working_file)
            job = replace(job, finished=done, sync_bytes=sync_bytes)
            cards = Counter(card for cards in world.gather([_card(device) for device in found]) for card in cards)
            parts = world.gather(world.agree(partial(_run, job, found, progress, world, cards, lock)))
            world.agree(partial(_publish, output, overwrite, lock) if world.rank == 0 else _nothing)
        except BaseException:
            with suppress(OSError):  # what failed first is what the user reads
                if lock.held and not resume and lock.unchanged():
                    spool.discard(output)
            raise
    return make_report(job, parts, found, world, time.monotonic() - begun)


@nothing_kept()
def settle(plan: Plan, calibration: Calibration | None, device: torch.device, progress: OnProgress | None = None,
           world: World | None = None) -> Plan:
    """`plan` with `keep_quality` spent and `matmul: auto` decided, which takes one reading of the weights.

    It is `plan` itself where there is nothing to decide. One process measures for all, so that they agree. Raises
    TpecError.
    """
    auto = plan.settings.matmul == "auto"
    if plan.bought or not auto and plan.settings.keep_quality == 0:
        return plan
    world = world or World()

    def measured() -> list[dict[str, Measured]]:
        if world.rank != 0:
            return []
        if calibration is not None:
            check_calibration(plan, calibration)
        elif auto:
            raise TpecError("matmul auto needs a calibration, as what rounding the inputs costs depends on them: "
                            "give one, or use full_precision.")
        return [measure(plan, calibration, device, progress)]

    found = world.share(world.agree(measured))[0]
    if plan.settings.keep_quality > 0:
        plan = with_quality(plan, find_quality(plan, found))
    return with_matmul(plan, found, calibration) if auto and calibration else plan


def _publish(output: Path, overwrite: bool, lock: OutputLock) -> None:
    refuse_existing(output, overwrite)
    spool.finish(output, overwrite, lock)


def _nothing() -> Any:
    """What the other ranks do meanwhile."""


def _begin(job: Job, overwrite: bool, resume: bool, lock: OutputLock) -> tuple[Known, tuple[str, int] | None]:
    """Make the working file, or find what an earlier run has finished of it; with it what to know the file by."""
    refuse_existing(job.output, overwrite)  # another run may have ended just before
    finished = spool.finished(job.output, job.layout, job.digest, lock) if resume else None
    if finished is None:
        spool.create(job.output, job.layout, lock)
    with disk_errors(job.output):
        return finished or {}, lock.identity()


def _group(job: Job, task: Task) -> object:
    """Tasks that share a metric belong together."""
    if job.calibration is None or not task.quantize:
        return task.tensor.name
    name = job.calibration.layers.get(task.tensor.linear_in_model)
    return ("group", name) if name is not None else task.tensor.name


def _run(job: Job, devices: list[torch.device], progress: OnProgress | None, world: World,
         cards: Counter[str], lock: OutputLock) -> Done:
    """Run this process's lanes; `cards` says how many lanes of all processes work on each card."""
    open_tasks = [task for task in job.tasks if task.tensor.name not in job.finished]
    shares = split(open_tasks, [_group(job, task) for task in open_tasks], world.size * len(devices))
    mine = shares[world.rank * len(devices): (world.rank + 1) * len(devices)]
    halt, known = Halt(), Known()
    meter = _meter(job, mine, progress, halt, world)
    computes = [_computes(job, device, meter, cards[_card(device)]) for device in devices]
    with ExitStack() as stack:
        lanes = [_open_lane(job, world.rank * len(devices) + at, tasks, several, stack, halt,
                            partial(_on_done, meter, known), lock)
                 for at, (tasks, several) in enumerate(zip(mine, computes, strict=True))]
        _run_lanes(lanes, halt, world)
    stages = Stages(*(sum(getattr(lane.stages, name) for lane in lanes) for name in ("read", "compute", "write")))
    return Done(known, stages, [note for several in computes for one in several for note in one.notes])


def _meter(job: Job, mine: Sequence[Sequence[Task]], progress: OnProgress | None, halt: Halt, world: World) -> Meter:
    """Of the whole run; of several processes, which see each other's work at its end only, of this one's share."""
    done: list[Task] = []
    tasks: Sequence[Task] = [task for share in mine for task in share]
    if world.size == 1:
        tasks, done = job.tasks, [task for task in job.tasks if task.tensor.name in job.finished]
    return Meter(sum(task.cost for task in tasks) or 1.0, sum(task.quantize for task in tasks),
                 sum(task.cost for task in done), sum(task.quantize for task in done), progress, halt)


def _card(device: torch.device) -> str:
    """One name for one card, as far as that can be told, in every process of this machine."""
    return " ".join((platform.node(), os.environ.get("CUDA_VISIBLE_DEVICES", ""), str(device)))


def _computes(job: Job, device: torch.device, meter: Meter, lanes: int) -> list[Compute]:
    """For each of a lane's threads; on the CPU where the device has not even room to begin."""
    try:
        threads = compute_threads(job.plan, device, job.calibration, lanes)
        return [Compute(job.plan, job.calibration, device, meter) for _ in range(threads)]
    except RuntimeError as error:
        if device.type == "cpu" or not is_out_of_memory(error):
            raise
    one = Compute(job.plan, job.calibration, torch.device("cpu"), meter)
    one.notes.append(memory_note(device))
    return [one]


def _open_lane(job: Job, number: int, tasks: Sequence[Task], computes: Sequence[Compute], stack: ExitStack, halt: Halt,
               on_done: Callable[[Task, Known], None], lock: OutputLock) -> Lane:
    """Lane `number` of the run; `stack` closes what it holds open.

    Raises TpecError before anything is written to a file that is not the one that `lock` watches.
    """
    reader = stack.enter_context(closing(job.plan.checkpoint.reader()))
    writer = stack.enter_context(closing(spool.SpoolFile(job.output, job.layout)))
    with disk_errors(job.output):
        lock.confirm(writer.handle)
    journal = stack.enter_context(closing(spool.Journal(job.output, job.digest, number, writer, job.sync_bytes)))
    return Lane(computes[0].device, tasks, reader, writer, journal, [one.run for one in computes], on_done, halt,
                job.plan.settings.keep_nonfinite)


def _run_lanes(lanes: Sequence[Lane], halt: Halt, world: World) -> None:
    """Raises what fails first, in a lane here or in another process."""
    devices = [lane.device for lane in lanes]
    load_libraries(devices)
    with workspaces_freed(devices), fast_products(devices), world.watching(halt):
        halt.run(*(lane.run for lane in lanes))
    halt.raise_first()


def _on_done(meter: Meter, known: Known, task: Task, found: Known) -> None:
    """A task is on disk: `found` of its tensors is added to what is `known`."""
    known.update((name, one) for name, one in found.items() if one)
    report = found[task.tensor.name]
    message = f"error {report['relative_error']:.4f}" if task.quantize and report else ""
    meter.advance(task.cost, task.quantize, message)
