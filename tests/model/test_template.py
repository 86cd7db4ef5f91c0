"""The layer layout of published quantized files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import load, run_cli, save_flux, tiny_flux

from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.model.recipe import follow
from tpec.model.template import recipe_like
from tpec.settings import Settings

PROJ, QKV, IMG_IN = "double_blocks.0.img_attn.proj", "double_blocks.0.img_attn.qkv", "img_in"
FLAG = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}).encode()
FAST = json.dumps({"format": "float8_e4m3fn"}).encode()


def template(folder: Path, low: dict[str, dict[str, torch.Tensor]], prefix: str = "",
             more: dict[str, torch.Tensor] | None = None, metadata: dict[str, str] | None = None) -> Path:
    """A Flux file in which the layers of `low` are FP8, each with further tensors of its own."""
    tensors = {prefix + name: tensor for name, tensor in tiny_flux().items()} | (more or {})
    for layer, extra in low.items():
        tensors[f"{prefix}{layer}.weight"] = tensors[f"{prefix}{layer}.weight"].to(torch.float8_e4m3fn)
        tensors |= {f"{prefix}{layer}.{name}": tensor for name, tensor in extra.items()}
    save_file(tensors, folder / "published.safetensors", metadata)
    return folder / "published.safetensors"


def blob(content: bytes) -> torch.Tensor:
    return torch.tensor(list(content), dtype=torch.uint8)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_dtype_tells_not_the_scale(tmp_path: Path, prefix: str) -> None:
    """A dummy scale on a kept layer makes it no FP8 layer; names match across prefixes."""
    dummy = {f"{prefix}{QKV}.scale_weight": torch.ones(1)}
    path = template(tmp_path, {PROJ: {"scale_weight": torch.ones(1)}, IMG_IN: {}}, prefix, dummy)
    recipe = recipe_like(open_checkpoint(path))
    assert {name for name, choice in recipe.layers.items() if choice.format == "fp8"} == {PROJ, IMG_IN}
    plan = follow(make_plan(open_checkpoint(save_flux(tmp_path)), Settings()), recipe)
    assert {layer.linear for layer in plan.of("quantize")} == {PROJ, IMG_IN}
    assert "published.safetensors" in plan.summary()


def test_matmul_flags(tmp_path: Path) -> None:
    low = {PROJ: {"comfy_quant": blob(FLAG)}, QKV: {"comfy_quant": blob(FAST)}, IMG_IN: {"comfy_quant": blob(b"{")}}
    table = json.dumps({"format_version": "1.0", "layers": {"txt_in": {"full_precision_matrix_mult": True},
                                                            "double_blocks.0.txt_attn.proj": {}}})
    low |= {"txt_in": {}, "double_blocks.0.txt_attn.proj": {}}
    layers = recipe_like(open_checkpoint(template(tmp_path, low, metadata={"_quantization_metadata": table}))).layers
    assert {name: layers[name].matmul for name in low} == {
        PROJ: "full_precision", QKV: "fp8", IMG_IN: "full_precision", "txt_in": "full_precision",
        "double_blocks.0.txt_attn.proj": "fp8"}


@pytest.mark.parametrize(("size", "matmul"), [(0, "fp8"), (2, "full_precision")])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_legacy_marker(tmp_path: Path, size: int, matmul: str, prefix: str) -> None:
    marker = {f"{prefix}scaled_fp8": torch.zeros(size).to(torch.float8_e4m3fn)}
    path = template(tmp_path, {PROJ: {"scale_weight": torch.ones(1)}}, prefix, marker)
    assert recipe_like(open_checkpoint(path)).layers[PROJ].matmul == matmul


def test_files_that_serve_not(tmp_path: Path) -> None:
    plain = open_checkpoint(save_flux(tmp_path))
    with pytest.raises(TpecError, match="holds no quantized layer"):
        recipe_like(plain)
    other = tmp_path / "other.safetensors"
    save_file({"somewhere.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn)}, other)
    with pytest.raises(TpecError, match="is for another model"):
        follow(make_plan(plain, Settings()), recipe_like(open_checkpoint(other)))


def test_own_result_as_template(tmp_path: Path) -> None:
    """What this program wrote is followed to the byte, here from the command line."""
    source = save_flux(tmp_path)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    flags = ("--method", "nearest", "--device", "cpu", "--quiet")
    assert run_cli("quantize", source, "-o", first, "--exclude", "qkv|linear1", "--include", "img_in", *flags
                   ).returncode == 0
    assert run_cli("quantize", source, "-o", second, "--like", first, *flags).returncode == 0
    a, b = load(first), load(second)
    assert a.keys() == b.keys() and all(a[name].dtype == b[name].dtype for name in a)
    assert all(torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a if a[name].dim())
