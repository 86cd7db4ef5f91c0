"""python -m tpec, and the command tpec: says what is missing before anything that needs it is imported."""

import contextlib
import importlib
import os
import sys
import threading

#: Bytes of the input that the disk may fetch while Python imports PyTorch, which takes seconds.
_FETCH = 4 << 30
#: What the command line needs beside Python.
_PACKAGES = ("numpy", "torch")
#: Options whose value is a file or a text, but not the input.
_OTHER_FILES = frozenset({"-o", "--output", "--calibration", "--report", "--include", "--exclude"})


def _fetch_inputs(arguments: list[str]) -> None:
    """Ask the system to read the beginning of the first model named on the command line (Linux)."""
    from .files.naming import is_model_name

    # What is wrong with the file is said later, in one sentence; not every system knows how much memory is free.
    with contextlib.suppress(OSError, ValueError):
        room = min(_FETCH, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
        for before, name in zip(["", *arguments], arguments, strict=False):
            if before not in _OTHER_FILES and is_model_name(name) and os.path.isfile(name):
                with open(name, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, room, os.POSIX_FADV_WILLNEED)
                return


def _missing_package() -> str:
    """A sentence about the first package that cannot be imported, or ''."""
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            what = "is not installed" if getattr(error, "name", None) == name else f"cannot be imported ({error})"
            return (f"The package {name} {what}: pip install {name}, or in a clone of the project pip install "
                    "\".[cli]\" for all that the command line needs.")
    return ""


def main() -> int:
    """Run the command line and return its exit code."""
    if "quantize" in sys.argv[1:2] and hasattr(os, "posix_fadvise"):
        with contextlib.suppress(RuntimeError):  # there are no threads or no memory left; it only helps
            threading.Thread(target=_fetch_inputs, args=(sys.argv[2:],), daemon=True).start()
    try:
        if missing := _missing_package():
            return _refuse(missing)
        from .command.cli import main as run
    except MemoryError:
        return _refuse("Memory ran out while the program was loaded: close other programs.")
    return run()


def _refuse(sentence: str) -> int:
    sys.stderr.write("tpec: " + " ".join(sentence.split()) + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
