"""The table of families against the inventory of ComfyUI's models: their real names, shapes and kinds (tests/data)."""

import math
from functools import cache
from pathlib import Path
from types import MappingProxyType

import pytest
from inventory import DATA, Model, read

from tpec.errors import TpecError
from tpec.files.checkpoint import Checkpoint
from tpec.files.header import TensorInfo
from tpec.model.families import DIFFUSION, FAMILIES, TEXT, Family, detect, part_of, pattern, spelled
from tpec.model.plan import Plan, make_plan
from tpec.model.structure import Structure
from tpec.settings import Settings

MODELS = read(DATA / "diffusion.txt")
ENCODERS = {f"{name}, encoder": model for name, model in read(DATA / "encoders.txt").items()
            if model.facts["te"] != "none"}
LOADERS = read(DATA / "loaders.txt")
#: No diffusion models: refused by name.
OTHER_CLASSES = {"DepthAnything3", "RT_DETR_v4", "SAM3", "SAM31"}
REFUSED = {name for name, model in MODELS.items() if model.facts["class"] in OTHER_CLASSES}
IGNORED = {"CLIP_L", "CLIP_H", "CLIP_G", "T5_XL", "T5_BASE", "T5_GEMMA", "BYT5_SMALL_GLYPH", "JINA_CLIP_2"}
KNOWN = [name for name in MODELS if name not in REFUSED]
#: Like an encoder whose scales are applied, but for a loader that applies none.
IGNORED_FILES = {"ace-1.5-qwen3-0.6b, encoder"}
HONOURED = [name for name, model in ENCODERS.items() if model.facts["te"] not in IGNORED and name not in IGNORED_FILES]
BOTH = MODELS | ENCODERS
LEAST_SHARE = 95
#: Models below it, each with its own share in percent (rounded down); their families' notes say why.
EXCEPTIONS = {
    "hunyuan-dit-1.1": 94.8, "flux2-klein-4b": 94.9, "chroma1-radiance": 93.2, "chroma1-radiance-x0": 93.2,
    "z-image-pixel": 94.4, "anima": 94.1, "qwen3-8b, encoder": 91.7, "qwen3-vl-8b, encoder": 92.3,
    "qwen3.5-9b, encoder": 87.7, "minimax-music-3, encoder": 89.6, "gemma-4-e2b, encoder": 78.6,
    "gemma-4-e4b, encoder": 87.8,
}
#: Written by trainers of models whose inventory has other members only.
UNREACHED = {"context_processor", "nerf_final_layer", "proj_linear", "{,model.}lm_head", "text_embedding_projection",
             "encoder.embed_tokens"}


def checkpoint(tensors: dict[str, tuple[int, ...]], dtypes: dict[str, str] | None = None) -> Checkpoint:
    """A header without a file."""
    infos = {name: TensorInfo(name, (dtypes or {}).get(name, "BF16"), shape, 0, 2 * math.prod(shape))
             for name, shape in tensors.items()}
    return Checkpoint(Path("m.safetensors"), (), MappingProxyType(infos), MappingProxyType({}), "")


def shapes(model: Model, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, (shape, _) in model.tensors.items()}


@cache
def plan_of(name: str) -> Plan:
    return make_plan(checkpoint(shapes(BOTH[name])), Settings())


def share(name: str) -> float:
    """Percent of the parameters of ComfyUI's Linears that become FP8."""
    model = BOTH[name]
    sizes = {f"{module}.weight": math.prod(model.tensors[f"{module}.weight"][0]) for module in model.modules("linear")}
    return 100 * sum(sizes[layer.name] for layer in plan_of(name).of("quantize")) / sum(sizes.values())


@pytest.mark.parametrize("name", KNOWN)
def test_every_model_is_recognised_as_comfyui_recognises_it(name: str) -> None:
    plan = plan_of(name)
    assert MODELS[name].facts["class"] in plan.family.classes
    assert plan.kind == "diffusion_models"


@pytest.mark.parametrize("name", HONOURED)
def test_every_text_encoder_that_honours_scales_is_recognised(name: str) -> None:
    plan = plan_of(name)
    assert ENCODERS[name].facts["te"] in plan.family.classes
    assert plan.kind == "text_encoders"


@pytest.mark.parametrize("name", [*REFUSED, *(set(ENCODERS) - set(HONOURED))])
def test_what_is_no_such_model_is_refused_by_name(name: str) -> None:
    with pytest.raises(TpecError, match="looks like|text encoder") as caught:
        plan_of(name)
    assert "not known here" not in str(caught.value)


