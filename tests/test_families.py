"""Which layouts are recognised, under which prefix, and which are refused with their reason."""

from pathlib import Path

import pytest
from samples import HIDDEN, Shapes, chroma_shapes, t5xxl_shapes, write_shapes

from tpec.checkpoint import open_checkpoint
from tpec.demo import flux_shapes
from tpec.errors import TpecError
from tpec.families import FAMILIES, Detection, detect, family_names


def found(folder: Path, shapes: Shapes, wanted: str = "auto", include: str = "") -> Detection:
    path = write_shapes(folder / "m.safetensors", shapes)
    return detect(path.name, open_checkpoint(path).tensors, wanted, include)


def refused(folder: Path, names: dict[str, tuple[int, ...]] | list[str], words: str, **more: str) -> None:
    shapes = names if isinstance(names, dict) else {name: (8, 8) for name in names}
    with pytest.raises(TpecError, match=words) as caught:
        found(folder, shapes, **more)
    assert str(caught.value).startswith("m.safetensors")
    assert "\n" not in str(caught.value)


def flux(prefix: str = "") -> Shapes:
    return {prefix + name: shape for name, shape in flux_shapes(HIDDEN, 1, 1).items()}


def guidance() -> Shapes:
    return {f"guidance_in.{part}_layer.weight": (HIDDEN, 256) for part in ("in", "out")}


def test_names() -> None:
    assert family_names() == ("auto", *FAMILIES)
    assert {"flux", "chroma", "t5xxl"} <= FAMILIES.keys()


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_flux(tmp_path: Path, prefix: str) -> None:
    detection = found(tmp_path, flux(prefix))
    assert (detection.family.name, detection.prefix) == ("flux", prefix)
    assert "double_blocks.0.img_attn.norm.key_norm.scale" in detection.why
    assert found(tmp_path, flux(prefix), wanted="flux").family.name == "flux"


def test_flux_dev_and_fill(tmp_path: Path) -> None:
    assert found(tmp_path, flux() | guidance()).family.name == "flux"
    assert found(tmp_path, flux() | guidance() | {"img_in.weight": (HIDDEN, 384)}).family.name == "flux"


def test_chroma(tmp_path: Path) -> None:
    assert found(tmp_path, chroma_shapes()).family.name == "chroma"
    full = {f"model.diffusion_model.{name}": shape for name, shape in chroma_shapes().items()}
    assert found(tmp_path, full).family.name == "chroma"


def test_t5xxl(tmp_path: Path) -> None:
    assert found(tmp_path, t5xxl_shapes()).family.name == "t5xxl"
    assert found(tmp_path, t5xxl_shapes(), wanted="t5xxl").family.name == "t5xxl"


@pytest.mark.parametrize("shapes", [t5xxl_shapes(inner=5120), t5xxl_shapes(inner=64, blocks=12)])
def test_smaller_t5_is_refused(tmp_path: Path, shapes: Shapes) -> None:
    refused(tmp_path, shapes, "T5 text encoder but not T5-XXL, and ComfyUI ignores")


def test_family_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, flux(), "layout of Chroma", wanted="chroma")
    refused(tmp_path, chroma_shapes(), "layout of Flux", wanted="flux")
    refused(tmp_path, t5xxl_shapes(), "layout of Flux", wanted="flux")
    with pytest.raises(TpecError, match="no family 'sdxl'.*auto, flux"):
        found(tmp_path, flux(), wanted="sdxl")


REFUSED = {
    "CLIP-L": (["text_model.encoder.layers.0.mlp.fc1.weight", "text_model.encoder.layers.0.self_attn.k_proj.weight",
                "text_model.embeddings.token_embedding.weight"], "CLIP text encoder, and ComfyUI ignores"),
    "CLIP-G": ([f"text_model.encoder.layers.{at}.mlp.fc1.weight" for at in range(32)], "CLIP text encoder"),
    "LoRA, kohya": (["lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",
                     "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight",
                     "lora_unet_double_blocks_0_img_attn_proj.alpha"], "it is a LoRA"),
    "LoRA, PEFT": (["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
                    "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight"], "it is a LoRA"),
    "LoRA, plain": (["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"], "it is a LoRA"),
    "LoKr": (["lycoris_double_blocks_0.lokr_w1", "lycoris_double_blocks_0.lokr_w2"], "it is a LoRA"),
    "LoHa": (["lycoris_double_blocks_0.hada_w1_a", "lycoris_double_blocks_0.hada_w1_b"], "it is a LoRA"),
    "ControlNet, SD": (["control_model.input_blocks.0.0.weight"], "it is a ControlNet"),
    "ControlNet, Flux": ([*flux(), "controlnet_blocks.0.weight", "controlnet_x_embedder.weight"], "it is a ControlNet"),
    "VAE": (["decoder.conv_in.weight", "encoder.conv_in.weight", "decoder.mid.attn_1.q.weight"], "it is a VAE"),
    "diffusers Flux": (["single_transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.attn.to_q.weight",
                        "x_embedder.weight"], "diffusers layout"),
    "Flux 2": ([*flux(), "double_stream_modulation_img.lin.weight"], "not known here"),
    "Hunyuan Video": ([*flux(), "txt_in.individual_token_refiner.blocks.0.mlp.0.weight"], "not known here"),
    "unknown": (["net.blocks.0.attn.weight", "net.blocks.1.attn.weight"], "not known here.*net.blocks.0.attn.weight"),
    "SDXL": (["model.diffusion_model.input_blocks.0.0.weight"], "not known here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(tmp_path: Path, case: str) -> None:
    names, words = REFUSED[case]
    refused(tmp_path, names, words)


def test_include_opens_unknown_layouts_but_not_refused_ones(tmp_path: Path) -> None:
    names, _ = REFUSED["unknown"]
    detection = found(tmp_path, {name: (8, 8) for name in names}, include="attn")
    assert (detection.family.name, detection.prefix) == ("custom", "")
    for case in ("CLIP-L", "LoRA, kohya", "VAE", "diffusers Flux", "ControlNet, SD"):
        refused(tmp_path, REFUSED[case][0], REFUSED[case][1], include=".")


def test_every_rule_is_reached_by_one_of_the_layouts(tmp_path: Path) -> None:
    """A misspelt pattern would sleep unnoticed; these are the ones that the small layouts cannot reach."""
    import re

    names = {"flux": [*flux(), *guidance()], "chroma": [*chroma_shapes()], "t5xxl": [*t5xxl_shapes()]}
    for name, family in FAMILIES.items():
        if name in names:
            for rule in family.rules:
                assert any(re.match(rule.pattern, key) for key in names[name]) or "vector_in" in rule.pattern, rule
