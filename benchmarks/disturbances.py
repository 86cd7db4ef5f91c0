"""Files that others change while a run stands still at one of its calls; for `fault_matrix`."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from tpec.files.partial import partial_path

from .errands import OUTPUT, disturbed
from .injections import (
    DONE,
    FAULTY,
    REFUSED,
    Bench,
    Ended,
    Errand,
    Expected,
    digest,
    run_again,
    wrong_end,
    wrong_names,
    wrong_product,
)
from .plan import Injection, Survey, ranked
from .shim import STOP, Fault

#: Between the last look at the working file and the call that names it nobody can notice anything.
_NAMING = ("rename", "link")
_OTHERS = b"somebody else's"


def truncated(path: Path) -> None:
    """Cut off its second half."""
    os.truncate(path, path.stat().st_size // 2)


def replaced(path: Path) -> None:
    """Another file of the same size and header under its name."""
    other = path.parent.with_name("other.safetensors")
    shutil.copyfile(path, other)
    rewritten(other)
    os.replace(other, path)


def rewritten(path: Path) -> None:
    """Other data in the same file: its last half becomes other sound weights."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(size // 2 & ~1)
        file.write(b"\x10\x3c" * (size // 4))


#: By name, in the order of the table.
CHANGES = (truncated, replaced, rewritten)


def sound_results(bench: Bench, errand: Errand, expected: Expected, change: Callable[[Path], None]) -> frozenset[str]:
    """Digests of what may come of it: the model as it was, or as it is when it was changed before it was opened."""
    bench.restore(errand)
    change(bench.folder / errand.source)
    # One that was cut off is refused.
    changed = "" if bench.run(errand.run).code else digest(bench.folder / OUTPUT)
    return frozenset({expected.after, changed} - {""})


def disturbances(errand: Errand, survey: Survey, most: int) -> Iterator[Injection]:
    """Change what an errand that quantizes reads, at each of its reads, and what it writes, at each of its writes."""
    if not disturbed(errand):
        return
    for change in CHANGES:
        for kind, calls in survey.of_source.items():
            for nth, rank in ranked(calls, most):
                yield Injection(errand, "source", f"{change.__name__} meanwhile", f"at {kind} {nth} of {calls}", rank,
                                partial(_change_source, errand, survey, change, Fault(kind, STOP, nth)))
    for title, check in (("name taken by another", _name_taken), ("working file replaced", _working_file_replaced),
                         ("second run to the same output", _second_run)):
        for kind in ("write", "sync", *_NAMING) if check is not _working_file_replaced else ("write", "sync"):
            calls = survey.calls[kind]
            for nth, rank in ranked(calls, most):
                yield Injection(errand, "output", title, f"at {kind} {nth} of {calls}", rank,
                                partial(_at_call, check, errand, survey.expected, Fault(kind, STOP, nth)))


def _at_call(check: Callable[[Bench, Errand, Expected, Fault], tuple[str, str]], errand: Errand, expected: Expected,
             fault: Fault, bench: Bench) -> tuple[str, str]:
    return check(bench, errand, expected, replace(fault, path=str(bench.folder)))


def _change_source(errand: Errand, survey: Survey, change: Callable[[Path], None], fault: Fault,
                   bench: Bench) -> tuple[str, str]:
    source = bench.folder / errand.source
    fault = replace(fault, path=str(source))
    bench.restore(errand)
    ended = bench.run(errand.run, fault, meanwhile=lambda: change(source))
    found = _judged(bench, errand, survey.expected, ended, fault, survey.changed[change.__name__])
    if found[0] != REFUSED:
        return found
    source.unlink()
    shutil.copy2(errand.files / errand.source, source)
    return run_again(bench, errand, survey.expected, ended)


def _judged(bench: Bench, errand: Errand, expected: Expected, ended: Ended, fault: Fault,
            good: frozenset[str]) -> tuple[str, str]:
    """As `injections.inject` judges, but any of the files `good` will do."""
    wrong = wrong_end(ended, fault) or wrong_names(bench, errand, expected, ended, fault)
    if not wrong and ended.code == 0:
        wrong = "" if digest(bench.folder / OUTPUT) in good else "done, but the file is neither the one nor the other"
    wrong = wrong or (wrong_product(bench, errand, expected, ended) if ended.code else "")
    return (FAULTY, wrong) if wrong else (REFUSED, ended.stderr.strip()) if ended.code else (DONE, "")


def _name_taken(bench: Bench, errand: Errand, expected: Expected, fault: Fault) -> tuple[str, str]:
    """Somebody else's file appears under the output's name. It stays, unless it was to be replaced."""
    output = bench.folder / OUTPUT
    bench.restore(errand)
    ended = bench.run(errand.run, fault, meanwhile=lambda: _put(output))
    wrong = wrong_end(ended, fault)
    if not wrong and ended.code == 0:
        # Taken after the run had given its file that name, or to be replaced.
        wrong = "" if output.read_bytes() == _OTHERS or digest(output) == expected.after else "the file is broken"
    elif not wrong and output.read_bytes() != _OTHERS:
        wrong = f"refused, but the other's file is gone: {ended.stderr}"
    if wrong or ended.code == 0:
        return (FAULTY, wrong) if wrong else (DONE, "")
    output.unlink()
    if (errand.files / OUTPUT).exists():
        shutil.copy2(errand.files / OUTPUT, output)
    wrong = wrong_names(bench, errand, expected, ended, fault)
    return (FAULTY, wrong) if wrong else run_again(bench, errand, expected, ended)


def _put(path: Path) -> None:
    other = path.parent.with_name("other")
    other.write_bytes(_OTHERS)
    os.replace(other, path)


def _working_file_replaced(bench: Bench, errand: Errand, expected: Expected, fault: Fault) -> tuple[str, str]:
    """Another file takes the working file's name: it never becomes the output, and is not this run's to remove."""
    working = partial_path(bench.folder / OUTPUT)

    def replace() -> None:
        if working.exists():
            _put(working)

    bench.restore(errand)
    ended = bench.run(errand.run, fault, meanwhile=replace)
    wrong = wrong_end(ended, fault) or wrong_product(bench, errand, expected, ended)
    if wrong or ended.code == 0:
        return (FAULTY, wrong) if wrong else (DONE, "")
    for path in bench.folder.glob(f"{working.name}*"):
        path.unlink()
    return run_again(bench, errand, expected, ended)


def _second_run(bench: Bench, errand: Errand, expected: Expected, fault: Fault) -> tuple[str, str]:
    """A second run, which is to be refused in one sentence, and the first to end as if there had been none."""
    second: list[Ended] = []
    bench.restore(errand)
    ended = bench.run(errand.run, fault, meanwhile=lambda: second.append(bench.run(errand.again, beside=True)))
    wrong = wrong_end(ended, None) or wrong_product(bench, errand, expected, ended) or (
        wrong_names(bench, errand, expected, ended, None)) or "".join(wrong_end(one, None) for one in second)
    if not wrong and ended.code:
        wrong = f"the first run was refused: {ended.stderr}"
    said = second[0].stderr.strip() if second else ""
    return (FAULTY, wrong) if wrong else (REFUSED, said) if said else (DONE, "")
