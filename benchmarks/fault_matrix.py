"""Every call to the system fails once: is there the complete new file or the untouched old one, and one sentence?

    python -m benchmarks.fault_matrix --plan                # how many injections that is
    python -m benchmarks.fault_matrix --workers 48          # every call
    python -m benchmarks.fault_matrix --workers 48 --within 480
    python -m benchmarks.fault_matrix --most 6 --only nearest
    python -m benchmarks.fault_matrix --like "working file replaced"

The real commands run in processes below which `shim.c` lies. First each errand's calls of a kind are counted; then it
runs again for every call (at most --most of a kind, evenly spread) and every error, once at that call and once from
that call on; and is killed (SIGKILL) before, after and, of a write, half-way through that call, and run again. Then
files are changed under a run that stands still at any of its calls, and memory is made scarce. Linux with gcc only.

Commands are forked from a process that has imported them (commands.py); --new starts an interpreter for each, to hold
the others against, which takes seconds of CPU each. No command sees a GPU. Commands have one thread each, so
--workers may come near the number of cores. Injections are done in an order of which every beginning is spread over
commands, calls, errors and positions; what was done is said. Exit code 1 when anything is not as promised, else 130
when interrupted, else 0.
"""

import argparse
import contextlib
import math
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from .commands import import_all, in_new_interpreter, make_durable_at_once
from .common import environment, markdown_table
from .disturbances import disturbances
from .errands import make_errands
from .failures import ERRORS, failures
from .injections import DONE, FAULTY, KILLED, REFUSED, Bench, Errand
from .plan import Injection, Survey, in_turn, rounds_done
from .scarcity import shortages
from .shim import Shim, missing, run_with_shim
from .survey import survey
from .workers import Broken, spread

#: Seconds between two lines about how far it is.
_REFRESH = 10.0
_INTERRUPTED = 130


class Matrix:
    """All injections, and by their places the outcomes and words of those that were done."""

    def __init__(self, injections: Sequence[Injection]) -> None:
        self.injections = injections
        self.found: dict[int, tuple[str, str]] = {}
        self.interrupted = False

    def note(self, at: int, found: tuple[str, str]) -> None:
        self.found[at] = found
        if found[0] == FAULTY:
            print(f"FAULT {self._fault(at)}", file=sys.stderr, flush=True)

    def _fault(self, at: int) -> str:
        one = self.injections[at]
        return f"{one.errand.title}, {one.kind} {one.column} {one.where}: {self.found[at][1]}"

    def faults(self) -> list[str]:
        """What was wrong, in the order of the table."""
        return [self._fault(at) for at in sorted(self.found) if self.found[at][0] == FAULTY]

    def sentences(self) -> Counter[str]:
        """What the refusals said, and how often."""
        return Counter(said for outcome, said in self.found.values() if said and outcome != FAULTY)

    def table(self) -> str:
        counts: dict[tuple[str, str], Counter[str]] = {}
        for at, one in enumerate(self.injections):
            if at in self.found:
                counts.setdefault((one.kind, one.column), Counter())[self.found[at][0]] += 1
        rows = [[*key, found.total(), *(found[outcome] for outcome in (DONE, REFUSED, KILLED, FAULTY))]
                for key, found in counts.items()]
        totals = [sum(row[at] for row in rows) for at in range(2, 7)]
        return markdown_table(("call", "what happens to it", "injections", DONE, REFUSED, KILLED, "faults"),
                              [*rows, ["all", "", *totals]])

    def share(self) -> str:
        """How many of how many were done, in all and, unless that is all, by errand."""
        text = f"{len(self.found)} of {len(self.injections)} injections done"
        if len(self.found) == len(self.injections):
            return text
        all_of = Counter(one.errand.title for one in self.injections)
        done = Counter(self.injections[at].errand.title for at in self.found)
        lines = (f"  {title}: {done[title]} of {count}" for title, count in all_of.items())
        least = f"; of everything at least {rounds_done(self.injections, self.found)} positions, or all that there are"
        return "\n".join([text + least, *lines])


def planned(errand: Errand, found: Survey, args: argparse.Namespace) -> Iterator[Injection]:
    """Everything that is injected into an errand; at calls of `args.kinds` only if any are given."""
    yield from failures(errand, found, args.most, args.kinds or tuple(ERRORS))
    if not args.kinds:
        yield from disturbances(errand, found, args.most)
        if not args.new:
            yield from shortages(errand, found, args.most)


def plan(errands: Sequence[Errand], shim: Shim, folder: Path, args: argparse.Namespace) -> list[Injection]:
    """Run every errand undisturbed, count its calls, and say what that comes to."""
    jobs = [partial(survey, errand, args.kinds or tuple(ERRORS), not args.kinds) for errand in errands]
    surveys: dict[int, Survey] = {}
    with contextlib.closing(spread(jobs, shim, folder, args.workers)) as results:
        for at, found in results:
            if isinstance(found, Broken):
                raise SystemExit(found.why)
            surveys[at] = found
    injections = []
    for at, errand in enumerate(errands):
        more = [one for one in planned(errand, surveys[at], args)
                if args.like in f"{one.kind} {one.column} {one.where}"]
        print(f"{errand.title}: {len(more)} injections, one undisturbed run {surveys[at].seconds:.2f} s",
              file=sys.stderr)
        injections += more
    print(f"all: {len(injections)} injections", file=sys.stderr, flush=True)
    return injections


