"""The ComfyUI of the tests (COMFYUI_PATH, COMFYUI_PYTHON) with this pack, for benchmarks."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from comfy_server import ComfyServer, find_comfy, find_python


def installed() -> tuple[Path, str]:
    """ComfyUI's folder and its Python; the program ends where there is none."""
    found = find_comfy()
    python = None if found is None else find_python(found)
    if found is None or python is None:
        sys.exit("There is no ComfyUI: set COMFYUI_PATH, and COMFYUI_PYTHON to its Python.")
    return found, python


@contextmanager
def comfy(cpu: bool = True, folder: Path | None = None, threads: int = 1) -> Iterator[ComfyServer]:
    """A running server with a base folder of its own below `folder`, removed afterwards.

    OMP_NUM_THREADS wins over `threads`.
    """
    found, python = installed()
    if threads > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix="base-", ignore_cleanup_errors=True) as base, \
            ComfyServer(found, python, Path(base), cpu=cpu) as server:
        yield server


def own_memory(pid: int) -> int:
    """Bytes of a process without what the system lends it from files; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) << 10
    except (OSError, KeyError):
        return 0


def all_threads() -> int:
    """As many as this program may use at once."""
    return len(os.sched_getaffinity(0))
