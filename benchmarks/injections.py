"""One command with one fault below it, in a forked process; and whether what it leaves behind is as promised.

The process that forks has PyTorch and the engine imported, so that a run takes a fraction of a second.
"""

import hashlib
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .shim import EVERY, Fault, Shim

#: Seconds after which a run counts as one that hangs.
_LIMIT = 120
#: What is said of a run that ended well with a product that the undisturbed one does not give.
ANOTHER = "done, but the file is another"
DONE, REFUSED, KILLED, FAULTY = "succeeded", "refused cleanly", "killed and recovered", "FAULT"
#: Calls without which a run can find or remove nothing.
_BLINDING = ("unlink", "stat", "list")
#: Names of working files, which a run may go on with.
_WORKING = re.compile(r"\.(partial(\.journal\d+|\.lock)?|part)$")


@dataclass(frozen=True)
class Ended:
    """A run's exit code (negative: the signal) and what it said."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Errand:
    """A command to disturb: `run(folder)` returns its exit code, `again(folder)` is what a user does after a failure.

    product: the file it makes or replaces, None for one that only reads. files: what lies in the folder before. keeps:
    whether working files may stay for `again`. source: the model's name, if it is to be changed meanwhile.
    """

    title: str
    run: Callable[[Path], int]
    again: Callable[[Path], int]
    product: str | None
    files: Path
    keeps: bool = False
    source: str = ""


@dataclass
class Bench:
    """Runs errands in `folder`, which it brings back to what the errand begins with before each."""

    shim: Shim
    folder: Path
    _known: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    _errand: Errand | None = None

    def restore(self, errand: Errand) -> None:
        """Lay out the errand's files; those that were not touched since the last time stay."""
        if errand is not self._errand:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._known.clear()
            self._errand = errand
        self.folder.mkdir(exist_ok=True)
        wanted = {path.name: path for path in errand.files.iterdir()}
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in wanted or self._known.get(path.name) != _state(path):
                path.unlink()
        for name, path in wanted.items():
            there = self.folder / name
            if not there.exists():
                shutil.copy2(path, there)
                self._known[name] = _state(there)

    def run(self, work: Callable[[Path], int], fault: Fault | None = None, limit: Callable[[], None] | None = None,
            meanwhile: Callable[[], None] | None = None, beside: bool = False) -> Ended:
        """Run it to its end. `limit` is called in its process before it begins, `meanwhile` whenever it stands still.

        `beside`: while another stands still.
        """
        said = [self.folder.with_name(f"{name}{int(beside)}") for name in ("stdout", "stderr")]
        if fault is None:
            self.shim.disarm()
        else:
            # Before the fork, for then the counts begin anew here; the parent's own calls are none of them.
            self.shim.arm(fault)
            self.shim.disarm()
        child = os.fork()
        if child == 0:
            _be_child(self.shim, work, self.folder, said, fault, limit)
        while True:
            _, status = os.waitpid(child, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                break
            if meanwhile is not None:
                meanwhile()
            os.kill(child, signal.SIGCONT)
        return Ended(os.waitstatus_to_exitcode(status), *(path.read_text(errors="replace") for path in said))


def _be_child(shim: Shim, work: Callable[[Path], int], folder: Path, said: list[Path], fault: Fault | None,
              limit: Callable[[], None] | None) -> None:
    """The forked process: never returns."""
    code = 99
    try:
        for stream, path in zip((sys.stdout, sys.stderr), said, strict=True):
            stream.flush()
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
        signal.alarm(_LIMIT)
        if limit is not None:
            limit()
        if fault is not None:
            os.environ.update(fault.environment())
            shim.arm(fault)
        code = work(folder)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    except BaseException:  # noqa: BLE001 - a traceback is what the parent looks for
        shim.disarm()
        traceback.print_exc()
    finally:
        shim.disarm()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def digest(path: Path) -> str:
    """SHA-256 of a file, '' where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


@dataclass(frozen=True)
class Expected:
    """The undisturbed run: its exit code and stdout, the product's digest before and after, the names left behind."""

    ended: Ended
    before: str
    after: str
    names: frozenset[str]


def undisturbed(bench: Bench, errand: Errand) -> Expected:
    """Raises SystemExit when the errand fails by itself."""
    bench.restore(errand)
    before = _product(bench, errand)
    ended = bench.run(errand.run)
    if ended.code or ended.stderr:
        raise SystemExit(f"{errand.title} failed undisturbed, with code {ended.code}: {ended.stderr}")
    return Expected(ended, before, _product(bench, errand), _names(bench))


def allocations(bench: Bench, errand: Errand, least: int) -> int:
    """Allocations of `least` bytes or more in an undisturbed run."""
    bench.restore(errand)
    bench.run(errand.run, Fault("memory", 0, 1 << 40, path=str(least)))
    return bench.shim.calls


def counts(bench: Bench, errand: Errand, kinds: Iterable[str], path: str) -> dict[str, int]:
    """Calls of these kinds, on such paths, in an undisturbed run."""
    bench.restore(errand)
    bench.run(errand.run, Fault(EVERY, 0, path=path))
    return {kind: bench.shim.calls_of(kind) for kind in kinds}


def inject(bench: Bench, errand: Errand, expected: Expected, fault: Fault | None,
           limit: Callable[[], None] | None = None) -> tuple[str, str]:
    """Run the errand with a fault; DONE, REFUSED, KILLED or FAULTY, and the sentence or what is wrong."""
    bench.restore(errand)
    ended = bench.run(errand.run, fault, limit)
    wrong = (wrong_end(ended, fault) or wrong_product(bench, errand, expected, ended)
             or wrong_names(bench, errand, expected, ended, fault))
    if wrong:
        return FAULTY, wrong
    return run_again(bench, errand, expected, ended)


def run_again(bench: Bench, errand: Errand, expected: Expected, ended: Ended) -> tuple[str, str]:
    """As `inject`, for a run that ended as it should: after a failure the next one must give the same file."""
    if ended.code == 0:
        return DONE, ""
    again = bench.run(errand.again)
    if (again.code, again.stderr) != (0, "") or _product(bench, errand) != expected.after:
        return FAULTY, f"the run after it failed with code {again.code}: {again.stderr or 'another file'}"
    left = _names(bench) - expected.names
    if left:
        return FAULTY, f"left behind by the run after it: {', '.join(sorted(left))}"
    return (KILLED, "") if ended.code < 0 else (REFUSED, ended.stderr.strip())


def wrong_end(ended: Ended, fault: Fault | None) -> str:
    """What is wrong with exit code and words, or ''."""
    if ended.code == 0:
        return f"done, but said: {ended.stderr}" if ended.stderr else ""
    if ended.code < 0:
        return "" if ended.code == -signal.SIGKILL and fault is not None and fault.action < 0 else (
            f"ended by signal {-ended.code}: {ended.stderr[-300:]}")
    if ended.code != 1:
        return f"exit code {ended.code}: {ended.stderr[-1500:]}"
    said = ended.stderr
    # "A file" is what is said of an error that names none: nobody would know which.
    if not (said.startswith("tpec: ") and said.endswith(".\n")) or said.count("\n") != 1 or "A file" in said:
        return f"not one sentence: {said[-1500:]}"
    return ""


def wrong_product(bench: Bench, errand: Errand, expected: Expected, ended: Ended) -> str:
    """What is wrong with the file, or ''."""
    found = _product(bench, errand)
    if ended.code == 0:
        if errand.product is None:
            return "" if ended.stdout == expected.ended.stdout else f"another answer: {ended.stdout[-300:]}"
        return "" if found == expected.after else ANOTHER
    if found == expected.before or ended.code < 0 and found == expected.after:
        return ""
    state = "though the new file is there" if found == expected.after else "and the file is broken"
    return f"failed ({ended.stderr.strip()}) {state}"


def wrong_names(bench: Bench, errand: Errand, expected: Expected, ended: Ended, fault: Fault | None) -> str:
    """What lies in the folder and should not, or ''."""
    allowed = {path.name for path in errand.files.iterdir()} | (expected.names if ended.code <= 0 else set())
    left = {name for name in _names(bench) - allowed
            # Killed, or kept from seeing or removing it: the next run does that.
            if not (_WORKING.search(name) and (errand.keeps or ended.code < 0 or fault and fault.kind in _BLINDING))}
    return f"left behind: {', '.join(sorted(left))} ({ended.stderr.strip()})" if left else ""


def _product(bench: Bench, errand: Errand) -> str:
    return digest(bench.folder / errand.product) if errand.product else ""


def _names(bench: Bench) -> frozenset[str]:
    return frozenset(path.name for path in bench.folder.iterdir())
