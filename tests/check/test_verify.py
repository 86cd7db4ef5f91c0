"""Every kind of damage to a result is found."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import generator, load, same_bits, save_flux, t5xxl_shapes, weights

from tpec.check.verify import VerifyResult, verify
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.run.pipeline import quantize
from tpec.settings import FORMATS, Settings
from tpec.statistics.calibration import Calibration
from tpec.statistics.inputs import Gram, HeldInputs

LAYER = "single_blocks.0.linear1"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source and its result in every format."""
    folder = tmp_path_factory.mktemp("verify")
    source = save_flux(folder, extra={"empty": torch.zeros(0), "scalar": torch.tensor(1.0)})
    for form in FORMATS:
        quantize(make_plan(open_checkpoint(source), Settings(method="nearest", format=form)), folder / form)
    return folder


def damaged(folder: Path, output: Path, change: Callable[[Tensors], object], form: str = "comfy_quant",
            metadata: dict[str, str] | None = None) -> VerifyResult:
    tensors = load(folder / form)
    change(tensors)
    known = dict(open_checkpoint(folder / form).metadata)
    save_file(tensors, output, known if metadata is None else metadata)
    return verify(folder / "model.safetensors", output)


def scale_names(tensors: Tensors) -> list[str]:
    return [name for name in (f"{LAYER}.weight_scale", f"{LAYER}.scale_weight") if name in tensors]


def times(factor: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensors[name] * factor for name in scale_names(tensors)})


def put(name: str, value: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: value})


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def nan_code(tensors: Tensors) -> None:
    tensors[f"{LAYER}.weight"].view(torch.uint8)[3, 3] = 0x7F


def shuffled(tensors: Tensors) -> None:
    tensors[f"{LAYER}.weight"] = tensors[f"{LAYER}.weight"].view(torch.uint8).roll(1, 0).view(torch.float8_e4m3fn)


def one_bit(name: str) -> Callable[[Tensors], object]:
    def flip(tensors: Tensors) -> None:
        tensors[name].view(torch.uint8).view(-1)[0] ^= 1

    return flip


@pytest.mark.parametrize("form", FORMATS)
def test_results_are_good(folder: Path, tmp_path: Path, form: str) -> None:
    result = verify(folder / "model.safetensors", folder / form)
    assert result.ok, result.text()
    assert len(result.errors) == 13
    assert result.kept == len(load(folder / "model.safetensors")) - 13
    assert "13 FP8 layers read back" in result.text()
    assert damaged(folder, tmp_path / "same", lambda tensors: None, form).ok


DAMAGE = {
    "flipped scale": (times(-1.0), f"{LAYER} has no single positive float32 scale"),
    "zero scale": (times(0.0), f"{LAYER} has no single positive"),
    "NaN scale": (times(float("nan")), f"{LAYER} has no single positive"),
    "infinite scale": (times(float("inf")), f"{LAYER} has no single positive"),
    "doubled scale": (times(2.0), f"{LAYER} is off by"),
    "lost scale": (times(1e6), f"{LAYER} is off by"),
    "NaN code": (nan_code, f"{LAYER} is off by nan"),
    "shuffled rows": (shuffled, f"{LAYER} is off by"),
    "missing weight": (drop(f"{LAYER}.weight"), f"{LAYER}.weight is missing"),
    "missing bias": (drop(f"{LAYER}.bias"), f"{LAYER}.bias is missing"),
    "missing kept tensor": (drop("img_in.weight"), "img_in.weight is missing"),
    "changed kept tensor": (one_bit("img_in.weight"), "img_in.weight should be unchanged"),
    "changed norm": (one_bit("single_blocks.0.norm.key_norm.scale"), "key_norm.scale should be unchanged"),
    "changed scalar": (put("scalar", torch.tensor(2.0)), "scalar should be unchanged"),
    "kept tensor in another dtype": (lambda t: t.update({"img_in.weight": t["img_in.weight"].float()}),
                                     "img_in.weight changed its dtype from BF16 to F32"),
    "kept tensor in another shape": (lambda t: t.update({"img_in.bias": t["img_in.bias"][:3].clone()}),
                                     "img_in.bias has shape"),
    "norm as scaled FP8": (lambda t: t.update({"single_blocks.0.norm.key_norm.scale": torch.ones(128).to(
        torch.float8_e4m3fn), "single_blocks.0.norm.key_norm.scale.weight_scale": torch.ones(())}),
                           "no weight of a Linear"),
    "kept tensor as plain FP8": (lambda t: t.update({"img_in.weight": t["img_in.weight"].to(torch.float8_e4m3fn)}),
                                 "img_in has no single positive"),
    "norm as FP8": (put("single_blocks.0.norm.key_norm.scale", torch.ones(128).to(torch.float8_e4m3fn)),
                    "key_norm.scale is in FP8 but"),
    "empty tensor as FP8": (put("empty", torch.zeros(0).to(torch.float8_e4m3fn)), "empty is in FP8 but"),
    "NaN bias": (put(f"{LAYER}.bias", torch.full((896,), float("nan")).bfloat16()), f"{LAYER}.bias holds NaN"),
    "bias of an FP8 layer": (one_bit(f"{LAYER}.bias"), f"{LAYER}.bias changed, and the header does not call it"),
    "bias of a kept layer": (one_bit("img_in.bias"), "img_in.bias should be unchanged"),
    "unknown tensor": (put("stray.weight", torch.zeros(2)), "stray.weight is in the result but not in the original"),
    "scale of no layer": (put("stray.weight_scale", torch.ones(())), "stray.weight_scale is in the result"),
}


