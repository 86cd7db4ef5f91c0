"""What a terminal gets: exit codes, one line for a failure, and a tqdm bar with the layer's name and the time left."""

import sys
import time

from ..errors import TpecError, one_line
from ..run.progress import Progress

#: Exit codes; wrong usage is argparse's 2.
DONE, FAILED, INTERRUPTED = 0, 1, 130
#: What a user gets one sentence about; anything else is a fault of this program.
FAILURES = (TpecError, OSError, RuntimeError, MemoryError)
#: Seconds between two changes of the bar.
_REFRESH = 0.2


def complain(message: str) -> None:
    """One line on stderr, whatever names the message holds."""
    print("tpec: " + one_line(message), file=sys.stderr)


class TerminalProgress:
    """A progress listener and a context; without tqdm, or when not `enabled`, it shows nothing."""

    def __init__(self, enabled: bool) -> None:
        self._bar = None
        self._shown = 0.0
        if enabled:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=100.0, unit="%", bar_format="{percentage:3.0f}%|{bar}| {elapsed} {postfix}",
                             dynamic_ncols=True)

    def __enter__(self) -> "TerminalProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, event: Progress) -> None:
        """Show how far the run is, at most every 0.2 seconds; the last event always."""
        now = time.monotonic()
        if self._bar is None or (now - self._shown < _REFRESH and event.done < event.total):
            return
        self._shown = now
        self._bar.n = 100.0 * event.done / event.total
        left = f"{event.eta:.0f} s left" if event.eta is not None else ""
        self._bar.set_postfix_str(", ".join(filter(None, (
            f"layer {event.index}/{event.count}", event.layer, event.message, left))), refresh=True)
