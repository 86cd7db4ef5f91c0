"""Every tensor's fate, with its reason, for the layouts that are known; already quantized files are refused."""

import json
import re
from pathlib import Path

import pytest
from samples import HIDDEN, Shapes, chroma_shapes, t5xxl_shapes, write_shapes

from tpec.command.demo import flux_shapes
from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import Plan, make_plan
from tpec.model.structure import Structure
from tpec.settings import Settings

FLUX = flux_shapes(HIDDEN, 2, 2)
GUIDANCE = {f"guidance_in.{part}_layer.{kind}": (HIDDEN, 256) if kind == "weight" else (HIDDEN,)
            for part in ("in", "out") for kind in ("weight", "bias")}
BLOCK_WEIGHTS = {name for name in FLUX if "_blocks." in name and name.endswith(".weight")}


def plan_of(folder: Path, shapes: Shapes, dtypes: dict[str, str] | str = "BF16", metadata: dict | None = None,
            **settings: object) -> Plan:
    path = write_shapes(folder / "m.safetensors", shapes, dtypes, metadata)
    return make_plan(open_checkpoint(path), Settings(**settings))


def names(plan: Plan, action: str = "quantize") -> set[str]:
    return {layer.name for layer in plan.of(action)}


def refused(words: str, folder: Path, shapes: Shapes, *more: object, **settings: object) -> None:
    with pytest.raises(TpecError, match=words) as caught:
        plan_of(folder, shapes, *more, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("extra", [{}, GUIDANCE, GUIDANCE | {"img_in.weight": (HIDDEN, 384)}],
                         ids=["schnell", "dev", "fill"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_flux(tmp_path: Path, extra: Shapes, prefix: str) -> None:
    shapes = {prefix + name: shape for name, shape in (FLUX | extra).items()}
    plan = plan_of(tmp_path, shapes)
    assert names(plan) == {prefix + name for name in BLOCK_WEIGHTS}
    assert names(plan, "keep") == shapes.keys() - names(plan)
    assert not names(plan, "drop")
    assert plan.kind == "diffusion_models"
    reasons = {layer.local: layer.reason for layer in plan.tensors}
    assert reasons["img_in.weight"] == "input projection, sensitive"
    assert reasons["final_layer.linear.weight"] == "output projection, sensitive"
    assert reasons["time_in.in_layer.weight"].startswith("time, guidance or vector embedder")
    assert all(layer.reason for layer in plan.tensors)
    assert [layer.name for layer in plan.tensors] == list(plan.checkpoint.tensors)


@pytest.mark.parametrize("keep", [False, True])
def test_chroma(tmp_path: Path, keep: bool) -> None:
    plan = plan_of(tmp_path, chroma_shapes(), keep_distillation=keep)
    blocks = {name for name in chroma_shapes() if "_blocks." in name and name.endswith(".weight")}
    guidance = {f"distilled_guidance_layer.layers.{at}.{part}_layer.weight" for at in (0, 1) for part in ("in", "out")}
    assert names(plan) == (blocks if keep else blocks | guidance)
    reasons = {layer.name: layer.reason for layer in plan.of("keep")}
    assert "sensitive" in reasons["distilled_guidance_layer.in_proj.weight"] or keep
    assert reasons["txt_in.weight"] == "input projection, sensitive"


@pytest.mark.parametrize("settings", [{}, {"t5xxl": True}, {"family": "t5xxl"}, {"family": "t5xxl", "t5xxl": True}])
def test_t5xxl(tmp_path: Path, settings: dict) -> None:
    shapes = t5xxl_shapes()
    plan = plan_of(tmp_path, shapes, **settings)
    dropped = {name for name in shapes if name.startswith(("decoder.", "lm_head."))}
    linear = {name for name in shapes.keys() - dropped
              if re.search(r"(SelfAttention\.[qkvo]|DenseReluDense\.w[io_01]+)\.weight$", name)}
    assert len(linear) == 24 * 7
    assert names(plan) == linear
    assert names(plan, "drop") == dropped
    assert names(plan, "keep") == shapes.keys() - linear - dropped
    assert {"shared.weight", "encoder.embed_tokens.weight", "encoder.final_layer_norm.weight",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"} <= names(plan, "keep")
    assert plan.kind == "text_encoders"
    assert f"{len(dropped)} are dropped" in plan.summary()


def test_t5xxl_flag_contradicts_another_family(tmp_path: Path) -> None:
    refused("contradict", tmp_path, t5xxl_shapes(), family="flux", t5xxl=True)
    refused("layout of T5-XXL", tmp_path, FLUX, t5xxl=True)


OTHER_PARTS = {
    "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    "vae.encoder.mid.attn_1.q.weight": (8, 8),
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (8, 8),
    "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight": (8, 8),
    "text_encoders.t5xxl.transformer.encoder.block.0.layer.1.DenseReluDense.wo.weight": (8, 8),
    "model_ema.decay": (),
}


def test_full_checkpoint_copies_its_other_parts(tmp_path: Path) -> None:
    shapes = {f"model.diffusion_model.{name}": shape for name, shape in FLUX.items()} | OTHER_PARTS
    dtypes = {"text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight": "F8_E4M3"}
    plan = plan_of(tmp_path, shapes, dtypes)
    assert (plan.kind, plan.prefix) == ("checkpoints", "model.diffusion_model.")
    assert names(plan) == {f"model.diffusion_model.{name}" for name in BLOCK_WEIGHTS}
    assert all(layer.reason == "not part of the Flux" for layer in plan.tensors if layer.name in OTHER_PARTS)
    layer = next(layer for layer in plan.of("quantize") if "linear1" in layer.name)
    assert (layer.linear, layer.linear_in_model) == ("model.diffusion_model.single_blocks.0.linear1",
                                                "single_blocks.0.linear1")


def test_exclude_and_include(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, FLUX, exclude=r"single_blocks\.1\.|_mod\.", include=r"^img_in|final_layer|norm|bias")
    expected = {name for name in BLOCK_WEIGHTS if "_mod." not in name and "single_blocks.1." not in name}
    assert names(plan) == expected | {"img_in.weight", "final_layer.linear.weight",
                                      "final_layer.adaLN_modulation.1.weight"}
    reasons = {layer.name: layer.reason for layer in plan.tensors}
    assert reasons["single_blocks.1.linear1.weight"] == "excluded by you"
    assert reasons["img_in.weight"] == "included by you"
    refused("no layer is left to quantize", tmp_path, FLUX, exclude=".")


def test_exclude_wins_over_include(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, FLUX, include="img_in", exclude="img_in")
    assert "img_in.weight" in names(plan, "keep")


def test_include_never_takes_what_is_no_linear_weight(tmp_path: Path) -> None:
    shapes = {"net.a.weight": (8, 8), "net.a.bias": (8,), "net.conv.weight": (8, 8, 3, 3),
              "net.conv1d.weight": (8, 8, 3), "net.norm.weight": (8,), "net.table": (8, 8), "net.scalar.weight": (),
              "net.empty.weight": (0, 8), "net.int.weight": (8, 8)}
    plan = plan_of(tmp_path, shapes, {"net.int.weight": "I64"}, include=".")
    assert names(plan) == {"net.a.weight"}
    assert plan.family.name == "custom"


def test_odd_tensors_in_a_known_layout_are_kept(tmp_path: Path) -> None:
    odd = {"single_blocks.0.conv.weight": (8, 8, 1, 1), "single_blocks.0.vector.weight": (8,),
           "single_blocks.0.scalar.weight": (), "single_blocks.0.empty.weight": (0, 8),
           "single_blocks.0.table": (8, 8), "single_blocks.0.ids.weight": (8, 8)}
    plan = plan_of(tmp_path, FLUX | odd, {"single_blocks.0.ids.weight": "I64"})
    assert names(plan) == BLOCK_WEIGHTS
    assert odd.keys() <= names(plan, "keep")


WEIGHT = "single_blocks.0.linear1.weight"
LAYER = "single_blocks.0.linear1"
QUANTIZED = {
    "current keys": ({f"{LAYER}.weight_scale": ()}, {}),
    "comfy_quant": ({f"{LAYER}.comfy_quant": (9,)}, {f"{LAYER}.comfy_quant": "U8"}),
    "legacy keys": ({f"{LAYER}.scale_weight": (1,)}, {}),
    "legacy marker": ({"scaled_fp8": (2,)}, {"scaled_fp8": "F8_E4M3"}),
    "float8 without scales": ({}, {WEIGHT: "F8_E4M3"}),
    "float8 e5m2": ({}, {WEIGHT: "F8_E5M2"}),
    "int8": ({}, {WEIGHT: "I8"}),
    "packed bytes": ({}, {WEIGHT: "U8"}),
    "bitsandbytes": ({f"{WEIGHT}.absmax": (4,), f"{WEIGHT}.quant_map": (16,)}, {}),
    "bitsandbytes int8": ({f"{LAYER}.SCB": (4,)}, {}),
    "GPTQ": ({f"{LAYER}.qweight": (4, 4), f"{LAYER}.qzeros": (4, 4)}, {}),
}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("case", QUANTIZED)
def test_already_quantized_is_refused(tmp_path: Path, case: str, prefix: str) -> None:
    extra, dtypes = QUANTIZED[case]
    shapes = {prefix + name: shape for name, shape in (FLUX | extra).items()}
    refused("quantized already", tmp_path, shapes, {prefix + name: code for name, code in dtypes.items()})


def test_quantized_metadata_is_refused(tmp_path: Path) -> None:
    refused("quantized already .its header says so", tmp_path, FLUX, "BF16", {"_quantization_metadata": "{}"})


def test_quantized_file_of_an_unknown_layout_is_told_that_it_is_quantized(tmp_path: Path) -> None:
    refused("quantized already", tmp_path, {"a.weight": (8, 8), "a.weight_scale": ()}, {"a.weight": "F8_E4M3"})


def test_dtype_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    from samples import write_raw

    path = write_raw(tmp_path / "m.safetensors", {
        **{name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for name in FLUX if name != "img_in.bias"},
        WEIGHT: {"dtype": "BF16", "shape": [1, 1], "data_offsets": [0, 2]},
        "img_in.bias": {"dtype": "POSIT8", "shape": [3], "data_offsets": [2, 5]}}, bytes(5))
    with pytest.raises(TpecError, match="'img_in.bias'.*POSIT8"):
        make_plan(open_checkpoint(path), Settings())


def test_summary_and_table(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, FLUX)
    summary, table = plan.summary(), plan.table()
    assert "m.safetensors: Flux" in summary
    assert f"{len(BLOCK_WEIGHTS)} Linear layers become FP8, {len(FLUX) - len(BLOCK_WEIGHTS)} tensors stay" in summary
    assert "dropped" not in summary
    assert len(table.splitlines()) == len(FLUX)
    before = 2 * sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in FLUX.values())
    after = before - sum(FLUX[name][0] * FLUX[name][1] for name in BLOCK_WEIGHTS)
    assert (plan.checkpoint.nbytes, plan.output_nbytes) == (before, after)


@pytest.mark.parametrize(("setting", "words"), [
    ({"method": "gptq"}, "method is 'gptq'"), ({"format": "fp8"}, "format is 'fp8'"), ({"matmul": "x"}, "matmul is"),
    ({"top_k": 0}, "top_k is 0"), ({"num_iter": -1}, "num_iter is -1"), ({"include": "("}, "include pattern"),
    ({"exclude": "[a"}, "exclude pattern")])
def test_bad_settings(setting: dict, words: str) -> None:
    with pytest.raises(TpecError, match=words):
        Settings(**setting)


def test_recipe_names_what_was_chosen() -> None:
    assert Settings().recipe() == {"method": "tpec", "format": "universal", "matmul": "full_precision"}
    assert Settings(top_k=4, exclude="a").recipe() == Settings().recipe() | {"top_k": 4, "exclude": "a"}


T5_PREFIX = "text_encoders.t5xxl.transformer."
T5_LAYER = f"{T5_PREFIX}encoder.block.0.layer.0.SelfAttention.q"
FULL = {f"model.diffusion_model.{name}": shape for name, shape in FLUX.items()}
FULL |= {T5_PREFIX + name: shape for name, shape in t5xxl_shapes().items()}
FULL |= {"vae.decoder.conv_in.weight": (8, 4, 3, 3)}
TABLE = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {
    T5_LAYER: {"format": "float8_e4m3fn"}}})}