@pytest.mark.parametrize("form", ["comfy_quant", "universal"])
@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found(folder: Path, tmp_path: Path, case: str, form: str) -> None:
    change, words = DAMAGE[case]
    result = damaged(folder, tmp_path / "bad", change, form)
    assert not result.ok
    assert any(words in fault for fault in result.faults), result.faults
    assert result.text().startswith(f"{len(result.faults)} fault(s):")


def test_bias_may_be_anything_finite_where_nothing_is_recorded(folder: Path, tmp_path: Path) -> None:
    """Files of earlier versions and of other programs do not say which layers were calibrated."""
    bias = put(f"{LAYER}.bias", torch.ones(896).bfloat16())
    assert damaged(folder, tmp_path / "old", bias, metadata={"other": "x"}).ok
    kept = damaged(folder, tmp_path / "old", one_bit("img_in.bias"), metadata={"other": "x"})
    assert kept.faults == ["img_in.bias should be unchanged and is not."]
    bias = put(f"{LAYER}.bias", torch.full((896,), float("inf")).bfloat16())
    assert damaged(folder, tmp_path / "old", bias, metadata={"other": "x"}).faults == [
        f"{LAYER}.bias holds NaN or infinite values."]


@pytest.mark.parametrize("text", ["", "[]", "3", '{"x": "y"}', "[" * 100_000])
def test_unreadable_record_of_calibrated_layers_is_found(folder: Path, tmp_path: Path, text: str) -> None:
    result = damaged(folder, tmp_path / "bad", lambda tensors: None, metadata={"tpec_calibrated": text})
    assert result.faults == ["The header's tpec_calibrated cannot be read."]


@pytest.fixture(scope="module")
def corrected(folder: Path) -> Path:
    """A result whose single block was calibrated; its biases make up for the mean error. Biases are of usual size."""
    make = generator(1)
    plan = make_plan(open_checkpoint(folder / "model.safetensors"), Settings())
    groups, layers = {}, {}
    for layer in plan.of("quantize"):
        if layer.linear.startswith("single_blocks"):
            width = layer.shape[1]
            x = torch.randn(20 * width, width, generator=make) + torch.randn(width, generator=make) / 2
            groups[layer.linear] = HeldInputs(x.mean(0), x.abs().max().item(), len(x), Gram(x.T @ x / len(x)))
            layers[layer.linear] = layer.linear
    quantize(plan, folder / "calibrated", calibration=Calibration(groups, layers, "h"))
    return folder


def test_corrected_biases_are_good(corrected: Path) -> None:
    result = verify(corrected / "model.safetensors", corrected / "calibrated")
    assert result.ok, result.text()
    assert result.corrected == 3 and "3 biases are corrected" in result.text()
    assert result.kept == len(load(corrected / "model.safetensors")) - 13 - 3
    record = json.loads(open_checkpoint(corrected / "calibrated").metadata["tpec_calibrated"])
    assert len(record) == 3 and all(5 < length < 20 for length in record.values())


def one_value(bias: torch.Tensor) -> torch.Tensor:
    bias[5] += 0.5
    return bias


BIASES = {"lost": torch.zeros_like, "negative": torch.neg, "another order": lambda bias: bias.roll(1),
          "another size": lambda bias: bias * 1.5, "one value": one_value, "ones": torch.ones_like}


