"""Several processes fill one file: the same bytes, and a failure of one fails all."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from samples import REPOSITORY, environment, generator, names_in, save_flux, sha256

from tpec.check.verify import verify
from tpec.files.checkpoint import open_checkpoint
from tpec.files.partial import partial_path
from tpec.model.plan import make_plan
from tpec.run.pipeline import quantize
from tpec.run.processes import World, join_world
from tpec.settings import Settings


def torchrun(*arguments: object, program: Sequence[object] = ("-m", "tpec")) -> subprocess.CompletedProcess:
    """Two ranks on this machine. A run that hangs fails the test."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               *map(str, (*program, *arguments))]
    return subprocess.run(command, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


def sentences(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stderr.splitlines() if "tpec: " in line]


def test_one_process_needs_no_group() -> None:
    assert join_world() == World()
    assert World().share("x") == "x"
    assert World().gather("x") == ["x"]


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(tmp_path: Path) -> None:
    source, output = save_flux(tmp_path), tmp_path / "q.safetensors"
    done = torchrun("quantize", source, "-o", output, "--device", "cpu", "--report", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved") == 1
    whole = tmp_path / "whole.safetensors"
    report = quantize(make_plan(open_checkpoint(source), Settings()), whole)
    assert sha256(output) == sha256(whole)
    assert (tmp_path / "r.json").read_text().count('"relative_error"') == len(report.layers) + 1
    assert names_in(tmp_path) == {"model.safetensors", "q.safetensors", "whole.safetensors", "r.json"}


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["double_blocks.0.img_mlp.0", "single_blocks.0.linear1", "single_blocks.1.linear2"])
def test_one_failing_rank_fails_the_run(tmp_path: Path, layer: str) -> None:
    weight = torch.randn(64, 32, generator=generator()).bfloat16()
    weight[0, 0] = float("nan")
    source = save_flux(tmp_path, single=2, extra={f"{layer}.weight": weight})
    done = torchrun("quantize", source, "-o", tmp_path / "q.safetensors", "--quiet", "--device", "cpu")
    assert done.returncode != 0
    assert f"tpec: Tensor '{layer}.weight' holds NaN" in done.stderr
    assert names_in(tmp_path) == {"model.safetensors"}


@pytest.mark.slow
def test_refusals_reach_every_rank(tmp_path: Path) -> None:
    source, output = save_flux(tmp_path), tmp_path / "q.safetensors"
    output.write_text("precious")
    done = torchrun("quantize", source, "-o", output, "--quiet", "--device", "cpu")
    assert done.returncode != 0
    assert "exists already" in done.stderr
    assert output.read_text() == "precious"
    assert names_in(tmp_path) == {"model.safetensors", "q.safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["double_blocks.0.img_mlp.0", "single_blocks.1.linear2"])
def test_next_input_is_worked_on_when_a_rank_fails(tmp_path: Path, layer: str) -> None:
    weight = torch.randn(64, 32, generator=generator()).bfloat16()
    weight[0, 0] = float("nan")
    bad = save_flux(tmp_path, "bad.safetensors", single=2, extra={f"{layer}.weight": weight})
    good, folder = save_flux(tmp_path, "good.safetensors"), tmp_path / "out"
    folder.mkdir()
    done = torchrun("quantize", bad, good, "-o", folder, "--device", "cpu")
    assert done.returncode == 1
    assert [line.partition("tpec: ")[2] for line in sentences(done)] == [
        f"Tensor '{layer}.weight' holds NaN or infinite values: the model is broken there, use an intact file."]
    assert done.stdout.count("saved") == 1
    name = "good_float8_e4m3fn_scaled_learned_svd.safetensors"
    assert names_in(folder) == {name}
    assert verify(good, folder / name).ok


#: Named for the input that they fail: (what raises, in which module; on which rank).
PLACES = {
    "plan0": ("tpec.command.quantize.make_plan", 0), "plan1": ("tpec.command.quantize.make_plan", 1),
    "output1": ("tpec.command.quantize.check_output", 1),
    "layout1": ("tpec.run.job.make_layout", 1), "create0": ("tpec.files.partial.create", 0),
    "lane0": ("tpec.run.pipeline.Lane", 0), "lane1": ("tpec.files.partial.Journal", 1),
    "read1": ("tpec.run.lane.Lane._load", 1),
    "compute0": ("tpec.run.compute.Compute._round", 0), "write1": ("tpec.files.partial.SpoolFile.write", 1),
    "close1": ("tpec.files.partial.SpoolFile.close", 1), "finish0": ("tpec.files.partial.finish", 0),
}
#: Each of several inputs fails at the place that its name says, on one rank, and the last one does not.
DRIVER = """
import importlib, os, sys
from unittest import mock
from tpec.command import cli, quantize
places, rank = PLACES, int(os.environ["RANK"])
real = quantize._quantize_one

def one(options, settings, source, *rest):
    place, at = places.get(source.name.partition(".")[0], ("", None))
    if rank != at:
        return real(options, settings, source, *rest)
    error = OSError(5, "Input/output error", source.name) if len(place) % 2 else RuntimeError(source.name)
    with mock.patch(place, side_effect=error):
        return real(options, settings, source, *rest)

quantize._quantize_one = one
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_ranks_stay_together_wherever_one_fails(tmp_path: Path) -> None:
    inputs = [save_flux(tmp_path, f"{name}.safetensors") for name in (*PLACES, "good")]
    program, folder = tmp_path / "driver.py", tmp_path / "out"
    program.write_text(DRIVER.replace("PLACES", repr(PLACES)))
    folder.mkdir()
    done = torchrun("quantize", *inputs, "-o", folder, "--device", "cpu", "--method", "nearest", program=[program])
    assert done.returncode == 1
    told = sentences(done)
    assert len(told) == len(PLACES), done.stderr
    for name, line in zip(PLACES, told, strict=True):
        assert f"{name}.safetensors" in line
    assert done.stdout.count("saved") == 1 and done.stdout.count("  failed") == len(PLACES)
    assert names_in(folder) == {"good_float8_e4m3fn_scaled_learned_svd.safetensors"}


INTERRUPTED = """
import os, sys, time
from tpec.command import cli
from tpec.rounding import method

def endless(weight, largest, rounding, chunk, tick):
    if os.environ["RANK"] == "1":
        raise KeyboardInterrupt
    while True:
        tick()
        time.sleep(0.01)

method.quantize_tpec = endless
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_interrupt_of_one_rank_ends_the_others_within_their_layer(tmp_path: Path) -> None:
    source, program = save_flux(tmp_path), tmp_path / "driver.py"
    program.write_text(INTERRUPTED)
    done = torchrun("quantize", source, source.with_name("later.safetensors"), "-o", tmp_path, "--device", "cpu",
                    "--quiet", program=[program])
    assert done.returncode == 1
    assert done.stderr.count("Interrupted.") >= 1 and not sentences(done)
    assert names_in(tmp_path) == {"model.safetensors", "driver.py"}


REPLACED = """
import os, sys, time
from pathlib import Path
from tpec.command import cli
from tpec.run import pipeline

real, working = pipeline._open_lane, Path(sys.argv[4] + ".partial")

def open_lane(*arguments):
    if os.environ["RANK"] == "1":
        time.sleep(2)  # the other process has opened the one that it made
        working.with_name("other").write_bytes(b"another run's unfinished bytes")
        working.with_name("other").replace(working)
    return real(*arguments)

pipeline._open_lane = open_lane
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be replaced there")
def test_no_rank_writes_to_a_file_that_another_run_put_there(tmp_path: Path) -> None:
    source, output, program = save_flux(tmp_path), tmp_path / "q.safetensors", tmp_path / "driver.py"
    program.write_text(REPLACED)
    done = torchrun("quantize", source, "-o", output, "--device", "cpu", "--quiet", program=[program])
    assert done.returncode == 1
    assert len(sentences(done)) == 1 and "another run replaced the working file" in sentences(done)[0]
    assert partial_path(output).read_bytes() == b"another run's unfinished bytes"
    assert not output.exists()


@pytest.mark.slow
def test_failure_of_the_report_is_every_ranks(tmp_path: Path) -> None:
    source, folder = save_flux(tmp_path), tmp_path / "r.json"
    program = tmp_path / "driver.py"
    program.write_text("import sys\nfrom pathlib import Path\nfrom tpec.command import cli\n"
                       "def full(*_):\n    raise OSError(28, 'No space left on device')\n"
                       "Path.write_text = full\nsys.exit(cli.main(sys.argv[1:]))\n")
    done = torchrun("quantize", source, "-o", tmp_path / "q.safetensors", "--report", folder, "--device", "cpu",
                    "--quiet", "--method", "nearest", program=[program])
    assert done.returncode == 1
    assert len(sentences(done)) == 1 and "The model was saved, but not its report" in sentences(done)[0]
    assert verify(source, tmp_path / "q.safetensors").ok


def test_agreeing_alone_is_just_the_work() -> None:
    assert World().agree(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        World().agree(lambda: 1 / 0)