def test_a_part_that_is_quantized_already_does_not_stop_the_other(tmp_path: Path) -> None:
    scales = {f"{T5_LAYER}.weight_scale": (), f"{T5_LAYER}.comfy_quant": (27,)}
    dtypes = {f"{T5_LAYER}.weight": "F8_E4M3", f"{T5_LAYER}.weight_scale": "F32", f"{T5_LAYER}.comfy_quant": "U8"}
    plan = plan_of(tmp_path, FULL | scales, dtypes, TABLE)
    assert names(plan) == {f"model.diffusion_model.{name}" for name in BLOCK_WEIGHTS}
    for settings in ({"t5xxl": True}, {"part": ("t5xxl",)}):
        refused("quantized already .its header says so of 'text_encoders.t5xxl", tmp_path, FULL | scales, dtypes, TABLE,
                **settings)
    layer = "model.diffusion_model.single_blocks.0.linear1"
    table = {"_quantization_metadata": json.dumps({"layers": {layer: {"format": "float8_e4m3fn"}}})}
    refused("quantized already .its header says so of 'model.diffusion_model.single_blocks.0.linear1", tmp_path, FULL,
            "BF16", table)
    assert names(plan_of(tmp_path, FULL, "BF16", table, t5xxl=True)) <= {name for name in FULL if "t5xxl" in name}


