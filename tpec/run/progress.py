"""Progress as events, so that the same run can feed a terminal, a ComfyUI node or nothing."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .halt import Halt


@dataclass(frozen=True)
class Progress:
    """`done` of `total` work units; layer `index` of `count` (quantized layers only) and a line for people.

    `eta` is seconds left, judged by this run's own work (a resumed run does not count what an earlier one did);
    None until there is something to judge by.
    """

    done: float
    total: float
    layer: str
    index: int
    count: int
    message: str
    eta: float | None = None


OnProgress = Callable[[Progress], None]

#: Seconds between reports from within layers: blocks of columns are done faster than anyone looks.
_WITHIN = 0.02


class Meter:
    """Adds up the work of all lanes and reports it, never backwards; `report` may raise to stop the run.

    `total` and `done` are units of work, `count` and `index` quantized layers; `done` and `index` are what an earlier
    run has finished. Once `halt` is set every method raises Stopped.
    """

    def __init__(self, total: float, count: int, done: float, index: int, report: OnProgress | None,
                 halt: Halt | None = None) -> None:
        self._total, self._count = total, count
        self._done = self._resumed = done
        self._index = index
        self._report = report
        self._halt = halt or Halt()
        self._lock = threading.Lock()
        #: Held while the listener runs, so that it gets events in their order and one at a time.
        self._reporting = threading.Lock()
        self._begun = self._told = time.monotonic()
        self._layer = self._message = ""

    def begin(self, layer: str) -> None:
        """A lane starts on a layer."""
        with self._lock:
            self._layer = layer
        self._tell()

    def advance(self, cost: float, layer: bool, message: str = "") -> None:
        """A lane has finished work; `layer` when that was a quantized layer."""
        with self._lock:
            self._done += cost
            self._index += layer
            self._message = message or self._message
        self._tell()

    def tick(self) -> None:
        """Called within layers, as often as one likes: the listener may show something or stop the run."""
        self._halt.check()
        if time.monotonic() - self._told > _WITHIN:
            self._tell(wait=False)

    def _tell(self, wait: bool = True) -> None:
        """Report how things stand; without `wait` only if no other thread does so at this moment."""
        self._halt.check()
        if self._report is None or not self._reporting.acquire(blocking=wait):
            return
        try:
            # Another thread's report may have ended the run meanwhile.
            self._halt.check()
            self._report(self._event())
        except BaseException as error:
            self._halt.fail(error)
            raise
        finally:
            self._reporting.release()

    def _event(self) -> Progress:
        with self._lock:
            self._told = time.monotonic()
            return Progress(self._done, self._total, self._layer, self._index, self._count, self._message,
                            self._eta())

    def _eta(self) -> float | None:
        own = self._done - self._resumed
        elapsed = time.monotonic() - self._begun
        if own <= 0 or elapsed < 1:
            return None
        return (self._total - self._done) * elapsed / own
