"""Every call to the system fails once: is there the complete new file or the untouched old one, and one sentence?

    python -m benchmarks.fault_matrix                       # every call
    python -m benchmarks.fault_matrix --most 6 --only nearest

The real commands run in processes below which `shim.c` lies. First each errand's calls of a kind are counted; then it
runs again for every call (at most --most of a kind, evenly spread) and every error, once at that call and once from
that call on; and is killed (SIGKILL) before, after and, of a write, half-way through that call, and run again. Then
files are changed under a run that stands still at any of its calls, and memory is made scarce. Linux with gcc only.
Exit code 1 when anything is not as promised.
"""

import argparse
import errno
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .common import environment, markdown_table
from .disturbances import disturb
from .errands import kinds_of, make_durable_at_once, make_errands
from .injections import DONE, FAULTY, KILLED, REFUSED, Bench, Errand, Expected, count, inject, positions, undisturbed
from .scarcity import starve
from .shim import FOR_EVER, KILL, KILL_AFTER, SHORT, Fault, Shim, missing, run_with_shim

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


@dataclass
class Matrix:
    """What came of the injections, by row and column; and every fault."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    sentences: Counter[str] = field(default_factory=Counter)

    def note(self, errand: Errand, kind: str, column: str, where: str, found: tuple[str, str]) -> None:
        outcome, said = found
        self.counts[kind, column, outcome] += 1
        if outcome == FAULTY:
            self.faults.append(f"{errand.title}, {kind} {column} {where}: {said}")
            print(f"FAULT {self.faults[-1]}", file=sys.stderr, flush=True)
        elif said:
            self.sentences[said] += 1

    def table(self) -> str:
        rows = []
        for kind, column in dict.fromkeys(key[:2] for key in self.counts):
            found = [self.counts[kind, column, outcome] for outcome in (DONE, REFUSED, KILLED, FAULTY)]
            rows.append([kind, column, sum(found), *found])
        totals = [sum(row[at] for row in rows) for at in range(2, 7)]
        return markdown_table(("call", "what happens to it", "injections", DONE, REFUSED, KILLED, "faults"),
                              [*rows, ["all", "", *totals]])


def faults_of(kind: str, nth: int, folder: Path) -> Iterator[tuple[str, Fault]]:
    """What is done to one call, by column."""
    for name in ERRORS[kind]:
        action = SHORT if name == "short" else getattr(errno, name)
        for times in (1,) if name == "EINTR" else (1, FOR_EVER):
            yield name, Fault(kind, action, nth, times, str(folder))
    if kind not in ("map", "advise"):
        for name, action in _KILLS.items():
            yield name, Fault(kind, action, nth, 1, str(folder))


def must_pass(kind: str, column: str) -> bool:
    """Whether the run has to succeed all the same. Python itself repeats calls that a signal broke off."""
    repeated = ("open", "read", "write", "copy", "sync", "truncate", "lock")
    return kind in _HINTS and column not in _KILLS or column in _PASSING and kind in repeated


def fail_every_call(bench: Bench, errand: Errand, expected: Expected, matrix: Matrix, most: int,
                    kinds: Sequence[str]) -> None:
    """Those of `kinds` that the errand can have."""
    for kind in filter(kinds_of(errand).__contains__, kinds):
        calls = count(bench, errand, kind, str(bench.folder))
        for nth in positions(calls, most):
            for column, fault in faults_of(kind, nth, bench.folder):
                found = inject(bench, errand, expected, fault)
                if found[0] == REFUSED and must_pass(kind, column):
                    found = FAULTY, f"refused: {found[1]}"
                how = "" if fault.times else " and all after it"
                matrix.note(errand, kind, column, f"at call {nth} of {calls}{how}", found)


def run(folder: Path, most: int, only: str, other_disk: Path | None, kinds: Sequence[str] = ()) -> Matrix:
    """All errands whose title contains `only`, within `folder`; of calls of `kinds` only if any are given."""
    make_durable_at_once()
    bench, matrix = Bench(Shim(), folder / "work"), Matrix()
    for errand in make_errands(bench, folder / "templates", other_disk):
        if only not in errand.title:
            continue
        begun, before = time.monotonic(), sum(matrix.counts.values())
        try:
            expected = undisturbed(bench, errand)
            fail_every_call(bench, errand, expected, matrix, most, kinds or tuple(ERRORS))
            if not kinds:
                disturb(bench, errand, expected, matrix.note, most)
                starve(bench, errand, expected, matrix.note, most)
        except KeyboardInterrupt:
            print(f"interrupted in: {errand.title}", file=sys.stderr)
            break
        print(f"{errand.title}: {sum(matrix.counts.values()) - before} injections, "
              f"{time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return matrix


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--other-disk", type=Path, default=Path("/dev/shm"),
                        help="a folder on another disk, to publish from (default /dev/shm)")
    parser.add_argument("--most", type=int, default=1000, help="positions of a kind in an errand (default 1000)")
    parser.add_argument("--only", default="", help="errands whose title contains this")
    parser.add_argument("--kinds", nargs="*", choices=ERRORS, default=(), help="calls of these kinds, and nothing else")
    parser.add_argument("--sentences", action="store_true", help="print what the refusals said, too")
    return parser.parse_args()


def main() -> None:
    if reason := missing():
        raise SystemExit(f"skipped: {reason}")
    if "shim.so" not in os.environ.get("LD_PRELOAD", ""):
        raise SystemExit(run_with_shim(__spec__.name, sys.argv[1:]).returncode)
    args = arguments()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        apart = args.other_disk.is_dir() and args.other_disk.stat().st_dev != os.stat(folder).st_dev
        matrix = run(Path(folder), args.most, args.only, args.other_disk if apart else None,
                     args.kinds)
    print(f"{environment()}\n\n{matrix.table()}\n")
    if args.sentences:
        print("\n".join(f"{count:6}  {said}" for said, count in matrix.sentences.most_common()))
    print("\n".join(matrix.faults) or "no fault")
    raise SystemExit(1 if matrix.faults else 0)


if __name__ == "__main__":
    main()
