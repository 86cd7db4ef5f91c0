"""What an errand does undisturbed: its result, and its calls to the system by kind; for `fault_matrix`."""

import time
from collections.abc import Sequence

from .disturbances import CHANGES, sound_results
from .errands import disturbed, kinds_of
from .injections import Bench, Errand, count, undisturbed
from .plan import Survey
from .scarcity import LEAST

_READING = ("open", "read")


def survey(errand: Errand, kinds: Sequence[str], whole: bool, bench: Bench) -> Survey:
    """Count calls of `kinds`; if `whole` also allocations, and what a change of the source can give.

    Raises SystemExit when the errand fails by itself.
    """
    begun = time.monotonic()
    expected = undisturbed(bench, errand)
    seconds = time.monotonic() - begun
    folder, source = str(bench.folder), str(bench.folder / errand.source)
    calls = {kind: count(bench, errand, kind, folder) for kind in kinds if kind in kinds_of(errand)}
    if not whole:
        return Survey(expected, seconds, calls, {}, 0, {})
    allocations = count(bench, errand, "memory", str(LEAST))
    if not disturbed(errand):
        return Survey(expected, seconds, calls, {}, allocations, {})
    of_source = {kind: count(bench, errand, kind, source) for kind in _READING}
    changed = {change.__name__: sound_results(bench, errand, expected, change) for change in CHANGES}
    return Survey(expected, seconds, calls, of_source, allocations, changed)
