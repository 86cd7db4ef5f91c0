"""Which layouts are recognised, under which prefix, and which are refused with their reason."""

import importlib
import pkgutil
from pathlib import Path

import pytest
from samples import HIDDEN, Shapes, chroma_shapes, t5xxl_shapes, write_shapes

from tpec.command.demo import flux_shapes
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model import families
from tpec.model.families import (
    FAMILIES,
    Detection,
    Family,
    detect,
    find,
    fits,
    refuse_incomplete,
    spelled,
)
from tpec.model.order import family_names


def found(folder: Path, shapes: Shapes, wanted: str = "auto", include: str = "") -> Detection:
    path = write_shapes(folder / "m.safetensors", shapes)
    tensors = open_checkpoint(path).tensors
    detection = detect(path.name, tensors, wanted, include)
    refuse_incomplete(path.name, detection, tensors)
    return detection


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


def test_every_family_has_its_place_in_the_order() -> None:
    names = [info.name for info in pkgutil.iter_modules(families.__path__)]
    modules = [importlib.import_module(f"{families.__name__}.{name}") for name in names]
    written = {value.name for module in modules for value in vars(module).values() if isinstance(value, Family)}
    assert written == FAMILIES.keys() | {"custom", "generic"}


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
    for wanted in ("auto", "t5xxl"):
        refused(tmp_path, shapes, "T5 text encoder but not T5-XXL, and ComfyUI ignores", wanted=wanted)


