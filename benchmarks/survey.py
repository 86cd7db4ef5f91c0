"""What an errand does undisturbed: its result, and its calls to the system by kind; for `fault_matrix`."""

import time
from collections.abc import Sequence

from .disturbances import CHANGES, sound_results
from .errands import disturbed, kinds_of
from .injections import Bench, Errand, allocations, counts, undisturbed
from .plan import Survey
from .scarcity import LEAST, poor

_READING = ("open", "read")


def survey(errand: Errand, kinds: Sequence[str], whole: bool, bench: Bench) -> Survey:
    """Count calls of `kinds`; if `whole` also allocations, and what a change of the source can give.

    Raises SystemExit when the errand fails by itself.
    """
    begun = time.monotonic()
    expected = undisturbed(bench, errand)
    seconds = time.monotonic() - begun
    folder, source = str(bench.folder), str(bench.folder / errand.source)
    calls = counts(bench, errand, [kind for kind in kinds if kind in kinds_of(errand)], folder)
    if not whole:
        return Survey(expected, seconds, calls, {}, 0, {})
    large = allocations(bench, poor(errand), LEAST)
    if not disturbed(errand):
        return Survey(expected, seconds, calls, {}, large, {})
    of_source = counts(bench, errand, _READING, source)
    changed = {change.__name__: sound_results(bench, errand, expected, change) for change in CHANGES}
    return Survey(expected, seconds, calls, of_source, large, changed)
