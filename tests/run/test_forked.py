"""The fault matrix forks its commands: they must do what new interpreters do, call by call."""

import tempfile
from pathlib import Path

import pytest
from samples import quick_disk

from benchmarks.shim import missing, run_with_shim

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"no call can be counted below a program: {missing()}")

BEGIN = """import errno, sys
from dataclasses import replace
from pathlib import Path
from benchmarks.commands import import_all, imported_anew, in_new_interpreter, make_durable_at_once
from benchmarks.errands import kinds_of, make_errands
from benchmarks.injections import Bench, counts, inject, undisturbed
from benchmarks.shim import KILL, Fault, Shim
make_durable_at_once()
import_all()
place = Path(sys.argv[1])
bench = Bench(Shim(), place / "work")
folder = str(bench.folder)
def errands(title):
    forked = next(errand for errand in made if title in errand.title)
    return forked, replace(forked, run=in_new_interpreter(forked.run), again=in_new_interpreter(forked.again))
made = make_errands(bench, place / "templates", None)
"""


def run(tmp_path: Path, code: str) -> list[str]:
    (tmp_path / "forking.py").write_text(BEGIN + code)
    with tempfile.TemporaryDirectory(dir=quick_disk(tmp_path)) as place:
        done = run_with_shim("forking", [place], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_forked_and_new_commands_make_the_same_calls_and_files(tmp_path: Path) -> None:
    """One that writes with everything there is, and one that reads and answers."""
    lines = run(tmp_path, """for title in ("calibrated", "verify"):
    forked, new = errands(title)
    found = [counts(bench, errand, kinds_of(errand), folder) for errand in (forked, new)]
    assert found[0] == found[1], found
    assert undisturbed(bench, forked) == undisturbed(bench, new)
    print(sum(found[0].values()))
""")
    assert len(lines) == 2 and all(int(line) > 200 for line in lines)


def test_forked_and_new_commands_end_alike_under_a_fault(tmp_path: Path) -> None:
    lines = run(tmp_path, """forked, new = errands("--write-recipe")
expected = undisturbed(bench, forked)
for fault in (Fault("write", errno.ENOSPC), Fault("sync", KILL), Fault("open", errno.EACCES, 2)):
    found = [inject(bench, errand, expected, replace(fault, path=folder)) for errand in (forked, new)]
    assert found[0] == found[1], found
    print(found[0][0])
""")
    assert lines == ["refused cleanly", "killed and recovered", "refused cleanly"]


def test_a_command_that_may_run_out_of_memory_imports_the_command_line(tmp_path: Path) -> None:
    """The parent's modules stay its own; a forked command has them at once, but for this."""
    lines = run(tmp_path, """def told(folder):
    print("tpec.command.cli" in sys.modules, hasattr(sys.modules["tpec.command"], "cli"), "torch" in sys.modules)
    from tpec.command.cli import main
    return 0
print(bench.run(told).stdout, bench.run(imported_anew(told)).stdout, bench.run(told).stdout, sep="", end="")
""")
    assert lines == ["True True True", "False False True", "True True True"]
