"""Give a finished file its name in one step, so that nothing half-written is ever seen under that name."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import TpecError, system_fault

#: Errors that say that nothing has the name; EINVAL is Windows' for one that cannot be, such as a pattern.
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR} | ({errno.EINVAL} if os.name == "nt" else set())


class NameTaken(TpecError):
    """A file of this name exists, and it was not to be replaced."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists already: choose another name or allow overwriting.")


@contextlib.contextmanager
def replacing(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Yield a name beside `path` for the body to write; afterwards that file is made durable and becomes `path`.

    An error or interrupt removes it; what a process that was killed has left of this name is removed as well. Raises
    TpecError for what the disk refuses, and NameTaken where `overwrite` is not set and `path` is taken, also by
    somebody who was faster.
    """
    part = _part_of(path)
    _remove_orphans(path)
    try:
        with disk_errors(path):
            yield part
            put_in_place(part, path, overwrite)
    finally:
        with contextlib.suppress(OSError):  # gone after the replacement; never there for an impossible name
            part.unlink()


def _machine() -> str:
    """A few characters that other machines, which may share the folder, have not."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


def _remove_orphans(path: Path) -> None:
    """Remove the files that killed processes of this machine were making for `path`."""
    name = re.compile(rf"{re.escape(f'{path.name}.{_machine()}')}\.(\d{{1,10}})\.[0-9a-f]{{6}}\.part")
    with contextlib.suppress(OSError):
        for found in filter(None, map(name.fullmatch, os.listdir(path.parent))):
            if process_is_gone(int(found[1])):
                path.with_name(found[0]).unlink(missing_ok=True)


def process_is_gone(number: int) -> bool:
    """Whether no process of this machine has that number. Never so on Windows, where to ask kills."""
    if sys.platform == "win32":
        return False
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) or replace one, in one step. Raises TpecError for what the disk refuses."""
    with replacing(path) as part:
        part.write_text(text, "utf-8")


def refuse_unwritable(path: Path) -> None:
    """Raises TpecError where `replacing` could not write `path`: tried, with an empty file that is removed again."""
    part = _part_of(path)
    with disk_errors(path):
        try:
            part.touch(exist_ok=False)
        except OSError:
            with contextlib.suppress(OSError):  # never there, unless it could be made but not closed
                part.unlink()
            raise
        part.unlink()


def _part_of(path: Path) -> Path:
    """A name of nobody else's beside `path`."""
    return path.with_name(f"{path.name}.{_machine()}.{os.getpid()}.{secrets.token_hex(3)}.part")


def put_in_place(part: Path, path: Path, overwrite: bool, confirm: Callable[[], None] | None = None) -> None:
    """Sync `part` and rename it to `path`. Raises OSError, and NameTaken as `replacing` does.

    `confirm` raises when `part` is no longer the file it should be. It is asked last: to sync takes its time.
    """
    _sync_file(part)
    if confirm is not None:
        confirm()
    if overwrite:
        os.replace(part, path)
        with contextlib.suppress(OSError):
            part.unlink()  # still there where both were names of one file
    else:
        try:
            _rename_to_free(part, path)
        except FileExistsError:
            raise NameTaken(path) from None
    _sync_folder(path.parent)


def _rename_to_free(part: Path, path: Path) -> None:
    """As os.rename, but a name that is taken is refused by the system itself: nobody can come between."""
    if os.name == "nt":
        os.rename(part, path)
        return
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(part, path)
    else:
        with contextlib.suppress(OSError):  # the file has its name; a second one does no harm
            os.unlink(part)


def _sync_file(path: Path) -> None:
    # Windows syncs only what is open for writing.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system can (not on Windows, nor on every network's disk).

    It has been made, so that a failure here must not be called one of writing.
    """
    if os.name == "posix":
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def refuse_dead_link(path: Path) -> None:
    """Raises TpecError when `path` is a link to nothing: whether it or its target is meant cannot be known."""
    if path.is_symlink() and not exists(path, "written"):
        raise TpecError(f"{path} is a link that points nowhere (to {os.readlink(path)}): remove it, or name the file "
                        "it should point to.")


def mode_of(path: Path | str, done: str = "read") -> int:
    """Kind and permissions (`st_mode`) of what `path` names, links followed; 0 where nothing has that name.

    Raises TpecError, which says that it cannot be `done`, where the system does not tell: what os.path has for this
    says "no" of a disk that fails and of a folder that is locked, and so does pathlib in some versions of Python.
    """
    try:
        return os.stat(path).st_mode
    except ValueError:  # no name for any file, such as one with a zero
        return 0
    except OSError as error:
        if error.errno in _NOT_THERE:
            return 0
        raise TpecError(disk_fault(error, Path(path), done)) from None


def exists(path: Path | str, done: str = "read") -> bool:
    """Whether anything has that name; errors as of `mode_of`."""
    return mode_of(path, done) != 0


def is_file(path: Path | str, done: str = "read") -> bool:
    """Whether it is a file on a disk, not a pipe or the like; errors as of `mode_of`."""
    return stat.S_ISREG(mode_of(path, done))


def is_folder(path: Path | str, done: str = "read") -> bool:
    """Whether it is a folder; errors as of `mode_of`."""
    return stat.S_ISDIR(mode_of(path, done))


@contextlib.contextmanager
def disk_errors(path: Path, done: str = "written") -> Iterator[None]:
    """Turn what the disk refuses within the body into one sentence about `path`, which was to be `done`."""
    try:
        yield
    except OSError as error:
        raise TpecError(disk_fault(error, path, done)) from None


def disk_fault(error: OSError, path: Path, done: str = "written") -> str:
    """The sentence for what kept `path` from being written, or `done` whatever else."""
    if done == "written" and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return (f"The disk of {path.parent} is full: make room or choose another folder; nothing was written as "
                f"{path.name}.")
    if done == "written" and error.errno == errno.EFBIG:
        return (f"The disk of {path.parent} takes no file of the size of {path.name} (FAT32 ends at 4 GB): "
                "choose a folder on another disk.")
    return f"{path} cannot be {done}: {system_fault(error)}."