def test_parts_are_quantized_when_they_are_named(tmp_path: Path) -> None:
    blocks = {f"model.diffusion_model.{name}" for name in BLOCK_WEIGHTS}
    assert names(plan_of(tmp_path, FULL)) == blocks
    plan = plan_of(tmp_path, FULL, part=("t5xxl",))
    encoder = names(plan) - blocks
    assert len(encoder) == 24 * 7 and all(name.startswith(T5_PREFIX + "encoder.block.") for name in encoder)
    assert names(plan, "drop") == {name for name in FULL if name.startswith((f"{T5_PREFIX}decoder", f"{T5_PREFIX}lm_"))}
    assert (plan.kind, plan.prefix, len(plan.parts)) == ("checkpoints", "model.diffusion_model.", 2)
    assert "T5-XXL" in plan.summary()
    refused("no part 'clip_l': it can be one of t5xxl", tmp_path, FULL, part=("clip_l",))
    refused("no part 't5xxl': it holds no text encoder", tmp_path, FLUX, part=("t5xxl",))
    broken = {name: shape for name, shape in FULL.items() if ".block.4." not in name}
    refused("only a part of a T5-XXL text encoder: text_encoders.t5xxl.transformer.encoder.block.4", tmp_path, broken,
            part=("t5xxl",))


