"""What the save nodes saved last, so that a file is written once, and again when somebody deleted or changed it."""

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: A save node's id and its widgets' values.
Choice = tuple[str, ...]
State = tuple[int, int]


@dataclass(frozen=True)
class _Saved:
    """The file, its state then, what it holds, and how often it had gone before."""

    path: Path
    state: State | None
    content: str
    turn: int

    @property
    def intact(self) -> bool:
        return self.state is not None and file_state(self.path) == self.state


#: The last so many choices, that of the last prompt at the end; more than ComfyUI keeps results of.
_saved: OrderedDict[Choice, _Saved] = OrderedDict()
_MOST = 1000


def file_state(path: Path) -> State | None:
    """Size and modification time (ns), None when there is no such file."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def fingerprint(*choice: str) -> str:
    """Unchanged while the saved file stands as it was saved; new once it was deleted or changed."""
    return "|".join(map(str, [*choice, _turn(choice)]))


def _turn(choice: Choice) -> int:
    last = _saved.get(choice)
    return 0 if last is None else last.turn if last.intact else last.turn + 1


def stands(choice: Choice) -> bool:
    """Whether a file was saved for this choice and is still as it was."""
    last = _saved.get(choice)
    return last is not None and last.intact


def save_once(choice: Choice, content: str, save: Callable[[], Path]) -> Path:
    """Where `content` was saved for this choice and still is, else what `save()` returns."""
    last = _saved.get(choice)
    if not (last and last.intact and last.content == content):
        turn = _turn(choice)
        path = save()
        _saved[choice] = last = _Saved(path, file_state(path), content, turn)
    _saved.move_to_end(choice)
    if len(_saved) > _MOST:
        _saved.popitem(last=False)
    return last.path