def test_the_encoders_of_ace_step_are_told_apart_from_those_they_look_like() -> None:
    """tests/comfy/test_encoder_embeddings.py has what its loader makes of them."""
    small = shapes(ENCODERS["ace-1.5-qwen3-0.6b, encoder"])
    for settings in (Settings(), Settings(family="qwen3"), Settings(include=".")):
        with pytest.raises(TpecError, match="text encoder Qwen3 0.6B of ACE-Step 1.5, and ComfyUI ignores its FP8"):
            make_plan(checkpoint(small), settings)
    told = {name for name in HONOURED if any("must be the first file" in note for note in plan_of(name).notes)}
    assert told == {"ace-1.5-lm-qwen3-2b, encoder", "ace-1.5-lm-qwen3-4b, encoder"}
    assert "must be the first file" in plan_of("ace-1.5-lm-qwen3-2b, encoder").summary()


@pytest.mark.parametrize("name", [*KNOWN, *HONOURED])
def test_nothing_becomes_fp8_that_comfyui_would_not_scale(name: str) -> None:
    """Not even if the user names everything with include."""
    linears = {f"{module}.weight" for module in BOTH[name].modules("linear")}
    assert {layer.name for layer in plan_of(name).of("quantize")} <= linears
    named = make_plan(checkpoint(shapes(BOTH[name])), Settings(include="."))
    assert {layer.name for layer in named.of("quantize")} == linears


@pytest.mark.parametrize("name", [*KNOWN, *HONOURED])
def test_share_of_linears_in_fp8(name: str) -> None:
    least = EXCEPTIONS.get(name, LEAST_SHARE)
    assert share(name) >= least
    if name in EXCEPTIONS:
        assert share(name) < min(LEAST_SHARE, least + 0.2) and plan_of(name).family.notes


@pytest.mark.parametrize("name", [*KNOWN, *HONOURED])
def test_agreement_with_comfyui_changes_nothing(name: str) -> None:
    model = BOTH[name]
    structure = Structure(model.facts.get("class", model.facts.get("te")), model.modules("linear"),
                          model.modules("embedding"), model.modules("experts"))
    plan = make_plan(checkpoint(shapes(model)), Settings(), structure)
    assert plan.notes == plan.family.advised(plan.checkpoint.tensors)
    assert plan.of("quantize") == plan_of(name).of("quantize")


@pytest.mark.parametrize("name", HONOURED)
def test_embeddings_become_fp8_where_comfyui_scales_them(name: str) -> None:
    """Every text encoder's own, if the user wants it, and nothing else besides."""
    model, settings = BOTH[name], Settings(format="comfy_quant", embeddings=True)
    scaled = {f"{module}.weight" for module in model.modules("embedding")}
    plan = make_plan(checkpoint(shapes(model)), settings)
    tables = {layer.name for layer in plan.tensors if layer.embedding}
    linears = {layer.name for layer in plan_of(name).of("quantize")}
    assert tables and tables <= scaled
    assert {layer.name for layer in plan.of("quantize")} == tables | linears
    assert f"{len(tables)} token embedding(s) become FP8" in plan.summary()
    none = Structure(model.facts["te"], model.modules("linear"))
    without = make_plan(checkpoint(shapes(model)), settings, none)
    assert not [layer for layer in without.tensors if layer.embedding]
    assert "no embedding becomes FP8" in without.summary()


def test_every_class_of_comfyui_is_covered() -> None:
    classes = {name for family in DIFFUSION for name in family.classes}
    assert classes == {MODELS[name].facts["class"] for name in KNOWN}
    encoders = {name for family in TEXT for name in family.classes}
    assert encoders == {ENCODERS[name].facts["te"] for name in HONOURED}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_pattern_is_reached(family: Family) -> None:
    """A misspelt one would sleep unnoticed: every spelling of every pattern meets a tensor of a model."""
    modules: set[str] = set()
    for name in [*KNOWN, *HONOURED]:
        if plan_of(name).family in (family, FAMILIES["t5xxl"] if family.name == "umt5xxl" else family):
            modules |= {tensor.removesuffix(".weight") for tensor in part_of(
                plan_of(name).checkpoint.tensors, plan_of(name).prefix)}
    for text in (*family.linears, *(rule.modules for rule in family.keep)):
        if not any(word in text for word in UNREACHED):
            assert any(pattern(text).fullmatch(module) for module in modules), text
    outer = [text for text in family.outer if not any(name in modules or name.removesuffix(".weight") in modules
                                                      for name in spelled(text))]
    assert not outer


