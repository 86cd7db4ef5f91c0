"""The errors that each kind of call to the system can meet, and a process's end at it; for `fault_matrix`."""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from .errands import kinds_of
from .injections import FAULTY, REFUSED, Bench, Errand, Expected, inject
from .plan import Injection, Survey, ranked
from .shim import FOR_EVER, KILL, KILL_AFTER, SHORT, Fault

#: The errors of each kind of call; those in _PASSING come and go, and must not be noticed.
ERRORS = {
    "open": ("EACCES", "EIO", "ESTALE", "EMFILE", "EROFS", "ENOSPC", "EINTR"),
    "read": ("EIO", "ESTALE", "EINTR", "short"),
    "stat": ("EIO", "EACCES", "ESTALE"),
    "list": ("EIO", "EACCES"),
    "close": ("EIO", "ENOSPC", "EDQUOT"),
    "advise": ("EIO", "EINVAL"),
    "map": ("EIO", "ENOMEM"),
    "write": ("ENOSPC", "EDQUOT", "EIO", "EFBIG", "ESTALE", "EROFS", "EINTR", "short"),
    "copy": ("ENOSPC", "EIO", "EINTR", "short"),
    "sync": ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EINTR"),
    "truncate": ("ENOSPC", "EFBIG", "EIO", "EINTR"),
    "rename": ("EACCES", "EIO", "EROFS", "ENOSPC", "ESTALE"),
    "link": ("EPERM", "EIO", "EMLINK", "EROFS"),
    "unlink": ("EACCES", "EIO", "EROFS"),
    "lock": ("ENOLCK", "EIO", "ESTALE", "EINTR"),
    "mkdir": ("EACCES", "ENOSPC"),
}
_KILLS = {"killed before": KILL, "killed after": KILL_AFTER}
_PASSING = ("EINTR", "short")
#: Calls that only help: their failing must not be noticed either.
_HINTS = ("advise",)


def failures(errand: Errand, survey: Survey, most: int, kinds: Sequence[str]) -> Iterator[Injection]:
    """Every error at calls of `kinds`, those that the errand can have: at most `most` of each."""
    for kind in filter(kinds_of(errand).__contains__, kinds):
        calls = survey.calls[kind]
        for nth, rank in ranked(calls, most):
            for column, fault in _faults_of(kind, nth):
                where = f"at call {nth} of {calls}" + ("" if fault.times else " and all after it")
                yield Injection(errand, kind, column, where, rank,
                                partial(_fail, errand, survey.expected, fault, column))


def _faults_of(kind: str, nth: int) -> Iterator[tuple[str, Fault]]:
    """What is done to one call, by column."""
    for name in ERRORS[kind]:
        action = SHORT if name == "short" else getattr(errno, name)
        for times in (1,) if name == "EINTR" else (1, FOR_EVER):
            yield name, Fault(kind, action, nth, times)
    if kind not in ("map", "advise"):
        for name, action in _KILLS.items():
            yield name, Fault(kind, action, nth)


def _fail(errand: Errand, expected: Expected, fault: Fault, column: str, bench: Bench) -> tuple[str, str]:
    found = inject(bench, errand, expected, replace(fault, path=str(bench.folder)))
    if found[0] == REFUSED and _must_pass(fault.kind, column):
        return FAULTY, f"refused: {found[1]}"
    return found


def _must_pass(kind: str, column: str) -> bool:
    """Whether the run has to succeed all the same. Python itself repeats calls that a signal broke off."""
    repeated = ("open", "read", "write", "copy", "sync", "truncate", "lock")
    return kind in _HINTS and column not in _KILLS or column in _PASSING and kind in repeated
