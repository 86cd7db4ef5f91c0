"""How a run stands, told to its listener and to its own threads: progress as events, and the end when it fails."""

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType

#: Seconds between looks at whether a run has stopped; so Ctrl-C gets through on Windows, too.
POLL = 0.2


class Stopped(Exception):
    """Ends a thread because the run failed elsewhere; never leaves the run."""


@contextmanager
def nothing_kept() -> Iterator[None]:
    """For functions that work with much memory: what they raise holds nothing of it, whoever keeps the exception.

    Its traceback leads to all frames that it came through, and they to the run's tensors.
    """
    try:
        yield
    except BaseException as error:
        _let_go(error)
        raise


def _let_go(error: BaseException) -> None:
    """Clear the ended frames of an exception and of its causes (`from None` hides them, but keeps them)."""
    cleared, waiting = set(), [error]
    while waiting:
        this = waiting.pop()
        cleared.add(id(this))
        for frame, _ in traceback.walk_tb(this.__traceback__):
            _clear(frame)
        waiting += [other for other in (this.__cause__, this.__context__)
                    if other is not None and id(other) not in cleared]


def _clear(frame: FrameType | None) -> None:
    """And those that called it: where an exception was caught and raised elsewhere its traceback leaves them out."""
    while frame is not None:
        try:
            frame.clear()
        except RuntimeError:  # it still runs, and so do all that called it
            return
        frame = frame.f_back


class Halt:
    """One for all threads of a run, in whatever lane."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Stop the run for `error`, unless something else has stopped it before."""
        with self._lock:
            if self._error is None and not isinstance(error, Stopped):
                self._error = error
        self._event.set()

    def is_set(self) -> bool:
        """Whether the run has failed."""
        return self._event.is_set()

    def check(self) -> None:
        """Raises Stopped when the run has failed."""
        if self._event.is_set():
            raise Stopped

    def raise_first(self) -> None:
        """Raises what failed first, if anything did, and forgets it; for when all stages have ended.

        Its traceback leads to their frames, and they back here: with the circle broken a failed run's memory does not
        wait for the garbage collector.
        """
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error

    def guard(self, stage: Callable[[], None]) -> None:
        """Run `stage`; an exception that it raises stops the run."""
        try:
            stage()
        except BaseException as error:  # noqa: BLE001 - raised by `raise_first`, in the caller's thread
            self.fail(error)

    def run(self, first: Callable[[], None], *others: Callable[[], None]) -> None:
        """Run all stages at once, `first` in this thread, until every one has ended; never raises what they do."""
        threads = [threading.Thread(target=self.guard, args=(stage,), daemon=True) for stage in others]
        # No function of its own in here: a frame that is cleared keeps its function, and that what it closes over.
        self.guard(partial(_begin, threads, first))
        for thread in threads:
            while thread.is_alive():
                self.guard(partial(thread.join, POLL))


def _begin(threads: Sequence[threading.Thread], first: Callable[[], None]) -> None:
    for thread in threads:
        thread.start()
    first()


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

    `total` and `done` are units of work (Task.cost), `count` and `index` quantized layers; `done` and `index` are what
    an earlier run has finished. `report` is called from any thread, by one at a time. Once `halt` is set every method
    raises Stopped.
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
        self._begun = self._reported = time.monotonic()
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
        if time.monotonic() - self._reported > _WITHIN:
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
            self._reported = time.monotonic()
            return Progress(self._done, self._total, self._layer, self._index, self._count, self._message,
                            self._eta())

    def _eta(self) -> float | None:
        own = self._done - self._resumed
        elapsed = time.monotonic() - self._begun
        if own <= 0 or elapsed < 1:
            return None
        return (self._total - self._done) * elapsed / own
