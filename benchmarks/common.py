"""What the benchmarks share: running commands, files, tables."""

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
BLOCK = 16 * 2**20

#: [out, in] of the Linear layers of a Flux or Chroma block; a model of full size has 38 of each.
FLUX_SHAPES = ((9216, 3072), (3072, 3072), (12288, 3072), (3072, 12288), (21504, 3072), (3072, 15360))
LAYERS_PER_SHAPE = 38


@dataclass(frozen=True)
class Run:
    """One finished command: wall seconds, the largest process's peak resident bytes, exit code, combined output."""

    seconds: float
    peak_bytes: int
    cpu_seconds: float
    code: int
    output: str

    def checked(self) -> "Run":
        """Itself, or an exit with the end of the command's output when it failed."""
        if self.code:
            raise SystemExit(f"A benchmarked command failed with code {self.code}:\n{self.output[-2000:]}")
        return self


def measured(command: Sequence[str | os.PathLike[str]], *, cwd: Path | None = None, timeout: float = 0,
             env: dict[str, str] | None = None) -> Run:
    """Run a command to its end (killed after `timeout` seconds, 0: never) and measure it from outside."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **(env or {})}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        wrapper = [sys.executable, "-I", "-S", str(Path(__file__).with_name("measure.py")), str(result), str(timeout)]
        done = subprocess.run([*wrapper, *map(str, command)], cwd=cwd, env=environment, text=True, errors="replace",
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return Run(**json.loads(result.read_text("utf-8")), output=done.stdout)


def tpec_command(*args: object) -> list[str]:
    """The command line of this project's CLI under the running Python."""
    return [sys.executable, "-m", "tpec", *map(str, args)]


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean; exact zeros count as 1e-12 so that one perfect layer does not hide the others."""
    logs = [math.log(max(value, 1e-12)) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A GitHub table with padded columns; numbers are given as strings already."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    padded = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
              for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def times(value: float, base: float, digits: int = 2) -> str:
    """`value / base` as '1.23 x', or a dash where there is nothing to compare with."""
    if not base or math.isnan(base) or math.isnan(value):
        return "-"
    return f"{value / base:.{digits}f} x"


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def drop_cache(path: Path) -> None:
    """Write a file's dirty pages out and ask the system to forget it, so that the next read is cold."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def environment() -> str:
    """One line about the machine, for the head of every result."""
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"Python {platform.python_version()}, torch {torch.__version__}, {device}"
