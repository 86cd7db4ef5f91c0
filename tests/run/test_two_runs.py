"""Two runs to one output: the second is told before it starts, the first is untouched."""

import subprocess
import sys
from pathlib import Path

import pytest
from samples import REPOSITORY, environment, names_in, python, run_cli, save_flux, weights

from tpec.check.verify import verify
from tpec.command.demo import flux_shapes
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.run.pipeline import quantize
from tpec.settings import Settings

#: A run that stands still in the middle of its work until a line comes in.
SLOW = """import sys
from tpec.files.checkpoint import open_checkpoint
from tpec.run.pipeline import quantize
from tpec.model.plan import make_plan
from tpec.settings import Settings
seen = []
def wait(event):
    if not seen:
        print("working", flush=True)
        sys.stdin.readline()
    seen.append(event)
plan = make_plan(open_checkpoint(sys.argv[1]), Settings(method="nearest"))
quantize(plan, sys.argv[2], progress=wait, resume=True)"""


def start(source: Path, output: Path) -> subprocess.Popen:
    process = python(SLOW, [source, output], stdin=subprocess.PIPE)
    assert process.stdout.readline() == "working\n", process.communicate()[1]
    return process


@pytest.mark.parametrize("more", [["--overwrite"], ["--resume"]])
def test_second_process_is_refused_and_the_first_ends_well(tmp_path: Path, more: list[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    source, other = save_flux(first), save_flux(second, extra=weights(flux_shapes(128, 2, 2)))
    output = tmp_path / "q.safetensors"
    process = start(source, output)
    began = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    refused = run_cli("quantize", other, "-o", output, "--quiet", "--method", "nearest", *more)
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == began
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert refused.stderr.startswith("tpec: ")
    assert f"another run is writing this output (process {process.pid} on " in refused.stderr
    _, stderr = process.communicate("go on\n", timeout=240)
    assert (process.returncode, stderr) == (0, "")
    assert verify(source, output).ok
    assert names_in(tmp_path) == {"first", "second", "q.safetensors"}


@pytest.mark.parametrize("resume", [False, True])
def test_second_run_within_one_process_is_refused(tmp_path: Path, resume: bool) -> None:
    plan = make_plan(open_checkpoint(save_flux(tmp_path)), Settings(method="nearest"))
    output, refusals = tmp_path / "q.safetensors", []

    def second(event) -> None:
        if not refusals:
            with pytest.raises(TpecError, match="another run is writing this output") as caught:
                quantize(plan, output, overwrite=True, resume=resume)
            refusals.append(caught.value)

    quantize(plan, output, progress=second)
    assert refusals
    assert verify(plan.checkpoint.path, output).ok
    quantize(plan, output, overwrite=True)
    assert names_in(tmp_path) == {"model.safetensors", "q.safetensors"}


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be replaced there")
@pytest.mark.parametrize("resume", [False, True])
def test_working_file_that_somebody_replaced_is_not_published(tmp_path: Path, resume: bool) -> None:
    """As on a network folder whose locks do not reach the other machine."""
    plan = make_plan(open_checkpoint(save_flux(tmp_path)), Settings(method="nearest"))
    output, partial = tmp_path / "q.safetensors", tmp_path / "q.safetensors.partial"

    def replace(event) -> None:
        if partial.stat().st_size > 100:
            partial.unlink()
            partial.write_text("another run's unfinished bytes")

    with pytest.raises(TpecError, match="another run replaced the working file"):
        quantize(plan, output, progress=replace, resume=resume)
    assert not output.exists()
    assert partial.read_text() == "another run's unfinished bytes"


def test_result_that_appears_before_the_second_run_has_the_lock_stays(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run ends between the second's look at the output and its start."""
    from tpec.run import job

    plan = make_plan(open_checkpoint(save_flux(tmp_path)), Settings(method="nearest"))
    output, looked = tmp_path / "q.safetensors", job.check_output

    def look_then_finish(*arguments) -> None:
        looked(*arguments)
        output.write_text("the first run's result")

    monkeypatch.setattr(job, "check_output", look_then_finish)
    events = []
    with pytest.raises(TpecError, match="exists already"):
        quantize(plan, output, progress=events.append)
    assert not events, "work was done for nothing"
    assert output.read_text() == "the first run's result"
    assert names_in(tmp_path) == {"model.safetensors", "q.safetensors"}


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_killed_run_does_not_block_the_next(tmp_path: Path, more: list[str]) -> None:
    """Whatever the system leaves behind of its lock."""
    source, output = save_flux(tmp_path), tmp_path / "q.safetensors"
    process = start(source, output)
    process.kill()
    process.communicate(timeout=240)
    assert "q.safetensors.partial" in names_in(tmp_path)
    done = run_cli("quantize", source, "-o", output, "--quiet", "--method", "nearest", *more)
    assert (done.returncode, done.stderr) == (0, "")
    assert names_in(tmp_path) == {"model.safetensors", "q.safetensors"}
    assert verify(source, output).ok


@pytest.mark.slow
def test_torchrun_counts_as_one_run_and_is_refused_as_one(tmp_path: Path) -> None:
    """Every rank ends by itself, and the first run's file stays as it is."""
    source, output = save_flux(tmp_path), tmp_path / "q.safetensors"
    process = start(source, output)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tpec",
               "quantize", source, "-o", output, "--quiet", "--device", "cpu", "--method", "nearest"]
    refused = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=240)
    assert refused.returncode == 1
    assert "another run is writing this output" in refused.stderr
    _, stderr = process.communicate("go on\n", timeout=240)
    assert (process.returncode, stderr) == (0, "")
    assert verify(source, output).ok
    alone = subprocess.run([*map(str, command), "--overwrite"], cwd=REPOSITORY, env=environment(), capture_output=True,
                           text=True, timeout=240)
    assert alone.returncode == 0, alone.stderr
    assert names_in(tmp_path) == {"model.safetensors", "q.safetensors"}