@pytest.mark.parametrize("case", BIASES)
def test_changes_that_no_rounding_explains_are_found(corrected: Path, tmp_path: Path, case: str) -> None:
    result = damaged(corrected, tmp_path / "bad",
                     lambda tensors: tensors.update({f"{LAYER}.bias": BIASES[case](tensors[f"{LAYER}.bias"])}),
                     "calibrated")
    assert len(result.faults) == 1
    assert f"{LAYER}.bias changed by more than its layer's rounding explains" in result.faults[0]


def test_bias_of_a_layer_without_calibration_stays(corrected: Path, tmp_path: Path) -> None:
    name = "double_blocks.0.img_mlp.0.bias"
    result = damaged(corrected, tmp_path / "bad", one_bit(name), "calibrated")
    assert result.faults == [f"{name} changed, and the header does not call it corrected."]


def test_order_of_the_tensors_does_not_matter(corrected: Path, tmp_path: Path) -> None:
    source = load(corrected / "model.safetensors")
    save_file({name: source[name] for name in sorted(source, reverse=True)}, tmp_path / "model.safetensors")
    assert verify(tmp_path / "model.safetensors", corrected / "calibrated").corrected == 3


@pytest.mark.parametrize("form", ["comfy_quant", "universal"])
def test_missing_comfy_quant_is_found(folder: Path, tmp_path: Path, form: str) -> None:
    result = damaged(folder, tmp_path / "bad", drop(f"{LAYER}.comfy_quant"), form)
    assert [fault for fault in result.faults if LAYER in fault and "comfy_quant" in fault]


@pytest.mark.parametrize("content", [b"{}", b'{"format": "int8"}', b"not json", b"[1]",
                                     b'{"format": "float8_e4m3fn"}\0'])
def test_bad_comfy_quant_is_found(folder: Path, tmp_path: Path, content: bytes) -> None:
    value = torch.tensor(list(content), dtype=torch.uint8)
    result = damaged(folder, tmp_path / "bad", put(f"{LAYER}.comfy_quant", value))
    assert [fault for fault in result.faults if f"{LAYER}.comfy_quant does not say" in fault]


@pytest.mark.parametrize("value", [torch.ones(3), torch.tensor(5, dtype=torch.uint8), torch.tensor([-1, 700])])
def test_comfy_quant_that_is_no_text_is_found(folder: Path, tmp_path: Path, value: torch.Tensor) -> None:
    result = damaged(folder, tmp_path / "bad", put(f"{LAYER}.comfy_quant", value))
    assert [fault for fault in result.faults if f"{LAYER}.comfy_quant does not say" in fault]


def test_missing_legacy_marker_is_found(folder: Path, tmp_path: Path) -> None:
    result = damaged(folder, tmp_path / "bad", drop("scaled_fp8"), "scaled_fp8")
    assert any("scaled_fp8" in fault for fault in result.faults)


def test_two_different_scales_are_found(folder: Path, tmp_path: Path) -> None:
    result = damaged(folder, tmp_path / "bad", put(f"{LAYER}.scale_weight", torch.ones(1)), "universal")
    assert any("no single positive float32 scale" in fault for fault in result.faults)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"format_version": "1.0"}'])
def test_unreadable_header_metadata_is_found(folder: Path, tmp_path: Path, text: str) -> None:
    result = damaged(folder, tmp_path / "bad", lambda tensors: None, "universal", {"_quantization_metadata": text})
    assert any("_quantization_metadata" in fault for fault in result.faults)


def test_layer_missing_from_the_header_is_found(folder: Path, tmp_path: Path) -> None:
    metadata = dict(open_checkpoint(folder / "universal").metadata)
    header = json.loads(metadata["_quantization_metadata"])
    del header["layers"][LAYER]
    metadata["_quantization_metadata"] = json.dumps(header)
    result = damaged(folder, tmp_path / "bad", lambda tensors: None, "universal", metadata)
    assert result.faults == [f"{LAYER} is not listed in the header's _quantization_metadata."]


def test_file_without_fp8_is_no_result(folder: Path) -> None:
    result = verify(folder / "model.safetensors", folder / "model.safetensors")
    assert result.faults == ["No layer is in FP8."]


def test_truncated_result_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes((folder / "universal").read_bytes()[:-7])
    with pytest.raises(TpecError, match="cut short"):
        verify(folder / "model.safetensors", path)


