"""One run per output: a lock beside the working file that ends with the process holding it, however that ends.

Where the file system has no locks (some network folders) the lock file's existence is the lock. It names its owner, so
that one left by a dead process of the same machine does not count.
"""

import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import TpecError
from .replace import disk_errors, process_is_gone

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_BUSY = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK})
#: The locked byte lies behind the owner's name, which others read: on Windows a locked byte cannot be read.
_LOCKED_BYTE = 1 << 20


def lock_file(handle: int) -> bool | None:
    """Lock an open file for this handle; False when another holds it, None where the file system has no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _BUSY else None
    return True


class OutputLock:
    """The right to write one output, from `acquire` to the end of the with statement."""

    def __init__(self, path: Path, output: Path, lock: Callable[[int], bool | None] = lock_file) -> None:
        """`path` is the lock file, `output` what people call the result, `lock` the system's way to lock a file."""
        self._path, self._output, self._lock = path, output, lock
        self._handle: int | None = None
        self._watched: tuple[int, Path] | None = None
        self._followed: int | None = None

    def __enter__(self) -> "OutputLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether the output is this run's own: only then may its working file be removed."""
        return self._handle is not None

    def acquire(self) -> None:
        """Raises TpecError when another run, in this process or elsewhere, writes the output."""
        with disk_errors(self._output):
            while self._handle is None:
                self._handle = self._attempt()

    def watch(self, handle: int, working: Path) -> None:
        """Keep the working file, open as `handle`, open, so that it can be told from one that is put in its place.

        By the handle of who made or looked at it: its name may mean another one by now. Windows lets nobody replace an
        open file, not even its owner: there is nothing to watch there.
        """
        if sys.platform != "win32":
            before, self._watched = self._watched, (os.dup(handle), working)
            if before is not None:
                os.close(before[0])

    def identity(self) -> tuple[str, int] | None:
        """Of the watched file, for `follow` in other processes of the run; None where there is nothing to watch."""
        return None if self._watched is None else (socket.gethostname(), os.fstat(self._watched[0]).st_ino)

    def follow(self, identity: tuple[str, int] | None) -> None:
        """Confirm against the file that the process with the lock watches, where both are on one machine.

        Network folders may give a file another number on each machine.
        """
        if self._watched is None and identity is not None and identity[0] == socket.gethostname():
            self._followed = identity[1]

    def unchanged(self) -> bool:
        """Whether the working file's name still means the file that was watched."""
        return self._watched is None or _is_named(*self._watched)

    def confirm(self, handle: int | None = None) -> None:
        """Raises TpecError when another run replaced the working file all the same (locks that do not lock).

        handle: of the working file as it was opened again by its name, to be held against the one that is watched.
        """
        if self._watched is None:
            same = handle is None or self._followed in (None, os.fstat(handle).st_ino)
        elif handle is None:
            same = self.unchanged()
        else:
            same = os.path.samestat(os.fstat(self._watched[0]), os.fstat(handle))
        if not same:
            raise TpecError(f"{self._output} was not written: another run replaced the working file meanwhile; "
                            "run it again when that has ended.")

    def release(self) -> None:
        """Let others write; nothing happens when the lock is not held."""
        if self._watched is not None:
            watched, self._watched = self._watched, None
            with contextlib.suppress(OSError):
                os.close(watched[0])
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        # Windows removes no open file; elsewhere it must be gone before the next one can lock it.
        # What the system refuses here is no failure of the run: a lock file that stays is taken over by the next one.
        steps = (lambda: self._unlink_own(handle), lambda: os.close(handle))
        if sys.platform == "win32":
            steps = (lambda: os.close(handle), self._path.unlink)
        for step in steps:
            with contextlib.suppress(OSError):
                step()

    def _unlink_own(self, handle: int) -> None:
        if _is_named(handle, self._path):
            self._path.unlink()

    def _attempt(self) -> int | None:
        """A handle that holds the lock, None when the lock file went away meanwhile. Raises TpecError when held."""
        handle, fresh = _open(self._path)
        if handle is None:
            return None
        try:
            if self._holds(handle, fresh):
                _sign(handle)
                kept, handle = handle, None
                return kept
            return None
        except OSError:
            if fresh:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            raise
        finally:
            if handle is not None:
                os.close(handle)

    def _holds(self, handle: int, fresh: bool) -> bool:
        locked = self._lock(handle)
        if locked:
            # The holder before may have removed the file between our opening and locking it.
            return sys.platform == "win32" or _is_named(handle, self._path)
        if locked is None and fresh:
            return True
        owner = _owner(handle)
        if locked is None and _is_gone(owner):
            self._path.unlink(missing_ok=True)
            return False
        who = f" (process {owner['process']} on {owner['host']})" if owner else ""
        remedy = "" if locked is False else f"; if it is gone, delete {self._path.name}"
        raise TpecError(f"{self._output}: another run is writing this output{who}: wait until it ends, or choose "
                        f"another name{remedy}.")


def _open(path: Path) -> tuple[int | None, bool]:
    """A handle to the lock file and whether it is new; no handle when the file just went away."""
    binary = getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | binary, 0o644), True
    except FileExistsError:
        pass
    try:
        return os.open(path, os.O_RDWR | binary), False
    except FileNotFoundError:
        return None, False


def _is_named(handle: int, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _sign(handle: int) -> None:
    """Write who holds the lock. It is held without that, too: a full disk is for the result to complain about."""
    owner = {"process": os.getpid(), "host": socket.gethostname()}
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, json.dumps(owner).encode())


def _owner(handle: int) -> dict[str, object] | None:
    """What the lock's holder wrote; None when it has not yet."""
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        owner = json.loads(os.read(handle, 4096))
    except (OSError, ValueError):
        return None
    if not isinstance(owner, dict) or not isinstance(owner.get("process"), int) or "host" not in owner:
        return None
    return owner


def _is_gone(owner: dict[str, object] | None) -> bool:
    """Whether the owner was a process of this machine that runs no more."""
    return owner is not None and owner["host"] == socket.gethostname() and process_is_gone(int(str(owner["process"])))
