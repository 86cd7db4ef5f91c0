"""Calls to the system that fail below the engine; the long run is `python -m benchmarks.fault_matrix`."""

import os
import re
from pathlib import Path

import pytest

from benchmarks.shim import missing, run_with_shim

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"no fault can be put below a program: {missing()}")


def test_some_calls_of_a_run_fail_and_are_refused_or_survived(tmp_path: Path) -> None:
    """Of some kinds the first and the last, with every error, cut short, and killed there; and no fault in any."""
    memory = Path("/dev/shm")  # a disk that is quick to sync
    folder = memory if os.access(memory, os.W_OK) else tmp_path
    done = run_with_shim("benchmarks.fault_matrix", ["--folder", str(folder), "--most", "2", "--only", "half done",
                                                     "--kinds", "read", "write", "sync", "link"],
                         capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {tuple(line.split("|")[1].split()): [int(number) for number in re.findall(r"\| (\d+) ", line)]
            for line in done.stdout.splitlines() if line.startswith("| all ")}
    tried, succeeded, refused, killed, faults = rows["all",]
    assert tried == succeeded + refused + killed and faults == 0
    assert succeeded > 10 and refused > 20 and killed > 10


def test_a_fault_is_seen(tmp_path: Path) -> None:
    """The matrix itself: what it calls an error in a command that says nothing useful."""
    code = """import sys
from pathlib import Path
from benchmarks.injections import Bench, Errand, inject, undisturbed
from benchmarks.shim import Fault, Shim
place = Path(sys.argv[1])
(place / "files").mkdir()
(place / "files" / "old").write_text("old")
def careless(folder):
    (folder / "old").write_text("new text")
    return 0
bench = Bench(Shim(), place / "work")
errand = Errand("careless", careless, careless, "old", place / "files")
expected = undisturbed(bench, errand)
for fault in (Fault("write", 28, path="work/old"), Fault("write", -3, path="work/old"), Fault("open", 13, path="old")):
    print(*inject(bench, errand, expected, fault))
"""
    (tmp_path / "careless.py").write_text(code)
    done = run_with_shim("careless", [str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    outcomes = [line for line in done.stdout.splitlines() if line.startswith("FAULT")]
    assert len(outcomes) == 3, done.stdout + done.stderr
    assert "No space left on device" in done.stdout and "the file is broken" in done.stdout