def test_tiny_and_huge_weights_are_judged_by_their_own_size(tmp_path: Path) -> None:
    source = tmp_path / "a"
    values = torch.linspace(-1, 1, 64).reshape(8, 8)
    save_file({"x.weight": (values * 1e-30).bfloat16(), "y.weight": (values * 1e38).bfloat16()}, source)
    described = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    result = {}
    for name, size in (("x", 1e-30), ("y", 1e38)):
        result |= {f"{name}.weight": (values * 448).to(torch.float8_e4m3fn), f"{name}.comfy_quant": described.clone(),
                   f"{name}.weight_scale": torch.tensor(size / 448)}
    save_file(result, tmp_path / "good")
    good = verify(source, tmp_path / "good")
    assert good.ok, good.faults
    assert all(0.005 < error < 0.04 for error in good.errors.values())
    result["x.weight"] = torch.zeros(8, 8).to(torch.float8_e4m3fn)
    save_file(result, tmp_path / "bad")
    assert [fault for fault in verify(source, tmp_path / "bad").faults if fault.startswith("x is off by 1.000")]


def test_a_lost_tensor_is_missed_whatever_its_name(folder: Path, tmp_path: Path) -> None:
    """Only what the header lists may be absent: here a kept tensor named as a T5's decoder, in a Flux."""
    source = save_flux(tmp_path, extra={"decoder.table": torch.zeros(4), "lm_head.weight": torch.zeros(4, 4)})
    quantize(make_plan(open_checkpoint(source), Settings(method="nearest")), tmp_path / "q")
    tensors, metadata = load(tmp_path / "q"), dict(open_checkpoint(tmp_path / "q").metadata)
    assert verify(source, tmp_path / "q").ok
    for name in ("decoder.table", "lm_head.weight"):
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / "lost", metadata)
        assert f"{name} is missing." in verify(source, tmp_path / "lost").faults


@pytest.mark.parametrize("prefix", ["", "text_encoders.t5xxl.transformer."])
def test_drops_are_known_from_the_header(tmp_path: Path, prefix: str) -> None:
    shapes = {prefix + name: shape for name, shape in t5xxl_shapes().items()}
    source = tmp_path / "t5.safetensors"
    save_file(weights(shapes), source)
    plan = make_plan(open_checkpoint(source), Settings(method="nearest", t5xxl=True))
    quantize(plan, tmp_path / "q")
    dropped = [layer.name for layer in plan.of("drop")]
    assert dropped and verify(source, tmp_path / "q").ok
    tensors, metadata = load(tmp_path / "q"), dict(open_checkpoint(tmp_path / "q").metadata)
    recipe = json.loads(metadata["tpec"])
    assert sorted(recipe["dropped"]) == sorted(dropped)
    recipe["dropped"] = dropped[1:]
    save_file(tensors, tmp_path / "less", metadata | {"tpec": json.dumps(recipe)})
    assert verify(source, tmp_path / "less").faults == [f"{dropped[0]} is missing."]
    # A file of an earlier version, or of another program, does not list them.
    save_file(tensors, tmp_path / "other", {})
    assert not [fault for fault in verify(source, tmp_path / "other").faults if "missing" in fault]


def test_both_parts_of_a_checkpoint_quantized_one_after_the_other(tmp_path: Path) -> None:
    from tpec.command.demo import flux_shapes

    shapes = {f"model.diffusion_model.{name}": shape for name, shape in flux_shapes(128, 1, 1).items()}
    shapes |= {f"text_encoders.t5xxl.transformer.{name}": shape for name, shape in t5xxl_shapes().items()
               if not name.startswith(("decoder", "lm_head"))}
    source = tmp_path / "all.safetensors"
    save_file(weights(shapes), source)
    for order in ((False, True), (True, False)):
        for form in ("universal", "comfy_quant", "scaled_fp8"):
            steps = [source, tmp_path / "half.safetensors", tmp_path / "q.safetensors"]
            for at, t5xxl in enumerate(order):
                plan = make_plan(open_checkpoint(steps[at]), Settings(method="nearest", format=form, t5xxl=t5xxl))
                quantize(plan, steps[at + 1], overwrite=True)
                assert verify(steps[at], steps[at + 1]).ok
            result = verify(source, steps[2])
            assert result.ok, result.text()
            assert len(result.errors) == 13 + 24 * 7
            one = make_plan(open_checkpoint(source), Settings(method="nearest", format=form, part=("t5xxl",)))
            quantize(one, tmp_path / "one.safetensors", overwrite=True)
            first, second = load(steps[2]), load(tmp_path / "one.safetensors")
            assert first.keys() == second.keys()
            assert all(same_bits(first[name], second[name]) for name in first)
            tables = [json.loads(open_checkpoint(path).metadata.get("_quantization_metadata", "{}"))
                      for path in (steps[2], tmp_path / "one.safetensors")]
            assert tables[0] == tables[1]
            assert not tables[0] or tables[0]["layers"].keys() == result.errors.keys()
