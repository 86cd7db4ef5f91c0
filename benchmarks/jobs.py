"""One `tpec quantize` command that is killed, watched and held against an uninterrupted run; for `benchmarks.crash`."""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tpec.files.checkpoint import open_checkpoint
from tpec.files.partial import discard, journal_paths

from .common import ROOT, sha256, tpec_command

_POLL = 0.02


@dataclass(frozen=True)
class Ended:
    """A run's exit code (negative: the signal), wall seconds, what it said on stderr."""

    code: int
    seconds: float
    said: str


@dataclass(frozen=True)
class Durable:
    """What the journal lists: tensors, how many of them are quantized layers, and their bytes in the source."""

    tensors: int
    layers: int
    nbytes: int

    def text(self) -> str:
        return f"{self.tensors} ({self.layers} layers, {self.nbytes / 1e6:.0f} MB)"


@dataclass(frozen=True)
class Job:
    """One command: `tpec quantize SOURCE -o OUTPUT ... --resume`."""

    source: Path
    output: Path
    options: tuple[str, ...]

    def run(self, kill_after: float | None = None, kill_when: Callable[[], bool] | None = None, *, resume: bool = True,
            meanwhile: Callable[[], None] | None = None, limit: Callable[[], None] | None = None) -> Ended:
        """Run it to its end, or kill it after so many seconds, or as soon as a condition holds.

        `meanwhile` is called again and again while it runs, `limit` in the new process before it begins.
        """
        command = tpec_command("quantize", self.source, "-o", self.output, "--quiet", *self.options,
                               *(["--resume"] if resume else []))
        with tempfile.TemporaryFile() as stderr:
            begun = time.perf_counter()
            process = subprocess.Popen(command, stderr=stderr, preexec_fn=limit,
                                       env=os.environ | {"PYTHONPATH": str(ROOT)})
            try:
                self._watch(process, begun, kill_after, kill_when, meanwhile)
            finally:
                process.kill()
                code = process.wait()
            seconds = time.perf_counter() - begun
            stderr.seek(0)
            return Ended(code, seconds, stderr.read().decode(errors="replace").strip())

    @staticmethod
    def _watch(process: subprocess.Popen, begun: float, kill_after: float | None,
               kill_when: Callable[[], bool] | None, meanwhile: Callable[[], None] | None) -> None:
        """Return when the process has ended or is to be killed."""
        end = float("inf") if kill_after is None else begun + kill_after
        while process.poll() is None:
            left = end - time.perf_counter()
            if left <= 0 or (kill_when is not None and kill_when()):
                return
            if meanwhile is not None:
                meanwhile()
            if kill_when is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(_POLL, left))

    def durable(self) -> Durable:
        """What a resumed run may skip, by the journal."""
        tensors = open_checkpoint(self.source).tensors
        facts: dict[str, object] = {}
        for path in journal_paths(self.output):
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n") and "done" in (fields := json.loads(line)):
                    facts[fields["done"]] = fields["facts"]
        return Durable(len(facts), sum(fact is not None for fact in facts.values()),
                       sum(tensors[name].nbytes for name in facts))

    def clear(self) -> None:
        discard(self.output)
        self.output.unlink(missing_ok=True)

    def lying(self) -> str:
        """Names in the output's folder that begin with its name, the output's own included."""
        return ", ".join(sorted(path.name for path in self.output.parent.glob("*")
                                if path.name.startswith(self.output.name))) or "nothing"


class Checks:
    """Counts what is not as promised."""

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.failed: list[str] = []

    def that(self, holds: bool, otherwise: str) -> bool:
        if not holds:
            self.failed.append(otherwise)
        return holds

    def same(self, output: Path, title: str) -> str:
        """"yes" when the file is there and the uninterrupted run's."""
        equal = output.is_file() and sha256(output) == self.digest
        return "yes" if self.that(equal, f"{title}: the file differs or is missing") else "NO"
