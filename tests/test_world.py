"""Several processes fill one file: the same bytes, and a failure of one fails all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from samples import REPOSITORY, environment, generator, names_in, save_flux, sha256

from tpec.checkpoint import open_checkpoint
from tpec.pipeline import quantize
from tpec.plan import make_plan
from tpec.settings import Settings
from tpec.world import World, join_world


def torchrun(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tpec",
               *map(str, arguments)]
    return subprocess.run(command, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


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
