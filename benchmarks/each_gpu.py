"""Run several commands, each on a GPU of its own, as many at a time as there are GPUs.

    python -m benchmarks.each_gpu --logs logs --seconds 570 \\
        "benchmarks.in_comfy --model flux.safetensors --card 8 --output logs/card-8.json" \\
        "benchmarks.step_seconds --model flux.safetensors --output logs/steps.json"

A command is a module with its arguments. Each sees one GPU only and an equal share of the processors; what it says goes
to a file in --logs, and its end is printed here. After --seconds all that still run are stopped, and those that have
not begun are named. Exit code 1 when any command failed or was stopped.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .common import ROOT

_POLL, _LAST_SECONDS, _TAIL = 0.2, 8, 1500


@dataclass
class Running:
    """A command on its GPU, a process group of its own."""

    command: str
    gpu: int
    log: Path
    process: subprocess.Popen
    begun: float

    def stop(self) -> None:
        """Interrupt it, and kill what is left of it soon afterwards."""
        for sent, seconds in ((signal.SIGINT, _LAST_SECONDS), (signal.SIGKILL, None)):
            try:
                os.killpg(self.process.pid, sent)
                self.process.wait(seconds)
                return
            except subprocess.TimeoutExpired:
                pass
            except ProcessLookupError:
                return

    def report(self) -> str:
        end = self.log.read_text("utf-8", "replace")[-_TAIL:]
        seconds = time.monotonic() - self.begun
        return f"== GPU {self.gpu}, {seconds:.0f} s, code {self.process.poll()}: {self.command}\n{end}"


def start(command: str, gpu: int, number: int, args: argparse.Namespace, shared: int) -> Running:
    log = args.logs / f"{number}.log"
    threads = max(1, len(os.sched_getaffinity(0)) // shared)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}
    if torch.cuda.is_available():
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    with open(log, "wb") as file:
        process = subprocess.Popen([sys.executable, "-m", *shlex.split(command)], cwd=ROOT, env=environment,
                                   stdout=file, stderr=file, start_new_session=True)
    return Running(command, gpu, log, process, time.monotonic())


def run_all(commands: Sequence[str], gpus: int, args: argparse.Namespace) -> bool:
    """Whether all ended well."""
    waiting, running, good = list(enumerate(commands)), list[Running](), True
    end = time.monotonic() + args.seconds
    while waiting or running:
        free = set(range(gpus)) - {one.gpu for one in running}
        for gpu in sorted(free)[:len(waiting)]:
            number, command = waiting.pop(0)
            running.append(start(command, gpu, number, args, gpus))
        time.sleep(_POLL)
        late = time.monotonic() > end
        for one in [one for one in running if late or one.process.poll() is not None]:
            if late:
                one.stop()
            print(one.report(), flush=True)
            running.remove(one)
            good &= one.process.poll() == 0
        if late:
            print(*(f"== not begun: {command}" for _, command in waiting), sep="\n")
            return good and not waiting
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="+", metavar="COMMAND", help="a module and its arguments, quoted")
    parser.add_argument("--logs", type=Path, required=True, help="folder for what the commands say")
    parser.add_argument("--seconds", type=float, default=570, help="when to stop (default 570)")
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count() or 1, help="how many (default: all)")
    args = parser.parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if run_all(args.commands, args.gpus, args) else 1)


if __name__ == "__main__":
    main()
