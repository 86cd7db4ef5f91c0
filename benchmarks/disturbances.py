"""Files that others change while a run stands still at one of its calls; for `fault_matrix`."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tpec.files.partial import partial_path

from .errands import OUTPUT
from .injections import (
    DONE,
    FAULTY,
    REFUSED,
    Bench,
    Ended,
    Errand,
    Expected,
    count,
    digest,
    positions,
    run_again,
    wrong_end,
    wrong_names,
    wrong_product,
)
from .shim import STOP, Fault

#: Notes what came of an injection: errand, call, what happens, where, outcome and words.
Note = Callable[[Errand, str, str, str, tuple[str, str]], None]
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


def disturb(bench: Bench, errand: Errand, expected: Expected, note: Note, most: int) -> None:
    """Change what an errand that quantizes reads, at each of its reads, and what it writes, at each of its writes."""
    if errand.product != OUTPUT or not errand.source:
        return
    for change in (truncated, replaced, rewritten):
        _disturb_source(bench, errand, expected, note, most, change)
    for title, check in (("name taken by another", _name_taken), ("working file replaced", _working_file_replaced),
                         ("second run to the same output", _second_run)):
        for kind in ("write", "sync", *_NAMING) if check is not _working_file_replaced else ("write", "sync"):
            calls = count(bench, errand, kind, str(bench.folder))
            for nth in positions(calls, most):
                note(errand, "output", title, f"at {kind} {nth} of {calls}",
                     check(bench, errand, expected, Fault(kind, STOP, nth, 1, str(bench.folder))))


def _disturb_source(bench: Bench, errand: Errand, expected: Expected, note: Note, most: int,
                    change: Callable[[Path], None]) -> None:
    source = bench.folder / errand.source
    bench.restore(errand)
    change(source)
    # Changed before it was opened it is simply another model; one that was cut off is refused.
    good = {expected.after, "" if bench.run(errand.run).code else digest(bench.folder / OUTPUT)} - {""}
    for kind in ("open", "read"):
        calls = count(bench, errand, kind, str(source))
        for nth in positions(calls, most):
            bench.restore(errand)
            fault = Fault(kind, STOP, nth, 1, str(source))
            ended = bench.run(errand.run, fault, meanwhile=lambda: change(source))
            found = _judged(bench, errand, expected, ended, fault, good)
            if found[0] == REFUSED:
                source.unlink()
                shutil.copy2(errand.files / errand.source, source)
                found = run_again(bench, errand, expected, ended)
            note(errand, "source", f"{change.__name__} meanwhile", f"at {kind} {nth} of {calls}", found)


def _judged(bench: Bench, errand: Errand, expected: Expected, ended: Ended, fault: Fault,
            good: set[str]) -> tuple[str, str]:
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
