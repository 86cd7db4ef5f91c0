"""matmul auto: which layers multiply in FP8."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from samples import generator, run_cli, save_flux

from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import Plan, make_plan
from tpec.run.choices.losses import Measured, measure
from tpec.run.choices.matmul import BUDGET, cheapest, input_costs, multiplications, with_matmul
from tpec.run.pipeline import quantize, settle
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration, hash_layers
from tpec.statistics.inputs import Gram, HeldInputs
from tpec.statistics.storage import save_calibration

CPU = torch.device("cpu")
PROJ, QKV, MLP = "double_blocks.0.img_attn.proj", "double_blocks.0.img_attn.qkv", "double_blocks.0.img_mlp.2"


def plan_of(folder: Path, **settings: object) -> Plan:
    return make_plan(open_checkpoint(save_flux(folder)), Settings(matmul="auto", method="nearest", **settings))


def calibration_of(plan: Plan, wide: str = "", unseen: str = "") -> Calibration:
    """White inputs for every layer but `unseen`; those of `wide` have one value far beyond all others."""
    groups = {}
    for layer in plan.of("quantize"):
        if layer.linear != unseen:
            x = torch.randn(2 * layer.shape[1], layer.shape[1], generator=generator())
            most = 1e7 if layer.linear == wide else x.abs().max().item()
            groups[layer.linear_in_model] = HeldInputs(x.mean(0), most, len(x), Gram(x.mT @ x / len(x)))
    shapes = {layer.linear_in_model: layer.shape for layer in plan.of("quantize")}
    return Calibration(groups, {name: name for name in groups}, hash_layers(shapes), shapes=shapes)


def flags(path: Path) -> dict[str, bool]:
    """By layer, whether the file asks for full precision."""
    with safe_open(path, "pt") as file:
        found = {name: json.loads(bytes(file.get_tensor(name).tolist())) for name in file.keys()  # noqa: SIM118
                 if name.endswith(".comfy_quant")}
    return {name.removesuffix(".comfy_quant"): "full_precision_matrix_mult" in flag for name, flag in found.items()}


def test_the_cheapest_go_first() -> None:
    costs, work = {"a": 5.0, "b": 1.0, "c": 3.0}, {"a": 10, "b": 10, "c": 10, "unseen": 7}
    assert [cheapest(costs, work, rest) for rest in (30, 20, 10, 0)] == [set(), {"b"}, {"b", "c"}, {"a", "b", "c"}]


def test_cancelling_outputs_cost_more(tmp_path: Path) -> None:
    """Errors of inputs do not cancel where the inputs themselves do."""
    plan = plan_of(tmp_path)
    names = [layer.linear for layer in plan.of("quantize")]
    even = {name: Measured(7e-4, 7e-4, 7e-4, 1.0, 1000) for name in names}
    base = input_costs(plan, even)
    assert sum(base.values()) == pytest.approx(1)
    worse = input_costs(plan, even | {MLP: Measured(7e-4, 7e-4, 7e-3, 1.0, 1000)})
    assert worse[MLP] == pytest.approx(10 * base[MLP]) and worse[PROJ] == pytest.approx(base[PROJ])
    by_gradient = {name: Measured(7e-4, 7e-4, 7e-4, 1.0, 1000, 1.0, 4.0) for name in names}
    assert sum(input_costs(plan, by_gradient).values()) == pytest.approx(2)


def test_plan_stays_within_the_budget_and_says_so(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    calibration = calibration_of(plan)
    settled = settle(plan, calibration, CPU)
    fast = {layer.linear for layer in settled.of("quantize") if layer.matmul == "fp8"}
    slow = {layer.linear for layer in settled.of("quantize") if layer.matmul == "full_precision"}
    costs, work = input_costs(plan, measure(plan, calibration, CPU)), multiplications(plan, calibration)
    assert fast and slow and not fast & slow and len(fast | slow) == len(plan.of("quantize"))
    assert sum(costs[name] for name in fast) <= BUDGET**2
    assert PROJ in slow and work[PROJ] == 128 * 128 * 256
    share = 100 * sum(work[name] for name in fast) / sum(work.values())
    assert f"{len(fast)} of {len(work)} layers" in settled.summary() and f"{share:.0f} % of the" in settled.summary()


def test_without_calibration(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    with pytest.raises(TpecError, match="matmul auto needs a calibration"):
        quantize(plan, tmp_path / "q.safetensors")
    assert not (tmp_path / "q.safetensors").exists()


def test_layers_that_must_not(tmp_path: Path) -> None:
    """Unseen inputs have no scale, too wide ones no good one."""
    plan = plan_of(tmp_path)
    calibration = calibration_of(plan, wide=MLP, unseen=QKV)
    free = {name: Measured(7e-4, 7e-4, 1e-12, 1.0, 100) for name in multiplications(plan, calibration) if name != QKV}
    settled = with_matmul(plan, free | {QKV: Measured(7e-4)}, calibration)
    assert {layer.linear for layer in settled.of("quantize") if layer.matmul == "full_precision"} == {MLP, QKV}


def test_file_from_the_command_line(tmp_path: Path) -> None:
    """Flags and input scales are in the file; keep_quality goes with it; the recipe says both."""
    plan = plan_of(tmp_path)
    calibration = calibration_of(plan)
    statistics = save_calibration(calibration, tmp_path / "stats.safetensors")
    source, output, recipe = plan.checkpoint.path, tmp_path / "q.safetensors", tmp_path / "r.json"
    done = run_cli("quantize", source, "-o", output, "--calibration", statistics, "--matmul", "auto", "--keep-quality",
                   "5", "--write-recipe", recipe, "--device", "cpu", "--method", "nearest")
    assert done.returncode == 0, done.stderr
    assert "matmul auto" in done.stdout and "keep_quality 5 %" in done.stdout
    full = flags(output)
    assert set(full.values()) == {True, False}
    layers = json.loads(recipe.read_text())["layers"]
    assert {name: choice["matmul"] == "full_precision" for name, choice in layers.items()
            if choice["format"] == "fp8"} == full
    with safe_open(output, "pt") as file:
        names = set(file.keys())
        assert file.get_tensor("scaled_fp8").numel() == 2
    assert {name.removesuffix(".input_scale") for name in names if name.endswith(".input_scale")} == {
        name for name, exact in full.items() if not exact}
    assert run_cli("verify", source, output).returncode == 0
