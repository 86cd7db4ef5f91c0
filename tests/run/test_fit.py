"""Whole runs with statistics of inputs and of gradients."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from samples import load, python, save_flux, sha256

from tpec.check.verify import verify
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.families import QUANTIZE
from tpec.model.plan import Plan, make_plan
from tpec.rounding.grid import decode
from tpec.run.memory import estimate
from tpec.run.pipeline import quantize
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration, hash_layers, merge
from tpec.statistics.gradients import RUN_LIMIT, GradientStats, HeldGradients, output_sums_bytes, run_shape
from tpec.statistics.inputs import Gram, HeldInputs
from tpec.statistics.storage import open_calibration, save_calibration
from tpec.statistics.watching import join_passes, plan_collection

LAYER = "single_blocks.0.linear1"


def outputs(rows: int, seed: int = 0, rank: int = 6, tokens: int = 100_000, limit: int = RUN_LIMIT) -> HeldGradients:
    """Gradients in few directions."""
    runs, size = run_shape(rows, limit)
    factor = torch.randn(runs, size, rank, generator=torch.Generator().manual_seed(seed))
    return HeldGradients(factor @ factor.mT, rows, tokens)


def inputs(width: int, seed: int = 0) -> HeldInputs:
    x = torch.randn(4000, width, generator=torch.Generator().manual_seed(seed)) * torch.linspace(3, 0.2, width)
    return HeldInputs(x.mean(0), x.abs().max().item(), len(x), Gram(x.mT @ x / len(x)))


def calibration_of(plan: Plan, with_outputs: bool = True, limit: int = RUN_LIMIT) -> Calibration:
    shapes = {layer.linear_in_model: layer.shape for layer in plan.of(QUANTIZE)}
    widths = {shape[1] for shape in shapes.values()}
    watched = [name for name in shapes if with_outputs and "mod" not in name]
    found = {name: outputs(shapes[name][0], limit=limit) for name in watched}
    return Calibration({str(width): inputs(width) for width in widths},
                       {name: str(shape[1]) for name, shape in shapes.items()}, hash_layers(shapes), outputs=found)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(open_checkpoint(save_flux(tmp_path)), Settings())


def felt(source: Path, result: Path, stats: GradientStats) -> float:
    """What the layer's error costs along the directions of its gradients, on inputs like the calibration's."""
    before, after = load(source), load(result)
    error = decode(after[f"{LAYER}.weight"], after[f"{LAYER}.weight_scale"]) - before[f"{LAYER}.weight"].float()
    moment = inputs(error.shape[1]).second_moment()
    return ((stats.second_moment()[0] @ error @ moment) * error).sum().item()


def test_errors_that_the_result_feels_shrink(tmp_path: Path, plan: Plan) -> None:
    both = calibration_of(plan)
    report = quantize(plan, tmp_path / "both", calibration=both)
    quantize(plan, tmp_path / "inputs", calibration=calibration_of(plan, False))
    metrics = {layer.name: layer.metric for layer in report.layers}
    assert {metric for name, metric in metrics.items() if "mod" in name} == {"activation"}
    assert {metric for name, metric in metrics.items() if "mod" not in name} == {"gradient"}
    source = plan.checkpoint.files[0]
    assert felt(source, tmp_path / "both", both.outputs[LAYER]) < 0.7 * felt(
        source, tmp_path / "inputs", both.outputs[LAYER])
    assert verify(source, tmp_path / "both").ok
    assert all(layer.loss <= layer.nearest_loss for layer in report.layers)


def test_lanes_give_the_same_bytes(tmp_path: Path, plan: Plan) -> None:
    calibration = calibration_of(plan)
    quantize(plan, tmp_path / "a", calibration=calibration)
    quantize(plan, tmp_path / "b", calibration=calibration, devices=("cpu", "cpu"))
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


def test_file_keeps_them_but_for_a_little_noise(tmp_path: Path, plan: Plan) -> None:
    calibration = calibration_of(plan, limit=40)
    assert calibration.outputs[LAYER].runs > 1
    again = open_calibration(save_calibration(calibration, tmp_path / "c.safetensors")).in_memory()
    assert again.digest() != calibration_of(plan, False).digest()
    assert again.outputs.keys() == calibration.outputs.keys()
    for name, stats in calibration.outputs.items():
        kept, exact = again.outputs[name].second_moment(), stats.second_moment()
        assert torch.equal(kept, kept.mT)
        assert (kept - exact).norm() < 0.04 * exact.norm()
        assert torch.linalg.eigvalsh(kept).min() > -1e-5 * exact.diagonal(dim1=1, dim2=2).mean()
    assert "output gradients of" in again.summary() and again.nbytes == calibration.nbytes


def test_command_line_uses_them(tmp_path: Path, plan: Plan) -> None:
    save_calibration(calibration_of(plan), tmp_path / "c.safetensors")
    process = python("import sys\nfrom tpec.command.cli import main\nsys.exit(main(sys.argv[1:]))",
                     ["quantize", plan.checkpoint.files[0], "-o", tmp_path / "q.safetensors", "--calibration",
                      tmp_path / "c.safetensors", "--report", tmp_path / "r.json", "--quiet"])
    assert process.wait(240) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert "gradient" in {layer["metric"] for layer in report["layers"]}


@pytest.mark.parametrize("case", ["missing", "shape", "nan", "rows"])
def test_damaged_outputs_are_refused(tmp_path: Path, plan: Plan, case: str) -> None:
    path = save_calibration(calibration_of(plan), tmp_path / "c.safetensors")
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    key = f"{LAYER}.output_{'pivots' if case == 'nan' else 'codes'}"
    if case == "missing":
        del tensors[key]
    elif case == "shape":
        tensors[key] = tensors[key][:-1].contiguous()
    elif case == "nan":
        tensors[key][0, 0] = float("nan")
    else:
        facts = json.loads(metadata["outputs"])
        facts[LAYER]["rows"] = 0
        metadata["outputs"] = json.dumps(facts)
    save_file(tensors, path, metadata)
    with pytest.raises(TpecError, match="damaged"):
        open_calibration(path).in_memory()


def test_outputs_of_another_model_are_refused(tmp_path: Path, plan: Plan) -> None:
    calibration = calibration_of(plan)
    calibration = replace(calibration, outputs={**calibration.outputs, LAYER: outputs(7)})
    with pytest.raises(TpecError, match=f"another model: its '{LAYER}' has 7 outputs"):
        quantize(plan, tmp_path / "q", calibration=calibration)
    assert not (tmp_path / "q").exists()


def test_added_up_with_inputs_and_joined_over_passes(plan: Plan) -> None:
    with_outputs, without = calibration_of(plan), calibration_of(plan, False)
    assert merge(with_outputs, without).outputs.keys() == with_outputs.outputs.keys()
    assert merge(with_outputs, with_outputs).outputs[LAYER].tokens == 200_000
    assert join_passes([with_outputs]).outputs.keys() == with_outputs.outputs.keys()


def test_memory_is_counted(plan: Plan) -> None:
    cpu = torch.device("cpu")
    assert estimate(plan, cpu, calibration_of(plan)).host > estimate(plan, cpu, calibration_of(plan, False)).host
    widths, rows = {"a": 64, "b": 64}, {"a": 128, "b": 128}
    assert plan_collection(widths, cpu, 0, 1 << 30, rows).nbytes == 2 * (4 * 64 * 64 + output_sums_bytes(128))
    one = 4 * 64 * 64 + output_sums_bytes(128)
    assert len(plan_collection(widths, cpu, 0, one, rows).passes) == 2