def test_only_part_leaves_the_rest_out(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, FULL, only_part=True)
    assert plan.kind == "diffusion_models"
    assert names(plan, "drop") == {name for name in FULL if not name.startswith("model.diffusion_model.")}
    refused("cannot be written alone", tmp_path, FULL, only_part=True, t5xxl=True)


def structure_of(*more: str, name: str = "Flux", without: str = "-") -> Structure:
    linears = {name.removesuffix(".weight") for name in FLUX if name.endswith(".weight")}
    return Structure(name, frozenset({*more, *(module for module in linears if without not in module)}))


def planned(folder: Path, shapes: Shapes, structure: Structure, **settings: object) -> Plan:
    return make_plan(open_checkpoint(write_shapes(folder / "m.safetensors", shapes)), Settings(**settings), structure)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_only_what_table_and_comfyui_agree_on_becomes_fp8(tmp_path: Path, prefix: str) -> None:
    shapes = {prefix + name: shape for name, shape in (FLUX | {"single_blocks.0.new.weight": (8, 8),
                                                               "single_blocks.1.new.weight": (8, 8)}).items()}
    every = {prefix + name for name in BLOCK_WEIGHTS}
    plan = planned(tmp_path, shapes, structure_of())
    assert names(plan) == every and not plan.notes
    plan = planned(tmp_path, shapes, structure_of(without="img_mod"))
    assert names(plan) == {name for name in every if "img_mod" not in name}
    assert "2 layers stay because this ComfyUI has no Linear of their name (the first is double_bl" in plan.summary()
    plan = planned(tmp_path, shapes, structure_of("single_blocks.0.new", "single_blocks.1.new"))
    assert names(plan) == every
    assert "2 Linears stay because the table of families does not know them" in plan.summary()
    assert "takes this model for Krea2" in planned(tmp_path, shapes, structure_of(name="Krea2")).summary()