def test_family_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, flux(), "layout of Chroma", wanted="chroma")
    refused(tmp_path, chroma_shapes(), "layout of Flux", wanted="flux")
    refused(tmp_path, t5xxl_shapes(), "layout of Flux", wanted="flux")
    with pytest.raises(TpecError, match="no family 'sdxl9'.*auto, .*flux"):
        found(tmp_path, flux(), wanted="sdxl9")


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
    "unknown": (["net.blocks.0.attn.weight", "net.blocks.1.attn.weight"], "not known here.*net.blocks.0.attn.weight"),
    "UNet, first tensor": (["model.diffusion_model.input_blocks.0.0.weight"], "only a part of a Stable Diffusion 1"),
    "SAM 3": (["detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv.weight", "tracker.a.weight"],
              "this looks like SAM 3, not a diffusion model"),
    "diffusers UNet": (["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "diffusers layout"),
    "diffusers Z-Image": (["layers.0.attention.to_q.weight", "noise_refiner.0.attention.norm_k.weight"],
                          "diffusers layout"),
    "diffusers Wan": (["condition_embedder.time_embedder.linear_1.weight", "blocks.0.attn1.to_q.weight"],
                      "diffusers layout"),
    "VAE of Wan": (["decoder.conv1.weight", "decoder.middle.0.residual.0.gamma"], "it is a VAE"),
    "IP-Adapter": (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "looks like an IP-Adapter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(tmp_path: Path, case: str) -> None:
    names, words = REFUSED[case]
    refused(tmp_path, names, words)


def test_include_opens_unknown_layouts_but_not_refused_ones(tmp_path: Path) -> None:
    names, _ = REFUSED["unknown"]
    detection = found(tmp_path, {name: (8, 8) for name in names}, include="attn")
    assert (detection.family.name, detection.prefix) == ("custom", "net.")
    for case in ("CLIP-L", "LoRA, kohya", "VAE", "diffusers Flux", "ControlNet, SD"):
        refused(tmp_path, REFUSED[case][0], REFUSED[case][1], include=".")


def test_adapters_inside_a_model_are_named(tmp_path: Path) -> None:
    """Whatever trained them: their tensors lie inside the blocks, and no layer of theirs may be taken for a Linear."""
    layer = "double_blocks.0.img_attn.qkv"
    peft = {f"{layer}.lora_A.default.weight": (16, HIDDEN), f"{layer}.lora_B.default.weight": (3 * HIDDEN, 16)}
    kohya = {f"{layer}.lora_down.weight": (16, HIDDEN), f"{layer}.lora_up.weight": (3 * HIDDEN, 16)}
    xlabs = {"double_blocks.0.processor.qkv_lora1.down.weight": (16, HIDDEN),
             "double_blocks.0.processor.qkv_lora1.up.weight": (3 * HIDDEN, 16)}
    wrapped = {name.replace(f"{layer}.", f"{layer}.base_layer."): shape for name, shape in flux().items()}
    for extra in (peft, kohya, xlabs):
        for prefix in ("", "model.diffusion_model."):
            shapes = {prefix + name: shape for name, shape in (flux() | extra).items()}
            for wanted in ("auto", "flux"):
                refused(tmp_path, shapes, "unmerged LoRA beside the model .*(lora_A|lora_down|lora1)", wanted=wanted)
    refused(tmp_path, wrapped, "unmerged LoRA beside the model .*base_layer")
    refused(tmp_path, wrapped | peft, "unmerged LoRA")
    refused(tmp_path, xlabs, "it is a LoRA")


def test_a_text_encoder_beside_an_unknown_model_is_no_reason(tmp_path: Path) -> None:
    """The whole file is called unknown, and nothing of it is quantized unless that is asked for."""
    shapes = {f"text_encoders.t5xxl.transformer.{name}": shape for name, shape in t5xxl_shapes().items()}
    unknown = {f"model.diffusion_model.new.{at}.weight": (8, 8) for at in range(9)}
    refused(tmp_path, shapes | unknown, "not known here")
    assert found(tmp_path, shapes | unknown, "t5xxl").prefix == "text_encoders.t5xxl.transformer."
    assert found(tmp_path, shapes).family.name == "t5xxl"


def test_additions_to_some_blocks_are_nothing_missing(tmp_path: Path) -> None:
    whole = flux_shapes(HIDDEN, 4, 3)
    added = {f"double_blocks.{at}.extra.weight": (8, 8) for at in (0, 2)} | {"double_blocks.1.note": (3,)}
    assert found(tmp_path, whole | added).family.name == "flux"


def test_shards_and_models_with_holes_are_refused_by_what_is_missing(tmp_path: Path) -> None:
    whole = flux_shapes(HIDDEN, 4, 3)

    def without(*beginnings: str) -> Shapes:
        return {name: shape for name, shape in whole.items() if not name.startswith(beginnings)}

    for prefix in ("", "model.diffusion_model."):
        for lost, words in (("double_blocks.2.", r"double_blocks\.2 .*double_blocks\.3 are there"),
                            ("single_blocks.1.linear2.weight", r"single_blocks\.1\.linear2\.weight is missing"),
                            ("single_blocks.", r"single_blocks\.0\.linear1\.weight is missing"),
                            ("txt_in.", r"txt_in\.weight is missing"),
                            ("time_in.", r"time_in\.in_layer\.weight is missing"),
                            ("final_layer.", r"final_layer\.linear\.weight is missing"),
                            ("img_in.", r"looks like a part of a Flux.*img_in\.weight is missing")):
            shapes = {prefix + name: shape for name, shape in without(lost).items()}
            refused(tmp_path, shapes, words)
    refused(tmp_path, without("double_blocks.2."), "double_blocks.2 ", wanted="flux")
    shards = [dict(sorted(whole.items())[at::3]) for at in range(3)]
    shards += [{name: shape for name, shape in whole.items() if name.startswith(row)} for row in ("double", "single")]
    for shard in shards:
        refused(tmp_path, shard, "part of a .*Flux.*name its index")


def test_incomplete_text_encoders_are_refused(tmp_path: Path) -> None:
    whole = t5xxl_shapes()
    for lost in ("encoder.block.5.", "encoder.block.7.layer.0.SelfAttention.v.", "encoder.final_layer_norm."):
        shapes = {name: shape for name, shape in whole.items() if not name.startswith(lost)}
        for wanted in ("auto", "t5xxl"):
            refused(tmp_path, shapes, f"part of a T5-XXL text encoder: {lost.rstrip('.')}", wanted=wanted)


@pytest.mark.parametrize("wanted", ["auto", "t5xxl"])
def test_the_old_t5_layout_is_accepted_in_its_largest_size_alone(tmp_path: Path, wanted: str) -> None:
    def old(inner: int) -> Shapes:
        return {name.replace("wi_0", "wi"): shape for name, shape in t5xxl_shapes(inner).items() if "wi_1" not in name}

    assert found(tmp_path, old(65536), wanted).family.name == "t5xxl"
    for inner in (4096, 10240, 16384):
        refused(tmp_path, old(inner), "not T5-XXL, and ComfyUI ignores", wanted=wanted)


@pytest.mark.parametrize("prefix", ["model.", "net.", "model.model."])
def test_prefixes_that_comfyui_takes_off(tmp_path: Path, prefix: str) -> None:
    detection = found(tmp_path, flux(prefix))
    assert (detection.family.name, detection.prefix) == ("flux", prefix)


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", "module.", "_orig_mod."])
def test_prefixes_that_comfyui_does_not_take_off(tmp_path: Path, prefix: str) -> None:
    refused(tmp_path, flux(prefix), f"is a Flux whose tensors are named '{prefix}")


def test_patterns() -> None:
    text = "a.#.{b,c.{d,e}}.*"
    assert fits(text, "a.12.c.e.x")
    assert not any(fits(text, name) for name in ("a.x.b.y", "a.1.b.y.z", "xa.1.b.y", "a.1.bb.y"))
    assert fits("**.x", "a.b.x") and not fits("**.x", "axx")
    assert spelled("{a,b}.{,0.}c") == ("a.c", "a.0.c", "b.c", "b.0.c")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_the_table_names_linears_one_by_one(family: Family) -> None:
    """An open end would take in whatever a trainer left beside the layers."""
    assert family.linears
    assert not [text for text in family.linears if text.endswith(("*", "#.*")) or "**" in text]
    assert all(rule.reason for rule in family.keep)
    assert family.classes


def test_every_rule_is_reached_by_one_of_the_layouts() -> None:
    """A misspelt pattern would sleep unnoticed; these are the ones that the small layouts cannot reach."""
    names = {"flux": [*flux(), *guidance()], "chroma": [*chroma_shapes()], "t5xxl": [*t5xxl_shapes()]}
    for name, keys in names.items():
        modules = [key.removesuffix(".weight") for key in keys]
        for rule in FAMILIES[name].keep:
            assert find(rule.modules, modules) or "nerf" in rule.modules, rule
        for text in FAMILIES[name].linears:
            assert find(text, modules) or "gate_proj" in text or "nerf" in text, text
