"""Statistics of real inputs: merging, what they do to a run, and that those of other models are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import HIDDEN, load, names_in, save_flux, sha256
from small_calibrations import LAYER, both, flux_calibration, flux_plan, rows, stats

from tpec.check.verify import verify
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.rounding.grid import decode
from tpec.run.fit import check_calibration
from tpec.run.pipeline import quantize
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration, hash_layers, merge
from tpec.statistics.inputs import Summary
from tpec.statistics.storage import open_calibration, save_calibration


def test_merge_is_that_of_all_rows() -> None:
    first, second = both(0, 300), both(1, 900)
    merged = merge(first, second)
    everything = torch.cat([rows(300, 16, 0), rows(900, 16, 1)]).double()
    gram = merged.groups["a"].second_moment().double()
    assert torch.allclose(gram, everything.T @ everything / 1200, rtol=1e-4, atol=1e-4)
    assert torch.allclose(merged.groups["a"].mean.double(), everything.mean(0), atol=1e-5)
    assert (merged.groups["a"].tokens, merged.runs) == (1200, 4)
    assert merged.groups["a"].absmax == everything.abs().max().float().item()
    wide = torch.cat([rows(300, 64, 0), rows(900, 64, 1)]).double()
    moment, exact = merged.groups["wide"].second_moment().double(), wide.T @ wide / 1200
    assert torch.allclose(moment.diagonal(), exact.diagonal(), rtol=1e-3)
    assert (moment - exact).norm() / exact.norm() < 0.05


def test_merge_refuses_other_models() -> None:
    first = both()
    for second in (replace(first, layers_hash="x"), replace(first, layers={"a": "a"}),
                   replace(first, groups={"a": stats(32), "wide": first.groups["wide"]}),
                   replace(first, groups={"a": stats(16, sketch=True), "wide": first.groups["wide"]})):
        with pytest.raises(TpecError, match="two calibrations"):
            merge(first, second)


def test_group_that_is_missing_is_refused() -> None:
    with pytest.raises(TpecError, match="names a group 'gone'"):
        Calibration({"a": stats(8)}, {"x": "gone"}, "h")


def test_layer_hash_follows_names_and_shapes() -> None:
    plain = hash_layers({"a": (2, 3), "b": (4, 5)})
    assert plain == hash_layers([("b", (4, 5)), ("a", (2, 3))])
    assert len({plain, hash_layers({"a": (2, 3)}), hash_layers({"a": (3, 2), "b": (4, 5)}),
                hash_layers({"c": (2, 3), "b": (4, 5)})}) == 4


def test_digest_follows_the_content() -> None:
    calibration = both()
    other = both(seed=1)
    wide = calibration.groups["wide"]
    vectors, values, rest = (part.clone() for part in wide.moment)
    vectors[0, 0] += 1
    turned = replace(calibration, groups=calibration.groups | {
        "wide": replace(wide, moment=Summary(vectors, values, rest))})
    assert len({c.digest() for c in (calibration, other, turned, replace(calibration, layers={"a": "a"}))}) == 4


def output_error(source: Path, result: Path, layer: str) -> float:
    """Relative error of the layer's output, bias included, on inputs held out."""
    before, after = load(source), load(result)
    weight = before[f"{layer}.weight"].float()
    x = rows(3000, weight.shape[1], seed=5)
    restored = decode(after[f"{layer}.weight"], after[f"{layer}.weight_scale"])
    exact = x @ weight.T + before[f"{layer}.bias"].float()
    return ((x @ restored.T + after[f"{layer}.bias"].float() - exact).norm() / exact.norm()).item()


