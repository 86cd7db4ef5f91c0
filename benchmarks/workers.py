"""Jobs spread over processes below the shim, each with a folder and counts of its own.

A worker is forked from the process that has PyTorch and the engine imported, and forks another that does the jobs, so
that one which ends its process is told and the next is done all the same. Commands run in the worker's process group,
so that all end with it.
"""

import contextlib
import math
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import TypeVar

from .injections import Bench
from .shim import Shim

Result = TypeVar("Result")


@dataclass(frozen=True)
class Broken:
    """In place of a job's result: why there is none."""

    why: str


def spread(jobs: Sequence[Callable[[Bench], Result]], shim: Shim, folder: Path, workers: int,
           until: float = math.inf) -> Iterator[tuple[int, Result | Broken]]:
    """Each job's place and result, as they end; jobs are begun in their order, none after `until` (time.monotonic).

    The workers' folders are made in `folder`. Close the iterator to kill what still runs.
    """
    crew: dict[Connection, int] = {}
    try:
        for number in range(min(workers, len(jobs))):
            pipe, process = _hire(jobs, shim, folder / f"worker{number}", list(crew))
            crew[pipe] = process
        yield from _served(list(crew), len(jobs), until)
    finally:
        for pipe, process in crew.items():
            pipe.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _served(pipes: Sequence[Connection], jobs: int, until: float) -> Iterator[tuple[int, object]]:
    """Give each worker a job whenever it has none."""
    waiting, idle, busy = deque(range(jobs)), list(pipes), {}
    while True:
        while idle and waiting and time.monotonic() < until:
            pipe = idle.pop()
            with contextlib.suppress(OSError):  # it is gone: another does the job
                pipe.send(waiting[0])
                busy[pipe] = waiting.popleft()
        idle.clear()
        if not busy:
            return
        for pipe in wait(list(busy)):
            try:
                result = pipe.recv()
                idle.append(pipe)
            except (EOFError, OSError):
                result = Broken("the process that does such work ended")
            yield busy.pop(pipe), result


def _hire(jobs: Sequence[Callable[[Bench], object]], shim: Shim, folder: Path,
          others: Sequence[Connection]) -> tuple[Connection, int]:
    """A worker: its pipe and its process, whose group has the same number."""
    ours, theirs = Pipe()
    process = os.fork()
    if process == 0:
        try:
            # Whoever interrupts at the terminal means the first process only, which then kills the group.
            os.setpgid(0, 0)
            for pipe in (ours, *others):
                pipe.close()
            _work(jobs, shim, folder, theirs)
        except BaseException:  # noqa: BLE001 - a forked process must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    with contextlib.suppress(OSError):  # it did so itself and is gone
        os.setpgid(process, process)
    return ours, process


def _work(jobs: Sequence[Callable[[Bench], object]], shim: Shim, folder: Path, pipe: Connection) -> None:
    """Do what is asked for until the pipe is closed, in a process that is replaced if a job ends it."""
    shim.count_apart()
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        process = os.fork()
        if process == 0:
            try:
                _judge(jobs, Bench(shim, folder / "work"), pipe)
            except EOFError:
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(process, 0)
        if not status:
            return
        pipe.send(Broken(f"the process that judges it ended with {os.waitstatus_to_exitcode(status)}"))


def _judge(jobs: Sequence[Callable[[Bench], object]], bench: Bench, pipe: Connection) -> None:
    """EOFError when the pipe is closed."""
    while True:
        pipe.send(_result(jobs[pipe.recv()], bench))


def _result(job: Callable[[Bench], object], bench: Bench) -> object:
    try:
        return job(bench)
    except SystemExit as end:
        return Broken(str(end))
    except BaseException:  # noqa: BLE001 - told to the first process
        return Broken(traceback.format_exc())
