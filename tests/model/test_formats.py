"""The three formats, key by key and byte by byte, as ComfyUI's loaders expect them."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from samples import load, save_flux, t5xxl_shapes, weights

from tpec import __version__
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.files.header import MAX_HEADER_BYTES
from tpec.model.formats import LayerOptions, make_layout
from tpec.model.plan import Plan, make_plan
from tpec.run.pipeline import quantize
from tpec.settings import Settings

LAYER = "single_blocks.0.linear1"
FULL = b'{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}'
FAST = b'{"format": "float8_e4m3fn"}'
#: What each format adds to one layer: key, dtype, shape.
SCALARS = {
    "universal": {"weight_scale": ("F32", ()), "scale_weight": ("F32", (1,)), "comfy_quant": ("U8", (len(FULL),))},
    "comfy_quant": {"weight_scale": ("F32", ()), "comfy_quant": ("U8", (len(FULL),))},
    "scaled_fp8": {"scale_weight": ("F32", (1,))},
}


def plan_of(folder: Path, prefix: str = "", **settings: object) -> Plan:
    source = save_flux(folder)
    if prefix:
        from safetensors.torch import save_file

        tensors = {prefix + name: tensor for name, tensor in load(source).items()}
        save_file(tensors | {"vae.decoder.conv_in.weight": torch.zeros(2, 2, 3, 3)}, source)
    return make_plan(open_checkpoint(source), Settings(method="nearest", **settings))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("form", SCALARS)
def test_keys_dtypes_and_shapes(tmp_path: Path, form: str, prefix: str) -> None:
    plan = plan_of(tmp_path, prefix, format=form)
    output = tmp_path / "q.safetensors"
    quantize(plan, output)
    expected: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in plan.tensors:
        expected[layer.name] = (layer.dtype, layer.shape)
        if layer.action == "quantize":
            expected[layer.name] = ("F8_E4M3", layer.shape)
            expected |= {f"{layer.linear}.{key}": value for key, value in SCALARS[form].items()}
    if form != "comfy_quant":
        expected[f"{prefix}scaled_fp8"] = ("F8_E4M3", (2,))
    written = {name: (info.dtype, info.shape) for name, info in open_checkpoint(output).tensors.items()}
    assert written == expected


@pytest.mark.parametrize("form", SCALARS)
def test_file_opens_with_the_reference_library(tmp_path: Path, form: str) -> None:
    plan = plan_of(tmp_path, format=form)
    output = tmp_path / "q.safetensors"
    quantize(plan, output)
    with safe_open(output, "pt") as file:
        assert file.metadata()["modelspec.title"] == "tiny"
        codes = file.get_tensor(f"{LAYER}.weight")
        key = "scale_weight" if form == "scaled_fp8" else "weight_scale"
        restored = codes.float() * file.get_tensor(f"{LAYER}.{key}")
        assert set(file.keys()) == open_checkpoint(output).tensors.keys()
    weight = load(tmp_path / "model.safetensors")[f"{LAYER}.weight"].float()
    scale = weight.abs().max() / 448
    assert torch.equal(codes.view(torch.uint8), (weight / scale).to(torch.float8_e4m3fn).view(torch.uint8))
    assert torch.equal(restored, codes.float() * scale)


@pytest.mark.parametrize(("matmul", "text", "marker"), [("full_precision", FULL, 2), ("fp8", FAST, 0)])
def test_matmul_is_said_in_every_form(tmp_path: Path, matmul: str, text: bytes, marker: int) -> None:
    output = tmp_path / "q.safetensors"
    quantize(plan_of(tmp_path, matmul=matmul), output)
    tensors = load(output)
    assert bytes(tensors[f"{LAYER}.comfy_quant"].tolist()) == text
    assert tensors["scaled_fp8"].shape == (marker,)
    assert tensors["scaled_fp8"].float().count_nonzero() == 0
    header = json.loads(open_checkpoint(output).metadata["_quantization_metadata"])
    assert header["format_version"] == "1.0"
    assert header["layers"][LAYER] == json.loads(text)
    assert len(header["layers"]) == 13


def test_only_universal_has_header_metadata_and_it_carries_the_prefix(tmp_path: Path) -> None:
    for form in SCALARS:
        layout = make_layout(plan_of(tmp_path, "model.diffusion_model.", format=form), {})
        metadata = json.loads(layout.header[8:])["__metadata__"]
        assert ("_quantization_metadata" in metadata) == (form == "universal")
        if form == "universal":
            layers = json.loads(metadata["_quantization_metadata"])["layers"]
            assert all(name.startswith("model.diffusion_model.") for name in layers)


def test_recipe_is_kept_without_paths(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, exclude="txt", top_k=3)
    metadata = json.loads(make_layout(plan, {}).header[8:])["__metadata__"]
    assert json.loads(metadata["tpec"]) == {
        "version": __version__, "source": "model.safetensors", "family": "flux", "method": "nearest",
        "format": "universal", "matmul": "full_precision", "exclude": "txt", "top_k": 3}
    assert str(tmp_path) not in json.dumps(metadata)


def test_header_is_compact_aligned_and_places_every_byte(tmp_path: Path) -> None:
    layout = make_layout(plan_of(tmp_path), {})
    (length,) = struct.unpack("<Q", layout.header[:8])
    assert (8 + length) % 8 == 0
    assert len(layout.header) == 8 + length
    at = 8 + length
    sizes = {"F64": 8, "F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}
    for entry in sorted(layout.entries.values(), key=lambda entry: entry.start):
        if entry.nbytes:
            assert entry.start == at
            assert (entry.start - 8 - length) % sizes[entry.dtype] == 0
        at += entry.nbytes
    assert at == layout.nbytes
    assert all(len(content) == layout.entries[name].nbytes for name, content in layout.constants.items())


@pytest.mark.parametrize(("form", "keys"), [
    ("universal", {"input_scale": (), "scale_input": (1,)}), ("comfy_quant", {"input_scale": ()}),
    ("scaled_fp8", {"scale_input": (1,)})])
def test_input_scale_of_calibration(tmp_path: Path, form: str, keys: dict[str, tuple[int, ...]]) -> None:
    layout = make_layout(plan_of(tmp_path, format=form, matmul="fp8"), {LAYER: LayerOptions(0.25, False)})
    found = {name.rpartition(".")[2]: entry for name, entry in layout.entries.items()
             if name.endswith(("input_scale", "scale_input"))}
    assert {key: entry.shape for key, entry in found.items()} == keys
    for key, entry in found.items():
        assert (entry.dtype, layout.constants[f"{LAYER}.{key}"]) == ("F32", struct.pack("<f", 0.25))


def test_layer_may_keep_full_precision_in_an_fp8_file(tmp_path: Path) -> None:
    layout = make_layout(plan_of(tmp_path, matmul="fp8"), {LAYER: LayerOptions(full_precision=True)})
    assert layout.constants[f"{LAYER}.comfy_quant"] == FULL
    assert layout.constants["single_blocks.0.linear2.comfy_quant"] == FAST


def published_t5(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Keys, dtypes and shapes that the published TPEC script writes with --t5xxl, the marker aside."""
    written: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if "decoder" in name or "lm_head" in name:
            continue
        kept = any(word in name for word in ("norm", "bias", "embed_tokens", "shared"))
        written[name] = ("BF16" if kept else "F8_E4M3", shape)
        if not kept:
            layer = name.removesuffix(".weight")
            written |= {f"{layer}.{key}": ("F32", (1,)) for key in ("scale_weight", "scale_input")}
    return written


