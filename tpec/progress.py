"""Progress as events, so that the same run can feed a terminal, a ComfyUI node or nothing."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


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
    """Adds up the work of all lanes and reports it; `report` may raise to stop the run."""

    def __init__(self, total: float, count: int, done: float, index: int, report: OnProgress | None) -> None:
        self._total, self._count = total, count
        self._done = self._resumed = done
        self._index = index
        self._report = report
        self._lock = threading.Lock()
        self._begun = self._told = time.monotonic()
        self._layer = self._message = ""
        self._error: BaseException | None = None

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
        """Called within layers, as often as one likes: the listener may show something or stop the run.

        It stops it by an exception, which every lane gets.
        """
        if self._error is not None or time.monotonic() - self._told > _WITHIN:
            self._tell()

    def _tell(self) -> None:
        if self._error is not None:
            raise self._error
        if self._report is None:
            return
        with self._lock:
            self._told = time.monotonic()
            event = Progress(self._done, self._total, self._layer, self._index, self._count, self._message,
                             self._eta())
        try:
            self._report(event)
        except BaseException as error:
            self.stop(error)
            raise

    def stop(self, error: BaseException) -> None:
        """What ended one thread's work ends the others' within a moment: from now on every tick raises `error`."""
        with self._lock:
            self._error = self._error or error

    def _eta(self) -> float | None:
        own = self._done - self._resumed
        elapsed = time.monotonic() - self._begun
        if own <= 0 or elapsed < 1:
            return None
        return (self._total - self._done) * elapsed / own