def test_calibrated_layers_are_much_better_on_such_inputs(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    near = make_plan(plan.checkpoint, Settings(method="nearest"))
    report = quantize(plan, tmp_path / "c", calibration=flux_calibration(plan))
    quantize(near, tmp_path / "n")
    assert {layer.metric for layer in report.layers} == {"activation"}
    source = tmp_path / "model.safetensors"
    for layer in (LAYER, "double_blocks.0.img_mlp.2"):
        assert output_error(source, tmp_path / "c", layer) < 0.6 * output_error(source, tmp_path / "n", layer)
    assert verify(source, tmp_path / "c").ok
    assert all(layer.principal_after is None for layer in report.layers)


def test_bias_takes_the_mean_error_up(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    quantize(plan, tmp_path / "c", calibration=flux_calibration(plan))
    before, after = load(tmp_path / "model.safetensors"), load(tmp_path / "c")
    mean = stats(HIDDEN, 4000).mean
    restored = decode(after[f"{LAYER}.weight"], after[f"{LAYER}.weight_scale"])
    error = (restored - before[f"{LAYER}.weight"].float()) @ mean
    shift = after[f"{LAYER}.bias"].float() - before[f"{LAYER}.bias"].float()
    assert shift.abs().max() > 0
    assert (error + shift).norm() < 0.1 * error.norm()


def test_calibration_of_some_layers(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    report = quantize(plan, tmp_path / "c", calibration=flux_calibration(plan, "single_blocks"))
    assert {layer.name.split(".")[0] for layer in report.layers if layer.metric == "activation"} == {"single_blocks"}
    assert {layer.metric for layer in report.layers if layer.name.startswith("double")} == {"weight"}


def test_lanes_give_the_same_bytes_with_calibration(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    calibration = flux_calibration(plan)
    quantize(plan, tmp_path / "a", calibration=calibration)
    quantize(plan, tmp_path / "b", calibration=calibration, devices=("cpu", "cpu"))
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


def test_resume_with_other_statistics_is_refused(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)

    def stop(event) -> None:
        if event.index == 4:
            raise KeyboardInterrupt

    calibration = flux_calibration(plan)
    with pytest.raises(KeyboardInterrupt):
        quantize(plan, tmp_path / "q", calibration=calibration, progress=stop, resume=True, sync_bytes=1)
    with pytest.raises(TpecError, match="a setting changed"):
        quantize(plan, tmp_path / "q", calibration=flux_calibration(plan, tokens=3000), resume=True)
    with pytest.raises(TpecError, match="a setting changed"):
        quantize(plan, tmp_path / "q", resume=True)
    quantize(plan, tmp_path / "q", calibration=calibration, resume=True)
    quantize(plan, tmp_path / "whole", calibration=calibration)
    assert sha256(tmp_path / "q") == sha256(tmp_path / "whole")


def test_calibration_of_another_model_is_refused(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    foreign = replace(flux_calibration(plan), layers={"other.layer": str(HIDDEN)})
    narrow = Calibration({"g": stats(16)}, {LAYER: "g"}, "h")
    for calibration, words in ((foreign, "knows none of the 13 layers"), (narrow, "reads 16 values, that of")):
        with pytest.raises(TpecError, match=f"calibration is of another model.*{words}"):
            quantize(plan, tmp_path / "q", calibration=calibration)
        assert names_in(tmp_path) == {"model.safetensors"}
    assert check_calibration(plan, flux_calibration(plan)) == tuple(layer.linear for layer in plan.of("quantize"))


def test_calibration_of_a_smaller_relative_is_refused(tmp_path: Path) -> None:
    """Its layers have the names and widths of some of the model's."""
    small = flux_calibration(flux_plan(tmp_path))
    plan = make_plan(open_checkpoint(save_flux(tmp_path, "large.safetensors", single=2)), Settings())
    with pytest.raises(TpecError, match="another model: that one had no layer 'single_blocks.1.*large.safetensors has"):
        quantize(plan, tmp_path / "q", calibration=small)
    report = quantize(plan, tmp_path / "q", calibration=replace(small, shapes={}))
    assert "3 layers have no statistics" in report.notes[0]
    included = make_plan(plan.checkpoint, Settings(include="single_blocks.1"))
    assert len(check_calibration(included, small)) == 13


def test_calibration_of_another_output_width_is_refused(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    calibration = flux_calibration(plan)
    other = replace(calibration, shapes=calibration.shapes | {LAYER: (768, HIDDEN)})
    with pytest.raises(TpecError, match=f"'{LAYER}' is 768 x 128, that of model.safetensors 896 x 128"):
        quantize(plan, tmp_path / "q", calibration=other)
    assert names_in(tmp_path) == {"model.safetensors"}


def test_layers_without_inputs_are_no_other_model(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    calibration = flux_calibration(plan)
    seen = {name: group for name, group in calibration.layers.items() if name != LAYER}
    assert len(check_calibration(plan, replace(calibration, layers=seen))) == 12


def test_calibration_fits_the_full_checkpoint_too(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path)
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in load(plan.checkpoint.path).items()}
    save_file(tensors | {"vae.decoder.conv_in.weight": torch.zeros(2, 2, 3, 3)}, tmp_path / "full")
    full = make_plan(open_checkpoint(tmp_path / "full"), Settings())
    quantize(full, tmp_path / "q", calibration=flux_calibration(plan, tokens=6000))
    record = json.loads(open_checkpoint(tmp_path / "q").metadata["tpec_calibrated"])
    assert set(record) == {layer.linear for layer in full.of("quantize")}
    assert verify(tmp_path / "full", tmp_path / "q").corrected == 13


@pytest.mark.parametrize(("tokens", "corrected"), [(6000, 13), (200, 0)])
def test_header_says_what_was_calibrated(tmp_path: Path, tokens: int, corrected: int) -> None:
    """Few tokens do not steer the bias, so it stays."""
    plan = flux_plan(tmp_path)
    calibration = flux_calibration(plan, tokens=tokens)
    quantize(plan, tmp_path / "q", calibration=calibration)
    record = json.loads(open_checkpoint(tmp_path / "q").metadata["tpec_calibrated"])
    assert set(record) == {layer.linear for layer in plan.of("quantize")}
    assert sum(length is not None for length in record.values()) == corrected
    if corrected:
        assert record[LAYER] == pytest.approx(calibration.stats(LAYER).mean.norm().item(), rel=1e-3)
    result = verify(tmp_path / "model.safetensors", tmp_path / "q")
    assert result.ok and result.corrected == corrected
    for settings in (Settings(), Settings(method="nearest")):
        quantize(make_plan(plan.checkpoint, settings), tmp_path / "free", overwrite=True)
        assert open_checkpoint(tmp_path / "free").metadata["tpec_calibrated"] == "{}"


def test_input_scales_for_fp8_matmul(tmp_path: Path) -> None:
    plan = flux_plan(tmp_path, matmul="fp8")
    calibration = flux_calibration(plan)
    spiky = replace(calibration.groups[str(HIDDEN)], absmax=1e9)
    calibration = replace(calibration, groups=calibration.groups | {"spiky": spiky},
                          layers={**calibration.layers, LAYER: "spiky"})
    quantize(plan, tmp_path / "q", calibration=calibration)
    tensors = load(tmp_path / "q")
    name = "double_blocks.0.img_attn.qkv"
    assert tensors[f"{name}.input_scale"].item() == pytest.approx(calibration.groups[str(HIDDEN)].absmax / 448)
    assert "full_precision_matrix_mult" not in bytes(tensors[f"{name}.comfy_quant"].tolist()).decode()
    assert f"{LAYER}.input_scale" not in tensors
    assert "full_precision_matrix_mult" in bytes(tensors[f"{LAYER}.comfy_quant"].tolist()).decode()
    assert verify(tmp_path / "model.safetensors", tmp_path / "q").ok


def test_calibration_by_the_command_line(tmp_path: Path) -> None:
    from tpec.command.cli import main

    plan = flux_plan(tmp_path)
    path = save_calibration(flux_calibration(plan), tmp_path / "c.safetensors")
    source, output = str(plan.checkpoint.path), str(tmp_path / "q.safetensors")
    assert main(["quantize", source, "-o", output, "--calibration", str(path), "--quiet"]) == 0
    quantize(plan, tmp_path / "direct", calibration=open_calibration(path).in_memory())
    assert sha256(tmp_path / "q.safetensors") == sha256(tmp_path / "direct")