def test_t5_in_the_legacy_format_is_what_the_published_script_writes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source, output = tmp_path / "t5.safetensors", tmp_path / "q.safetensors"
    shapes = t5xxl_shapes()
    save_file(weights(shapes), source)
    plan = make_plan(open_checkpoint(source), Settings(t5xxl=True, format="scaled_fp8", method="nearest"))
    report = quantize(plan, output)
    written = {name: (info.dtype, info.shape) for name, info in open_checkpoint(output).tensors.items()}
    # The published script's empty marker allows FP8 matmul; ours asks for full precision, which two elements mean.
    assert written.pop("scaled_fp8") == ("F8_E4M3", (2,))
    assert written == published_t5(shapes)
    tensors = load(output)
    for line in report.layers:
        assert tensors[f"{line.name}.scale_input"].item() == tensors[f"{line.name}.scale_weight"].item() == line.scale
    assert report.dropped == sum(name.startswith(("decoder.", "lm_head.")) for name in shapes)


def test_t5_that_allows_fp8_matmul_has_no_made_up_input_scale(tmp_path: Path) -> None:
    from samples import write_shapes

    path = write_shapes(tmp_path / "t5.safetensors", t5xxl_shapes())
    for form in SCALARS:
        plan = make_plan(open_checkpoint(path), Settings(t5xxl=True, format=form, matmul="fp8"))
        assert not [name for name in make_layout(plan, {}).entries if "scale_input" in name or "input_scale" in name]


def with_metadata(plan: Plan, metadata: dict[str, str]) -> Plan:
    return replace(plan, checkpoint=replace(plan.checkpoint, metadata=metadata))


