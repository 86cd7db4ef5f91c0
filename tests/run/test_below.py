"""Calls to the system that fail below the engine; the long run is `python -m benchmarks.fault_matrix`."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from samples import environment, quick_disk

from benchmarks.plan import positions, ranks
from benchmarks.shim import missing, run_with_shim
from tpec.files.plain import write_safetensors

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"no fault can be put below a program: {missing()}")


def fault_matrix(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    return run_with_shim("benchmarks.fault_matrix", ["--folder", str(quick_disk(tmp_path)), *arguments],
                         capture_output=True, text=True, timeout=240)


def totals(done: subprocess.CompletedProcess) -> list[int]:
    """Tried, succeeded, refused, killed, faults."""
    row = next(line for line in done.stdout.splitlines() if line.startswith("| all "))
    return [int(number) for number in re.findall(r"\| (\d+) ", row)]


def test_some_calls_of_a_run_fail_and_are_refused_or_survived(tmp_path: Path) -> None:
    """Of some kinds the first and the last, with every error, cut short, and killed there; and no fault in any."""
    done = fault_matrix(tmp_path, "--most", "2", "--only", "half done", "--kinds", "read", "write", "sync", "link",
                        "--workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    tried, succeeded, refused, killed, faults = totals(done)
    assert tried == succeeded + refused + killed and faults == 0
    assert succeeded > 10 and refused > 20 and killed > 10


def test_the_table_is_the_same_whatever_the_number_of_workers(tmp_path: Path) -> None:
    found = [fault_matrix(tmp_path, "--only=--write-recipe", "--kinds", "close", "rename", "--most", "2",
                          "--workers", workers) for workers in ("1", "3")]
    assert [done.returncode for done in found] == [0, 0], found
    assert found[0].stdout == found[1].stdout
    tried = totals(found[0])[0]
    assert tried > 20 and f"\n{tried} of {tried} injections done\n" in found[0].stdout


def test_what_the_time_did_not_allow_is_said(tmp_path: Path) -> None:
    done = fault_matrix(tmp_path, "--only", "save a calibration", "--kinds", "write", "sync", "--within", "0")
    assert done.returncode == 0, done.stderr
    assert totals(done)[0] == 0
    assert re.search(r"^0 of \d\d+ injections done; of everything at least 0 positions", done.stdout, re.MULTILINE)
    assert re.search(r"^  save a calibration over an old one: 0 of \d\d+$", done.stdout, re.MULTILINE)


def test_interrupted_it_says_how_far_it_came(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.fault_matrix", "--folder", str(tmp_path), "--only", "nearest",
               "--kinds", "stat", "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
                          start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("all: "):
                break
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        said, complaints = process.communicate(timeout=120)
    assert process.returncode == 130, said + complaints
    assert "Traceback" not in complaints
    done, of_all = map(int, re.search(r"^(\d+) of (\d+) injections done; ", said, re.MULTILINE).groups())
    assert done < of_all
    assert list(tmp_path.iterdir()) == []


def test_every_beginning_of_an_order_is_spread() -> None:
    assert ranks(0) == [] and ranks(1) == [0] and ranks(2) == [0, 1]
    for count in (3, 4, 17, 100, 1131):
        found = ranks(count)
        assert sorted(found) == list(range(count))
        for begun in range(2, count):
            places = [at for at, rank in enumerate(found) if rank < begun]
            widest = max(after - before for before, after in zip(places, places[1:], strict=False))
            assert widest <= math.ceil((count - 1) / 2 ** int(math.log2(begun - 1)))
    assert positions(9, 3) == [1, 5, 9] and positions(3, 9) == [1, 2, 3]


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


def test_a_file_of_sums_in_another_order_is_told_from_a_wrong_one(tmp_path: Path) -> None:
    from benchmarks.scarcity import rounded_alike  # takes a module that Linux has

    path = tmp_path / "q.safetensors"
    codes = torch.full((100, 100), 0.5).to(torch.float8_e4m3fn)
    write_safetensors(path, {"w": codes, "scale": torch.tensor(1.5)}, {})
    made = path.read_bytes()
    begin, half = 8 + int.from_bytes(made[:8], "little"), codes.view(torch.uint8)[0, 0].item()
    first = made.index(bytes([half] * 100), begin)

    def changed(at: int, content: bytes) -> bytes:
        return made[:at] + content + made[at + len(content):]

    scale = made.index(torch.tensor(1.5).numpy().tobytes(), begin)
    assert rounded_alike(made, made)
    assert rounded_alike(changed(first + 7, bytes([half + 1, half - 1])), made)
    assert not rounded_alike(changed(first + 7, bytes([half + 2])), made)
    assert not rounded_alike(changed(first, bytes([half + 1] * 100)), made)
    assert not rounded_alike(changed(scale, bytes([made[scale] + 1])), made)
    assert not rounded_alike(made[:-1], made)
    assert not rounded_alike(changed(10, b"x"), made)


def test_injections_are_chosen_by_what_they_are_called(tmp_path: Path) -> None:
    """Of the early writes one, at which a file that somebody put there was once taken for the run's own."""
    done = fault_matrix(tmp_path, "--only", "quantize, nearest", "--like", "working file replaced at write 3 ")
    assert done.returncode == 0, done.stdout + done.stderr
    assert totals(done) == [1, 0, 1, 0, 0]


def test_a_job_that_fails_or_whose_worker_ends_is_told(tmp_path: Path) -> None:
    code = """import os, sys
from functools import partial
from pathlib import Path
from benchmarks.shim import Shim
from benchmarks.workers import Broken, spread
def double(number, bench):
    return 2 * number
def fail(bench):
    raise ValueError("as it must")
def end(bench):
    os.kill(os.getpid(), 9)
def end_worker(bench):
    os.kill(os.getppid(), 9)
    end(bench)
jobs = [partial(double, 1), fail, end, end_worker, *(partial(double, n) for n in range(4, 40))]
found = dict(spread(jobs, Shim(), Path(sys.argv[1]), 2))
assert found[0] == 2 and [found[n] for n in range(4, 40)] == [2 * n for n in range(4, 40)]
assert "as it must" in found[1].why and "-9" in found[2].why and isinstance(found[3], Broken)
print("told")
"""
    (tmp_path / "ending.py").write_text(code)
    done = run_with_shim("ending", [str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr
