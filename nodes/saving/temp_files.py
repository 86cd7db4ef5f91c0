"""Files of ComfyUI's temp folder that go once nobody wants them any more: a server runs for weeks."""

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from .save_once import State, file_state

Handle = TypeVar("Handle")


class TempFile:
    """A finished file, which is there for as long as anyone holds this object; make it with `hold`.

    Under other names, as those of hard links, the file stays. Windows keeps what somebody has open; ComfyUI empties its
    temp folder when it starts and ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.state: State | None = None
        weakref.finalize(self, _remove, path).atexit = False

    @property
    def intact(self) -> bool:
        """Whether the file is there as it was when it was held last."""
        return self.state is not None and file_state(self._path) == self.state


_held: weakref.WeakValueDictionary[Path, TempFile] = weakref.WeakValueDictionary()


def hold(path: Path) -> TempFile:
    """The object of the file `path`, as it is now: one for all, also when the file was made again meanwhile."""
    file = _held.get(path)
    if file is None:
        file = _held[path] = TempFile(path)
    file.state = file_state(path)
    return file


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def keep_with(owner: object, file: TempFile) -> None:
    """Hold `file` for as long as `owner` lives, which may read from it."""
    _kept_with[owner] = file


_kept_with: weakref.WeakKeyDictionary[object, TempFile] = weakref.WeakKeyDictionary()


class Latest(Generic[Handle]):
    """The last few handles by what they were made of; `file_of` says which file a handle needs."""

    def __init__(self, most: int, file_of: Callable[[Handle], TempFile | None]) -> None:
        self._most, self._file_of = most, file_of
        self._handles: OrderedDict[str, Handle] = OrderedDict()

    def get(self, key: str) -> Handle | None:
        """The handle of this key if it is among them and its file is intact."""
        handle = self._handles.get(key)
        file = None if handle is None else self._file_of(handle)
        if file is None or not file.intact:
            return None
        self._handles.move_to_end(key)
        return handle

    def put(self, key: str, handle: Handle) -> None:
        """Keep this one, and let the one go that was not asked for longest."""
        self._handles[key] = handle
        self._handles.move_to_end(key)
        while len(self._handles) > self._most:
            self._handles.popitem(last=False)