def lost(name: str, gone: str) -> str:
    """The refusal of a model without the tensors that begin with `gone`, or ''."""
    rest = {tensor: shape for tensor, shape in shapes(BOTH[name]).items() if not tensor.startswith(gone)}
    assert len(rest) < len(BOTH[name].tensors)
    try:
        make_plan(checkpoint(rest), Settings())
    except TpecError as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize("name", [*KNOWN, *HONOURED])
def test_a_model_with_something_missing_is_refused(name: str) -> None:
    """Each row of blocks without its second block, and each tensor around the blocks."""
    plan = plan_of(name)
    tensors = part_of(plan.checkpoint.tensors, plan.prefix)
    for row in plan.family.blocks:
        begin = pattern(row.name.removesuffix("#") + "1.").match
        for first in {match.group() for match in map(begin, tensors) if match}:
            if f"{first[:-2]}2." in {tensor[:len(first)] for tensor in tensors}:
                assert f"{first[:-1]} (blocks up to" in lost(name, first), first
    for text in plan.family.outer:
        found = [key for key in spelled(text) if key in tensors]
        if len(found) == 1:
            assert found[0] in lost(name, found[0]) or "missing" in lost(name, found[0]), text


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "net."])
def test_prefixes(name: str, prefix: str) -> None:
    tensors = checkpoint(shapes(MODELS[name], prefix)).tensors
    found = detect("m", tensors, "auto", "")
    assert (found.family, found.prefix) == (plan_of(name).family, prefix)


def full_checkpoint(name: str, parts: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """A diffusion model with the text encoders {prefix: name of the inventory}."""
    tensors = shapes(MODELS[name], "model.diffusion_model.") | {"vae.decoder.conv_in.weight": (8, 4, 3, 3)}
    for prefix, encoder in parts.items():
        # Full checkpoints hold the names of ComfyUI's own modules.
        tensors |= {prefix + tensor.replace("model.language_model.", "model.").replace("model.visual.", "visual."): its
                    for tensor, its in shapes(ENCODERS[encoder]).items()}
    return tensors


CHECKPOINTS = [name for name, loader in LOADERS.items() if loader.facts.get("class") not in {None, *OTHER_CLASSES}]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_parts_of_full_checkpoints(name: str) -> None:
    """Each text encoder where ComfyUI honours its scales in this class's checkpoints, and there only."""
    facts = dict(LOADERS[name].facts)
    comfy_class, prefix = facts.pop("class"), facts.pop("prefix")
    model = next(model for model in KNOWN if MODELS[model].facts["class"] == comfy_class)
    encoders = {encoder.name: encoder for encoder in plan_of(model).family.encoders}
    for part, text in facts.items():
        encoder, honoured, _, linears = text.split(" ")
        encoder += ", encoder"
        if int(honoured) == 0:
            assert part not in encoders or encoders[part].ignored
            continue
        assert not encoders[part].ignored and encoders[part].prefix == f"{prefix}{part}.transformer."
        if encoder in ENCODERS:
            tensors = full_checkpoint(model, {encoders[part].prefix: encoder})
            plan = make_plan(checkpoint(tensors), Settings(part=(part,), include=rf"{part}\.transformer\."))
            count = sum(layer.name.startswith(encoders[part].prefix) for layer in plan.of("quantize"))
            assert (count, honoured) == (int(linears), linears)
            alone = make_plan(checkpoint(tensors), Settings())
            assert {layer.name for layer in alone.of("keep")} >= {key for key in tensors if key.startswith(prefix)}


def test_a_part_whose_scales_comfyui_ignores_stays_with_a_sentence() -> None:
    tensors = full_checkpoint("pixart-sigma-512", {"text_encoders.t5xxl.transformer.": "t5-xxl, encoder"})
    plan = make_plan(checkpoint(tensors), Settings(part=("t5xxl",)))
    assert "t5xxl stays as it is: ComfyUI applies no FP8 scales to the T5 inside PixArt" in plan.summary()
    assert not [layer for layer in plan.of("quantize") if "t5xxl" in layer.name]


def test_the_documents_are_current() -> None:
    """`python -m benchmarks.families_doc` makes them from the table."""
    from benchmarks.families_doc import README, TARGET, document, readme

    assert TARGET.read_text("utf-8") == document()
    assert README.read_text("utf-8") == readme()


def test_ming_image_is_z_image_without_pad_tokens() -> None:
    """Of ComfyUI 0.38, so not in the inventory."""
    model = MODELS["z-image"]
    plan = make_plan(checkpoint({name: shape for name, shape in shapes(model).items() if "pad_token" not in name}),
                     Settings())
    assert plan.family.name == "z_image"
    assert {layer.name for layer in plan.of("quantize")} == {layer.name for layer in plan_of("z-image").of("quantize")}
