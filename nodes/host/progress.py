"""The engine's progress on a ComfyUI node: bar, text and interrupt."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import comfy.model_management as memory
import comfy.utils
from server import PromptServer

if TYPE_CHECKING:
    from ...tpec.run.progress import Progress

_TEXT_SECONDS = 0.25
_STEPS = 1000
#: The share of the work from which on the time left means something: the first layers are the smallest.
_TELLING = 0.05


class NodeProgress:
    """The engine's progress callback: moves the node's bar, writes below it, stops when the user asks."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._bar = comfy.utils.ProgressBar(_STEPS, node_id=node_id)
        self._written = 0.0

    def __call__(self, event: "Progress") -> None:
        """Raises ComfyUI's interrupt exception when the user cancelled."""
        memory.throw_exception_if_processing_interrupted()
        part = event.done / event.total if event.total else 1.0
        self._bar.update_absolute(round(_STEPS * part), _STEPS)
        self.text(f"{event.index} of {event.count} layers{time_left(event.eta, part)}\n{event.layer}")

    def counted(self, what: str) -> Callable[[int, int], None]:
        """A callback that shows how many of something are done."""
        return lambda done, count: self.text(f"{what} {done + 1} of {count}")

    def part(self, done: int, total: int, message: str) -> None:
        """For work that is counted in whole pieces."""
        self._bar.update_absolute(round(_STEPS * done / total), _STEPS)
        self.text(message)

    def text(self, message: str, always: bool = False) -> None:
        """Show a line on the node, at most four times a second; web/tpec.js puts it where the result will stand."""
        now = time.monotonic()
        if always or now - self._written >= _TEXT_SECONDS:
            self._written = now
            server = PromptServer.instance
            server.send_sync("tpec.text", {"node": self._node_id, "text": message}, server.client_id)


def time_left(seconds: float | None, part: float) -> str:
    """What is said behind a count of work of which `part` (0 .. 1) is done; '' where nobody can know yet."""
    return "" if seconds is None or part < _TELLING else f", about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """For people: seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
