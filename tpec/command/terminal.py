"""Progress for a terminal: a tqdm bar with the layer's name and the time left."""

import time

from ..run.progress import Progress

_REFRESH = 0.2


class TerminalProgress:
    """A progress listener; without tqdm, or when not enabled, it shows nothing."""

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
        now = time.monotonic()
        if self._bar is None or (now - self._shown < _REFRESH and event.done < event.total):
            return
        self._shown = now
        self._bar.n = 100.0 * event.done / event.total
        left = f"{event.eta:.0f} s left" if event.eta is not None else ""
        self._bar.set_postfix_str(", ".join(filter(None, (
            f"layer {event.index}/{event.count}", event.layer, event.message, left))), refresh=True)
