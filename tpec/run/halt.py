"""The end of a run that fails: what failed first is kept, and every thread of the run sees that it must stop."""

import threading
from collections.abc import Callable
from functools import partial

#: Seconds between looks at whether a run has stopped; so Ctrl-C gets through on Windows, too.
POLL = 0.2


class Stopped(Exception):
    """Ends a thread because the run failed elsewhere; never leaves the run."""


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
        """Raises what failed first, if anything did."""
        if self._error is not None:
            raise self._error

    def guard(self, stage: Callable[[], None]) -> None:
        """Run `stage`; an exception that it raises stops the run."""
        try:
            stage()
        except BaseException as error:  # noqa: BLE001 - raised by `raise_first`, in the caller's thread
            self.fail(error)

    def run(self, first: Callable[[], None], *others: Callable[[], None]) -> None:
        """Run all stages at once, `first` in this thread, until every one has ended; never raises what they do."""
        threads = [threading.Thread(target=self.guard, args=(stage,), daemon=True) for stage in others]

        def begin() -> None:
            for thread in threads:
                thread.start()
            first()

        self.guard(begin)
        for thread in threads:
            while thread.is_alive():
                self.guard(partial(thread.join, POLL))
