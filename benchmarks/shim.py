"""Python's side of `shim.c`: compile it, start a program with it, arm it within that program."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .common import ROOT

SOURCE = Path(__file__).with_name("shim.c")
#: Actions beside an errno.
SHORT, KILL, KILL_AFTER, STOP = -1, -2, -3, -4
#: `Fault.times` of one that lasts.
FOR_EVER = 0
#: `Fault.kind` of no fault: calls of every kind are counted.
EVERY = "every"


@dataclass(frozen=True)
class Fault:
    """The `nth` call of `kind` on paths containing `path`, and `times` in all, meets `action`; see shim.c.

    Of kind "memory" `path` is the least size of an allocation, in bytes.
    """

    kind: str
    action: int
    nth: int = 1
    times: int = 1
    path: str = ""

    def environment(self) -> dict[str, str]:
        """What arms a new program with it."""
        return {"SHIM_KIND": self.kind, "SHIM_PATH": self.path, "SHIM_ACTION": str(self.action),
                "SHIM_NTH": str(self.nth), "SHIM_TIMES": str(self.times)}


def missing() -> str:
    """Why there can be no shim here, or ''."""
    if sys.platform != "linux":
        return "a library can be put below a program by LD_PRELOAD on Linux only"
    return "" if shutil.which("gcc") else "there is no gcc to compile the library with"


def compiled(folder: Path) -> Path:
    """The library, made in `folder`."""
    library = folder / "shim.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def run_with_shim(module: str, arguments: Sequence[str], **more: object) -> subprocess.CompletedProcess:
    """`python -m MODULE ARGUMENTS` as a process that has the shim below it, not armed; one thread, no GPU."""
    with tempfile.TemporaryDirectory() as folder:
        added = {"LD_PRELOAD": str(compiled(Path(folder))), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                 "CUDA_VISIBLE_DEVICES": "",
                 "PYTHONHASHSEED": "0"}  # so that allocations, too, are the same in every run
        return subprocess.run([sys.executable, "-m", module, *arguments], env=os.environ | added, check=False, **more)


class Shim:
    """The library that this process was started with."""

    def __init__(self) -> None:
        """Raises AttributeError where there is none."""
        self._library = ctypes.CDLL(None)
        self._library.shim_arm.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_long]
        self._library.shim_calls_of.argtypes = [ctypes.c_char_p]
        for name in ("shim_calls", "shim_hits", "shim_calls_of"):
            getattr(self._library, name).restype = ctypes.c_long

    def arm(self, fault: Fault) -> None:
        """From now on `fault` happens in this process and in those that it forks. Counts begin at zero."""
        self._library.shim_arm(fault.kind.encode(), fault.path.encode(), fault.action, fault.nth, fault.times)

    def disarm(self) -> None:
        """Nothing happens in this process any more."""
        self._library.shim_disarm()

    def count_apart(self) -> None:
        """Share no counts any more with the process that forked this one. Raises MemoryError."""
        if self._library.shim_count_apart():
            raise MemoryError("There is no memory for counts of calls.")

    @property
    def calls(self) -> int:
        """Calls of the kind that were counted since `arm`, here and in forked processes."""
        return self._library.shim_calls()

    def calls_of(self, kind: str) -> int:
        """Calls of a kind since EVERY was armed, as `calls`."""
        return self._library.shim_calls_of(kind.encode())

    @property
    def hits(self) -> int:
        """Calls that were acted upon since `arm`."""
        return self._library.shim_hits()
