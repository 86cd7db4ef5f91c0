"""The command line as `fault_matrix` runs it: in a forked process that has it imported, or as a new interpreter.

A new interpreter takes seconds of CPU to import PyTorch, a fork milliseconds. What the two do in the files' folder is
the same, call by call and byte by byte (`tests/run/test_forked.py`): the forked process begins with modules that were
imported and never used, no thread but its own, and PyTorch's generators untouched. As a new one imports for longer than
its other thread takes to look at the input, so a forked one waits for that thread where it would import. Commands that
run out of memory do import the command line, as that is where it may end.
"""

import gc
import importlib
import inspect
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import tpec.__main__
from tpec.run.pipeline import quantize

Work = Callable[[Path], int]
#: What a command imports when it has begun, beside what `errands` itself uses.
_ENTRY = "tpec.command.cli"
_LATE = (_ENTRY, "tpec.check.inspect", "tpec.check.verify", "tpec.statistics.storage", "encodings.ascii")
_NEW_INTERPRETER = """import sys
from benchmarks.commands import make_durable_at_once
make_durable_at_once()
from tpec.__main__ import main
sys.exit(main())"""
_imported: set[str] = set()


def make_durable_at_once() -> None:
    """Let every run, here and in forked processes, note each tensor as soon as it is written.

    The journal would sync every 256 MB only, so that of a small model nothing could be resumed.
    """
    defaults = inspect.unwrap(quantize).__kwdefaults__
    assert defaults and "sync_bytes" in defaults
    defaults["sync_bytes"] = 1


def import_all() -> None:
    """Import what every command would, before the first is forked, and keep the collector off these objects' pages."""
    before = set(sys.modules)
    for name in _LATE:
        importlib.import_module(name)
    _imported.update(set(sys.modules) - before)
    gc.collect()
    gc.freeze()


class _Imported(MetaPathFinder, Loader):
    """Gives a module that was imported before, as soon as no other thread runs any more."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == self._module.__name__ else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        for thread in threading.enumerate():
            if thread is not threading.current_thread():
                thread.join()
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """It was executed before."""


@dataclass(frozen=True)
class Command:
    """`python -m tpec ARGUMENTS`, in this process; those that name a file of the folder begin with @."""

    arguments: tuple[str, ...]

    def __call__(self, folder: Path) -> int:
        if _ENTRY in sys.modules:
            sys.meta_path.insert(0, _Imported(sys.modules.pop(_ENTRY)))
        sys.argv = ["tpec", *self.in_folder(folder)]
        return tpec.__main__.main()

    def in_folder(self, folder: Path) -> list[str]:
        return [str(folder / text[1:]) if text.startswith("@") else text for text in self.arguments]


def command(*arguments: str) -> Command:
    return Command(arguments)


def imported_anew(work: Work) -> Work:
    """`work` in a process that has not imported the command line yet; for one that ends after it."""
    def run(folder: Path) -> int:
        for name in _imported:
            package, _, module = name.rpartition(".")
            if package in sys.modules:
                vars(sys.modules[package]).pop(module, None)
            sys.modules.pop(name)
        return work(folder)

    return run


def in_new_interpreter(work: Work) -> Work:
    """A command instead of this process, with what is armed in its environment; other work as it is."""
    if not isinstance(work, Command):
        return work

    def run(folder: Path) -> int:
        os.execv(sys.executable, [sys.executable, "-c", _NEW_INTERPRETER, *work.in_folder(folder)])

    return run
