"""Memory that runs out below a command: an allocation that fails, or an address space with an end; for `fault_matrix`.

The file is to be the same then, but for one thing: MKL, which multiplies and solves for PyTorch, works without its
buffer when it gets none, tells nobody, and adds in another order. A weight about half-way between two codes may get the
other one.
"""

import errno
import json
import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from .commands import imported_anew
from .injections import ANOTHER, DONE, FAULTY, Bench, Ended, Errand, Expected, inject, wrong_names
from .plan import Injection, Survey, ranked, ranks
from .shim import FOR_EVER, Fault

#: Smaller allocations are Python's own affairs, which nothing but the process's end can follow.
LEAST = 64 << 10
#: At most this share of a file's weights may be rounded to the neighbouring code.
_ROUNDED_OTHERWISE = 1e-3
_CODES = "F8_E4M3"
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
    return _judged(bench, errand, expected, inject(bench, poor(errand), expected, fault))


def _limit(errand: Errand, expected: Expected, room: int, bench: Bench) -> tuple[str, str]:
    return _judged(bench, errand, expected, inject(bench, poor(errand), expected, None, partial(_confine, room)))


def _judged(bench: Bench, errand: Errand, expected: Expected, found: tuple[str, str]) -> tuple[str, str]:
    """`found`, unless the file is another by sums in another order alone."""
    if found != (FAULTY, ANOTHER) or errand.product is None:
        return found
    product = bench.folder / errand.product
    made = product.read_bytes()
    wrong = wrong_names(bench, errand, expected, Ended(0, "", ""), None)
    bench.restore(errand)
    bench.run(errand.run)
    if wrong or not rounded_alike(made, product.read_bytes()):
        return FAULTY, wrong or ANOTHER
    return DONE, ""


def rounded_alike(one: bytes, other: bytes) -> bool:
    """Whether two safetensors files differ in few FP8 codes only, each by one step."""
    begin = 8 + int.from_bytes(one[:8], "little")
    if len(one) != len(other) or one[:begin] != other[:begin]:
        return False
    codes = np.zeros(len(one), bool)
    for name, entry in json.loads(one[8:begin]).items():
        if name != "__metadata__" and entry["dtype"] == _CODES:
            start, end = entry["data_offsets"]
            codes[begin + start:begin + end] = True
    steps = np.abs(np.frombuffer(one, np.uint8).astype(int) - np.frombuffer(other, np.uint8))
    return bool(steps.max() <= 1 and not steps[~codes].any() and steps.sum() <= _ROUNDED_OTHERWISE * codes.sum())


def _confine(room: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + room, taken + room))
