"""Memory that runs out below a command: an allocation that fails, or an address space with an end; for `fault_matrix`.
"""

import errno
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from .commands import imported_anew
from .injections import Bench, Errand, Expected, inject
from .plan import Injection, Survey, ranked, ranks
from .shim import FOR_EVER, Fault

#: Smaller allocations are Python's own affairs, which nothing but the process's end can follow.
LEAST = 64 << 10
#: Bytes of address space that a run gets beside what Python and PyTorch have taken.
_ROOM = tuple(mib << 20 for mib in (0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256))


def shortages(errand: Errand, survey: Survey, most: int) -> Iterator[Injection]:
    """Fail the errand's larger allocations one by one, and run it in address spaces that are too small."""
    calls, expected = survey.allocations, survey.expected
    for nth, rank in ranked(calls, most):
        for times in (1, FOR_EVER):
            fault = Fault("memory", errno.ENOMEM, nth, times, str(LEAST))
            yield Injection(errand, "allocation", "ENOMEM", f"at allocation {nth} of {calls}, {times or 'all'}", rank,
                            partial(_fail, errand, expected, fault))
    for room, rank in zip(_ROOM, ranks(len(_ROOM)), strict=True):
        yield Injection(errand, "address space", "limited", f"{room >> 20} MiB more than at the start", rank,
                        partial(_limit, errand, expected, room))


def poor(errand: Errand) -> Errand:
    """The errand as one that may run out of memory while the command line is imported."""
    return replace(errand, run=imported_anew(errand.run))


def _fail(errand: Errand, expected: Expected, fault: Fault, bench: Bench) -> tuple[str, str]:
    return inject(bench, poor(errand), expected, fault)


def _limit(errand: Errand, expected: Expected, room: int, bench: Bench) -> tuple[str, str]:
    return inject(bench, poor(errand), expected, None, partial(_confine, room))


def _confine(room: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + room, taken + room))