def _inject(injection: Injection, bench: Bench) -> tuple[str, str]:
    """Its outcome and words, without the name of the worker's folder."""
    outcome, said = injection.work(bench)
    return outcome, said.replace(str(bench.folder), "FOLDER")


def fill(matrix: Matrix, shim: Shim, folder: Path, workers: int, until: float) -> None:
    """Do the injections, as far as the time allows."""
    turns, begun = in_turn(matrix.injections), time.monotonic()
    said = begun
    jobs = [partial(_inject, matrix.injections[at]) for at in turns]
    with contextlib.closing(spread(jobs, shim, folder, workers, until)) as results:
        try:
            for turn, found in results:
                matrix.note(turns[turn], (FAULTY, found.why) if isinstance(found, Broken) else found)
                now = time.monotonic()
                if now - said >= _REFRESH:
                    said = now
                    left = min((now - begun) / len(matrix.found) * (len(jobs) - len(matrix.found)), until - now)
                    print(f"{len(matrix.found)} of {len(jobs)} injections, {len(matrix.faults())} faults, "
                          f"{max(left, 0):.0f} s left", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            matrix.interrupted = True


def run(folder: Path, other_disk: Path | None, args: argparse.Namespace) -> Matrix:
    """All errands whose title contains `args.only`, within `folder`."""
    until = time.monotonic() + args.within
    make_durable_at_once()
    import_all()
    shim = Shim()
    errands = [errand for errand in make_errands(Bench(shim, folder / "work"), folder / "templates", other_disk)
               if args.only in errand.title]
    if args.new:
        errands = [replace(errand, run=in_new_interpreter(errand.run), again=in_new_interpreter(errand.again))
                   for errand in errands]
    matrix = Matrix(plan(errands, shim, folder, args))
    if not args.plan:
        fill(matrix, shim, folder, args.workers, until)
    return matrix


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--other-disk", type=Path, default=Path("/dev/shm"),
                        help="a folder on another disk, to publish from (default /dev/shm)")
    parser.add_argument("--most", type=_positive, default=1_000_000,
                        help="positions of a kind in an errand (default: all)")
    parser.add_argument("--only", default="", help="errands whose title contains this")
    parser.add_argument("--like", default="", metavar="TEXT", help="injections whose call, what happens to it and "
                        "position contain this, such as 'working file replaced' or 'at write 3 '")
    parser.add_argument("--kinds", nargs="*", choices=ERRORS, default=(), help="calls of these kinds, and nothing else")
    parser.add_argument("--new", action="store_true", help="each command in a new interpreter, which takes seconds, "
                        "and no memory made scarce: to hold the forked ones against")
    parser.add_argument("--workers", type=_positive, default=1, help="injections at a time (default 1)")
    parser.add_argument("--within", type=float, default=math.inf, metavar="SECONDS",
                        help="begin no injection after so long")
    parser.add_argument("--plan", action="store_true", help="say how many injections there would be, and end")
    parser.add_argument("--sentences", action="store_true", help="print what the refusals said, too")
    return parser.parse_args()


def tell(matrix: Matrix, sentences: bool) -> None:
    print(f"{environment()}\n\n{matrix.table()}\n")
    if sentences:
        print("\n".join(f"{count:6}  {said}" for said, count in sorted(matrix.sentences().items())))
    print("\n".join([*matrix.faults(), matrix.share()]))
    print(f"{len(matrix.faults())} faults" if matrix.faults() else "no fault")


def below_the_shim(args: argparse.Namespace) -> int:
    """The exit code."""
    with contextlib.ExitStack() as folders:
        folder = Path(folders.enter_context(tempfile.TemporaryDirectory(dir=args.folder, ignore_cleanup_errors=True)))
        apart = None
        if args.other_disk.is_dir() and args.other_disk.stat().st_dev != folder.stat().st_dev:
            apart = Path(folders.enter_context(tempfile.TemporaryDirectory(dir=args.other_disk)))
        try:
            matrix = run(folder, apart, args)
        except KeyboardInterrupt:
            print("interrupted before the first injection", file=sys.stderr)
            return _INTERRUPTED
    if args.plan:
        return 0
    tell(matrix, args.sentences)
    return 1 if matrix.faults() else _INTERRUPTED if matrix.interrupted else 0


def main() -> None:
    if reason := missing():
        raise SystemExit(f"skipped: {reason}")
    args = arguments()
    if "shim.so" in os.environ.get("LD_PRELOAD", ""):
        raise SystemExit(below_the_shim(args))
    # An interrupt is the other process's affair, which then says how far it came; a handler is not inherited.
    signal.signal(signal.SIGINT, lambda *_: None)
    raise SystemExit(run_with_shim(__spec__.name, sys.argv[1:]).returncode)


if __name__ == "__main__":
    main()
