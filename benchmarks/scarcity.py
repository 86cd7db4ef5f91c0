"""Memory that runs out below a command: an allocation that fails, or an address space with an end; for `fault_matrix`.
"""

import errno
import os
import resource
from functools import partial

from .disturbances import Note
from .injections import Bench, Errand, Expected, count, inject, positions
from .shim import FOR_EVER, Fault

#: Smaller allocations are Python's own affairs, which nothing but the process's end can follow.
_LEAST = 64 << 10
#: Bytes of address space that a run gets beside what Python and PyTorch have taken.
_ROOM = tuple(mib << 20 for mib in (0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256))


def starve(bench: Bench, errand: Errand, expected: Expected, note: Note, most: int) -> None:
    """Fail the errand's larger allocations one by one, and run it in address spaces that are too small."""
    calls = count(bench, errand, "memory", str(_LEAST))
    for nth in positions(calls, most):
        for times in (1, FOR_EVER):
            found = inject(bench, errand, expected, Fault("memory", errno.ENOMEM, nth, times, str(_LEAST)))
            note(errand, "allocation", "ENOMEM", f"at allocation {nth} of {calls}, {times or 'all'}", found)
    for room in _ROOM:
        found = inject(bench, errand, expected, None, partial(_confine, room))
        note(errand, "address space", "limited", f"{room >> 20} MiB more than at the start", found)


def _confine(room: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + room, taken + room))
