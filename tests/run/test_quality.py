"""Extra size is spent where it buys most, and said so."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import generator, load, save_flux, tiny_flux

from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import Plan, make_plan
from tpec.run.choices.losses import measure
from tpec.run.choices.quality import Quality, choose, find_quality, with_quality
from tpec.run.pipeline import quantize, settle
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration, hash_layers
from tpec.statistics.inputs import Gram, HeldInputs

CPU = torch.device("cpu")
PROJ = "double_blocks.0.img_attn.proj"


def plan_of(folder: Path, **settings: object) -> Plan:
    return make_plan(open_checkpoint(save_flux(folder)), Settings(**settings))


def bought(plan: Plan) -> Quality:
    return find_quality(plan, measure(plan, None, CPU))


def quantized_layers(path: Path) -> set[str]:
    return {name.removesuffix(".weight") for name, tensor in load(path).items()
            if tensor.dtype == torch.float8_e4m3fn and tensor.dim() == 2}


def test_chooses_best_gain_within_budget() -> None:
    costs = {"small": 1, "large": 10, "other": 4, "free": 0}
    assert choose({"small": 3.0, "large": 2.0, "other": 1.0, "free": 0.1}, costs, 5) == {"small", "other", "free"}
    assert choose({"small": 3.0, "large": 2.0, "other": 1.0, "free": 0.1}, costs, 0) == {"free"}
    # Best for its size first would leave no room for what is worth more.
    assert choose({"a": 1.1, "b": 9.0}, {"a": 1, "b": 10}, 10) == {"b"}


def test_choice_is_nearly_the_best() -> None:
    """Against all subsets of small random cases."""
    source = generator()
    for _ in range(30):
        gains = {str(at): value for at, value in enumerate(torch.rand(8, generator=source).tolist())}
        costs = {str(at): value for at, value in enumerate(torch.randint(1, 20, (8,), generator=source).tolist())}
        names = choose(gains, costs, 30)
        assert sum(costs[name] for name in names) <= 30
        best = max(sum(gains[name] for name in subset) for count in range(9) for subset in combinations(gains, count)
                   if sum(costs[name] for name in subset) <= 30)
        assert sum(gains[name] for name in names) >= 0.9 * best


def test_plan_keeps_what_matters_and_says_what_it_buys(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, keep_quality=5)
    settled = settle(plan, None, CPU)
    more = {layer.linear for layer in plan.of("quantize")} - {layer.linear for layer in settled.of("quantize")}
    assert PROJ in more
    assert 0 < settled.output_nbytes - plan.output_nbytes <= 0.05 * plan.output_nbytes
    sentence, = settled.bought
    assert f"{len(more)} of" in sentence and "x the expected error" in sentence and sentence in settled.summary()
    assert next(layer.reason for layer in settled.tensors if layer.linear == PROJ).startswith("kept for quality")
    assert settle(settled, None, CPU) is settled
    plain = plan_of(tmp_path)
    assert settle(plain, None, CPU) is plain


def test_more_size_buys_more(tmp_path: Path) -> None:
    after = []
    for percent in (0.5, 5, 20, 60):
        quality = bought(plan_of(tmp_path, keep_quality=percent))
        assert quality.nbytes <= percent / 100 * plan_of(tmp_path).output_nbytes
        after.append(quality.after)
    assert after == sorted(after, reverse=True) and after[0] <= 1 and after[-1] < 0.9


def test_too_little_and_too_much(tmp_path: Path) -> None:
    assert "no layer is small enough" in bought(plan_of(tmp_path, keep_quality=0.01)).text()
    with pytest.raises(TpecError, match="leaves no layer"):
        bought(plan_of(tmp_path, keep_quality=90, include="never"))
    for percent in (-1.0, 91.0, float("nan")):
        with pytest.raises(TpecError, match="from 0 to 90"):
            Settings(keep_quality=percent)


def test_what_the_user_includes_stays(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, keep_quality=30, include=r"img_attn\.proj\.weight$")
    assert PROJ not in bought(plan).kept


def test_a_run_spends_it(tmp_path: Path) -> None:
    """The engine's own entry does, whoever made the plan; the file verifies and the report has the sentence."""
    from tpec.check.verify import verify

    plan, output = plan_of(tmp_path, keep_quality=5), tmp_path / "q.safetensors"
    report = quantize(plan, output)
    kept = {layer.linear for layer in plan.of("quantize")} - quantized_layers(output)
    assert PROJ in kept and len(report.layers) == len(plan.of("quantize")) - len(kept)
    assert any("keep_quality 5 %" in note for note in report.notes)
    assert verify(plan.checkpoint.path, output).ok
    original, result = load(plan.checkpoint.path), load(output)
    assert all(torch.equal(original[f"{name}.weight"], result[f"{name}.weight"]) for name in kept)


def test_float32_layers_cost_more(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({name: tensor.float() for name, tensor in tiny_flux().items()}, path)
    plan = make_plan(open_checkpoint(path), Settings(keep_quality=5))
    quality = bought(plan)
    assert quality.nbytes == 3 * sum(layer.info.items for layer in plan.of("quantize") if layer.linear in quality.kept)
    assert with_quality(plan, quality).output_nbytes == plan.output_nbytes + quality.nbytes


def test_calibration_of_another_model(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, keep_quality=5)
    stats = HeldInputs(torch.zeros(7), 1.0, 10, Gram(torch.eye(7)))
    with pytest.raises(TpecError, match="of another model"):
        settle(plan, Calibration({"a": stats}, {PROJ: "a"}, hash_layers({})), CPU)


def test_reading_aloud() -> None:
    quality = Quality(5, ("a",), 2_500_000, {"a": 0.19, "b": 0.81})
    assert quality.after == pytest.approx(0.9)
    assert quality.text() == ("keep_quality 5 %: 1 of 2 layers more stay in high precision, 2.5 MB, for 0.90 x the "
                              "expected error")
