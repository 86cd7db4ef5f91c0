"""What rounding each layer would cost, measured before anything is written."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import HIDDEN, generator, tiny_flux, weights

from tpec.command.demo import flux_shapes
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import Plan, make_plan
from tpec.rounding.grid import round_to_grid
from tpec.run.choices.losses import Measured, expected, measure
from tpec.run.progress import Progress
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration, hash_layers
from tpec.statistics.gradients import HeldGradients
from tpec.statistics.inputs import Gram, HeldInputs

CPU = torch.device("cpu")
PROJ, QKV = "double_blocks.0.img_attn.proj", "double_blocks.0.img_attn.qkv"


def plan_of(folder: Path, tensors: dict[str, torch.Tensor], **settings: object) -> Plan:
    save_file(tensors, folder / "m.safetensors")
    return make_plan(open_checkpoint(folder / "m.safetensors"), Settings(**settings))


def calibration_of(plan: Plan, inputs: dict[str, torch.Tensor],
                   gradients: dict[str, torch.Tensor] | None = None) -> Calibration:
    """From inputs [tokens, in] and gradients at outputs [tokens, out]."""
    groups = {name: HeldInputs(x.mean(0), x.abs().max().item(), len(x), Gram(x.mT @ x / len(x)))
              for name, x in inputs.items()}
    outputs = {name: HeldGradients((g.mT @ g / len(g))[None], g.shape[1], len(g))
               for name, g in (gradients or {}).items()}
    shapes = {layer.linear_in_model: layer.shape for layer in plan.of("quantize")}
    return Calibration(groups, {name: name for name in groups}, hash_layers(shapes), outputs=outputs)


def rounding_error(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.float().abs().max() / 448
    return round_to_grid(weight.float() / scale) * scale - weight.float()


def test_errors_are_those_of_rounding_to_nearest(tmp_path: Path) -> None:
    tensors = tiny_flux()
    plan = plan_of(tmp_path, tensors)
    inputs = torch.randn(4096, HIDDEN, generator=generator()) * torch.linspace(0.1, 3, HIDDEN) + 0.5
    grads = torch.randn(512, HIDDEN, generator=generator(1)) * torch.linspace(0.1, 2, HIDDEN)
    found = measure(plan, calibration_of(plan, {PROJ: inputs}, {PROJ: grads}), CPU)
    assert found.keys() == {layer.linear for layer in plan.of("quantize")}
    weight = tensors[f"{PROJ}.weight"]
    errors, centred = rounding_error(weight), inputs - inputs.mean(0)
    relative = (centred @ errors.mT).square().sum() / (centred @ weight.float().mT).square().sum()
    assert found[PROJ].weight_error == pytest.approx((errors.norm() / weight.float().norm()).item() ** 2, rel=1e-3)
    assert found[PROJ].output_error == pytest.approx(relative.item(), rel=1e-3)
    felt = (grads.square().mean(0) * (centred @ errors.mT).square().mean(0)).sum() * 512
    assert found[PROJ].felt == pytest.approx(felt.item(), rel=1e-3)
    assert found[QKV].output_error is None and found[QKV].felt is None


def test_errors_of_rounded_inputs(tmp_path: Path) -> None:
    """Against inputs that are really rounded, with the scale of the largest."""
    tensors = tiny_flux()
    plan = plan_of(tmp_path, tensors)
    inputs = torch.randn(8192, HIDDEN, generator=generator()) * torch.linspace(0.1, 3, HIDDEN) + 0.5
    grads = torch.randn(512, HIDDEN, generator=generator(1)) * torch.linspace(0.1, 2, HIDDEN)
    one = measure(plan, calibration_of(plan, {PROJ: inputs}, {PROJ: grads}), CPU)[PROJ]
    scale = inputs.abs().max() / 448
    wrong = (round_to_grid(inputs / scale) * scale - inputs) @ tensors[f"{PROJ}.weight"].float().mT
    right = (inputs - inputs.mean(0)) @ tensors[f"{PROJ}.weight"].float().mT
    assert one.input_error == pytest.approx((wrong.square().sum() / right.square().sum()).item(), rel=0.15)
    felt = (grads.square().mean(0) * wrong.square().mean(0)).sum() * 512
    assert one.input_felt == pytest.approx(felt.item(), rel=0.15)


def test_spread_is_the_share_of_directions(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, tiny_flux())
    few = torch.zeros(4096, HIDDEN)
    few[:, :4] = torch.randn(4096, 4, generator=generator())
    every = torch.randn(4096, HIDDEN, generator=generator())
    found = measure(plan, calibration_of(plan, {PROJ: few, QKV: every}), CPU)
    assert found[PROJ].spread == pytest.approx(4 / HIDDEN, rel=0.05)
    assert found[QKV].spread == pytest.approx(1, rel=0.05)


def test_progress_names_layers_and_may_stop(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, tiny_flux())
    events: list[Progress] = []
    measure(plan, None, CPU, events.append)
    assert events[-1].done == events[-1].total and events[-1].index == len(plan.of("quantize"))

    def stop(event: Progress) -> None:
        if event.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(plan, None, CPU, stop)


def test_broken_weights_are_named(tmp_path: Path) -> None:
    tensors = tiny_flux()
    tensors[f"{PROJ}.weight"][3, 5] = float("nan")
    with pytest.raises(TpecError, match=PROJ):
        measure(plan_of(tmp_path, tensors), None, CPU)


def test_expected_shares(tmp_path: Path) -> None:
    """They sum up to one; per byte attention's output matters most, and text little."""
    plan = plan_of(tmp_path, tiny_flux())
    shares = expected(plan, measure(plan, None, CPU))
    assert sum(shares.values()) == pytest.approx(1)
    size = {layer.linear: layer.info.items for layer in plan.of("quantize")}
    density = {name: share / size[name] for name, share in shares.items()}
    assert max(density, key=density.get) == PROJ
    assert density["double_blocks.0.txt_attn.proj"] < 0.2 * density[PROJ]


def test_layers_that_a_calibration_does_not_know_are_put_among_the_others(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, tiny_flux())
    names = [layer.linear for layer in plan.of("quantize")]
    plain = {name: Measured(7e-4) for name in names}
    known = {name: Measured(7e-4, 5e-4, 5e-4, 1.0, 1000) for name in names}
    base, mixed = expected(plan, plain), expected(plan, known | {QKV: Measured(7e-4)})
    assert mixed[QKV] / mixed[PROJ] == pytest.approx(base[QKV] / base[PROJ], rel=1e-6)
    louder = expected(plan, known | {QKV: Measured(7e-4, 2e-3, 5e-4, 1.0, 1000)})
    assert louder[QKV] / louder[PROJ] == pytest.approx(4 * base[QKV] / base[PROJ], rel=1e-6)


def test_zero_weights_cost_nothing(tmp_path: Path) -> None:
    tensors = weights(flux_shapes(HIDDEN, 1, 1))
    tensors[f"{PROJ}.weight"].zero_()
    plan = plan_of(tmp_path, tensors)
    assert expected(plan, measure(plan, None, CPU))[PROJ] == 0