@pytest.mark.parametrize("over", [-8, 0, 1, 5000])
def test_header_fits_every_reader(tmp_path: Path, over: int) -> None:
    """The largest of the source's own metadata goes first, and no more than is needed."""
    plan = plan_of(tmp_path)
    small = {"a": "\n" * 1000, "b": "x" * 1500}
    room = MAX_HEADER_BYTES - len(make_layout(with_metadata(plan, small | {"large": ""}), {}).header) + 8
    layout = make_layout(with_metadata(plan, small | {"large": "x" * (room - room % 8 + over)}), {})
    assert len(layout.header) - 8 <= MAX_HEADER_BYTES
    kept = json.loads(layout.header[8:])["__metadata__"]
    assert ("large" in kept) == (over <= 0)
    assert {"a", "b", "tpec", "_quantization_metadata"} <= kept.keys()
    assert [note.rpartition(": ")[2] for note in layout.notes] == (["large"] if over > 0 else [])


def test_header_that_is_too_large_without_metadata_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpec.files.layout.MAX_HEADER_BYTES", 5000)
    plan = with_metadata(plan_of(tmp_path), {"a": "x" * 3000, "tpec": "of an earlier run" * 1000})
    with pytest.raises(TpecError, match="bytes over the 5000 that safetensors allows: quantize fewer layers"):
        make_layout(plan, {})


T5_LAYER = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"


def full_layout(folder: Path, extra: dict[str, tuple[int, ...]], dtypes: dict[str, str], metadata: dict[str, str],
                **settings: object) -> dict[str, object]:
    """Header metadata of a full checkpoint's layout, one part of which is quantized already."""
    from samples import write_shapes

    from tpec.command.demo import flux_shapes

    shapes = {f"model.diffusion_model.{name}": shape for name, shape in flux_shapes(128, 1, 1).items()}
    shapes |= {f"text_encoders.t5xxl.transformer.{name}": shape for name, shape in t5xxl_shapes().items()}
    path = write_shapes(folder / "full.safetensors", shapes | extra, dtypes, metadata)
    layout = make_layout(make_plan(open_checkpoint(path), Settings(**settings)), {})
    return json.loads(layout.header[8:])["__metadata__"]


def test_tables_of_both_parts_are_merged(tmp_path: Path) -> None:
    table = {"_quantization_metadata": json.dumps({"layers": {T5_LAYER: {"format": "float8_e4m3fn", "mine": 1}}})}
    told = {f"{T5_LAYER}.comfy_quant": (2,), f"{T5_LAYER}.weight_scale": ()}
    dtypes = {f"{T5_LAYER}.weight": "F8_E4M3", f"{T5_LAYER}.comfy_quant": "U8", f"{T5_LAYER}.weight_scale": "F32"}
    for form in ("universal", "comfy_quant"):
        layers = json.loads(full_layout(tmp_path, told, dtypes, table, format=form)["_quantization_metadata"])["layers"]
        assert layers[T5_LAYER] == {"format": "float8_e4m3fn", "mine": 1} and len(layers) == 14
    # Beside a table ComfyUI no longer looks for the legacy marker of the diffusion model.
    assert "_quantization_metadata" not in full_layout(tmp_path, told, dtypes, table, format="scaled_fp8")
    with pytest.raises(TpecError, match="layers that only its header describes.*choose the format universal"):
        full_layout(tmp_path, {}, {f"{T5_LAYER}.weight": "F8_E4M3"}, table, format="scaled_fp8")


def test_no_table_beside_a_diffusion_model_in_the_legacy_form(tmp_path: Path) -> None:
    layer = "model.diffusion_model.single_blocks.0.linear1"
    legacy = {f"{layer}.scale_weight": (1,), "model.diffusion_model.scaled_fp8": (2,)}
    dtypes = {f"{layer}.weight": "F8_E4M3", f"{layer}.scale_weight": "F32",
              "model.diffusion_model.scaled_fp8": "F8_E4M3"}
    assert "_quantization_metadata" not in full_layout(tmp_path, legacy, dtypes, {}, t5xxl=True)
    old = {f"{T5_LAYER}.scale_weight": (1,), "text_encoders.t5xxl.transformer.scaled_fp8": (2,)}
    dtypes = {f"{T5_LAYER}.weight": "F8_E4M3", f"{T5_LAYER}.scale_weight": "F32",
              "text_encoders.t5xxl.transformer.scaled_fp8": "F8_E4M3"}
    assert "_quantization_metadata" in full_layout(tmp_path, old, dtypes, {})