def test_a_text_encoder_of_a_full_checkpoint_is_not_held_against_the_diffusion_model(tmp_path: Path) -> None:
    plan = planned(tmp_path, FULL, structure_of(), t5xxl=True)
    assert len(names(plan)) == 24 * 7 and not plan.notes
    both = planned(tmp_path, FULL, structure_of(), part=("t5xxl",))
    assert len(names(both)) == 24 * 7 + len(BLOCK_WEIGHTS) and not both.notes


def test_a_model_whose_scales_comfyui_ignores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TpecError, match="knows it .NewEncoder. but ignores FP8 scales"):
        planned(tmp_path, {"stages.0.a.weight": (8, 8)}, Structure("NewEncoder", frozenset()))


def test_include_never_makes_fp8_of_what_comfyui_would_not_scale(tmp_path: Path) -> None:
    shapes = FLUX | {"single_blocks.0.router.weight": (8, 8), "single_blocks.1.router.weight": (8, 8)}
    plan = plan_of(tmp_path, shapes, include="router|img_in")
    assert names(plan) == BLOCK_WEIGHTS | {"img_in.weight"}
    assert "named by include, but not a Linear" in {layer.name: layer.reason for layer in plan.tensors}[
        "single_blocks.0.router.weight"]
    plan = planned(tmp_path, FLUX, structure_of(without="img_in"), include="img_in")
    assert "img_in.weight" not in names(plan)


def test_a_model_that_only_comfyui_knows_gets_the_generic_rule(tmp_path: Path) -> None:
    inside = {f"net.stages.{at}.{name}.weight": (16, 16) for at in range(3) for name in ("mix.a", "mix.b")}
    tables = {f"net.stages.{at}.{name}": (16, 16) for at in range(3) for name in ("router.weight", "shift_table")}
    outside = {"net.embed.0.weight": (16, 16), "net.out.weight": (16, 16), "net.stages.0.mix.a.bias": (16,)}
    linears = {name.removeprefix("net.").removesuffix(".weight") for name in {**inside, **outside}}
    plan = planned(tmp_path, inside | tables | outside, Structure("NewModel", frozenset(linears)))
    assert names(plan) == inside.keys()
    assert (plan.family.name, plan.prefix) == ("generic", "net.")
    assert "NewModel is not in the table of families: Linears inside numbered blocks become FP8" in plan.summary()
