"""Model families as data: how each is recognised by its keys, and which of its layers become FP8 and why.

Rules are regular expressions matched from the start of a tensor's name without the file's prefix; the first match wins.
Which modules ComfyUI really gives a scale to was read from its v0.33.0 sources and checked by loading files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import TpecError
from .header import TensorInfo

QUANTIZE, KEEP, DROP = "quantize", "keep", "drop"


@dataclass(frozen=True)
class Rule:
    """What happens to the tensors that `pattern` matches, and the reason a user reads."""

    pattern: str
    action: str
    reason: str
    #: Name of a Settings field; the rule counts only when that is true.
    when: str = ""


@dataclass(frozen=True)
class Family:
    """A model layout. `kind` is ComfyUI's folder for files that hold nothing else."""

    name: str
    title: str
    kind: str
    needs: tuple[str, ...]
    rules: tuple[Rule, ...]
    forbids: tuple[str, ...] = ()
    #: Published TPEC files carry `scale_input` for this family.
    writes_input_scale: bool = False


@dataclass(frozen=True)
class Refusal:
    """A layout that is known and must not be quantized."""

    needs: tuple[str, ...]
    sentence: str


_BLOCKS = Rule(r"(double|single)_blocks\.\d+\.", QUANTIZE, "Linear of a transformer block")
_NORM = Rule(r".*norm", KEEP, "normalisation")
_FLUX_SENSITIVE = (
    Rule(r"(img_in|txt_in|img_in_patch)\.", KEEP, "input projection, sensitive"),
    Rule(r"(time_in|guidance_in|vector_in)\.", KEEP, "time, guidance or vector embedder, sensitive"),
    Rule(r"(final_layer|nerf_\w+)\.", KEEP, "output projection, sensitive"),
)

FLUX = Family(
    "flux", "Flux", "diffusion_models",
    needs=(r"double_blocks\.0\.img_attn\.norm\.key_norm\.(scale|weight)$", r"img_in\.weight$",
           r"double_blocks\.0\.img_mod\.lin\.weight$"),
    forbids=(r"distilled_guidance_layer\.", r"controlnet_", r"double_stream_modulation_img\.",
             r"txt_in\.individual_token_refiner\."),
    rules=(_NORM, *_FLUX_SENSITIVE, _BLOCKS),
)

CHROMA = Family(
    "chroma", "Chroma", "diffusion_models",
    needs=(r"double_blocks\.0\.img_attn\.norm\.key_norm\.(scale|weight)$",
           r"distilled_guidance_layer\.(0\.)?norms\.0\.(scale|weight)$"),
    forbids=(r"controlnet_",),
    rules=(
        _NORM,
        *_FLUX_SENSITIVE,
        Rule(r"distilled_guidance_layer\.", KEEP, "distilled guidance, kept as asked", when="keep_distillation"),
        Rule(r"distilled_guidance_layer\.(0\.)?layers\.", QUANTIZE, "Linear of the distilled guidance"),
        Rule(r"distilled_guidance_layer\.", KEEP, "projection of the distilled guidance, sensitive"),
        _BLOCKS,
    ),
)

T5XXL = Family(
    "t5xxl", "T5-XXL text encoder", "text_encoders",
    needs=(r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight$", r"encoder\.block\.0\.layer\.1\.DenseReluDense\."),
    rules=(
        Rule(r"decoder\.|lm_head\.", DROP, "decoder half, not used by ComfyUI"),
        Rule(r"(shared|encoder\.embed_tokens)\.", KEEP, "token embedding"),
        Rule(r".*relative_attention_bias", KEEP, "position table"),
        Rule(r".*layer_norm", KEEP, "normalisation"),
        Rule(r"encoder\.block\.\d+\.layer\.\d+\.(SelfAttention|DenseReluDense)\.\w+\.weight$", QUANTIZE,
             "Linear of an encoder block"),
    ),
    writes_input_scale=True,
)

CUSTOM = Family("custom", "layers named by --include", "diffusion_models", needs=(), rules=())

FAMILIES: dict[str, Family] = {family.name: family for family in (FLUX, CHROMA, T5XXL)}

#: Prefixes under which a part of a file may lie; the first under which a family is recognised counts.
PREFIXES = ("", "model.diffusion_model.", "text_encoders.t5xxl.transformer.")

REFUSALS = (
    Refusal((r".*\.(lora_down|lora_up|lora_A|lora_B|lokr_w1|hada_w1_a)\b",),
            "it is a LoRA, not a model: load the model, apply the LoRA, and quantize the result"),
    Refusal((r".*controlnet_|control_model\.",),
            "it is a ControlNet, and ComfyUI does not apply FP8 scales there: keep it in bf16"),
    Refusal((r"text_model\.encoder\.layers\.0\.mlp\.fc1\.weight$",),
            "it is a CLIP text encoder, and ComfyUI ignores the FP8 scales of CLIP-L and CLIP-G (the result would be "
            "garbage): keep it in fp16, it is small"),
    Refusal((r"(.*\.)?(single_transformer_blocks\.0\.attn\.to_q|transformer_blocks\.0\.attn\.to_q)\.weight$",),
            "it is in diffusers layout, whose layers ComfyUI renames and fuses on load, so their scales would be lost: "
            "convert it to ComfyUI's layout first (load it and use ModelSave)"),
    Refusal((r"decoder\.conv_in\.weight$",),
            "it is a VAE, and ComfyUI does not apply FP8 scales there: keep it as it is"),
)


def family_names() -> tuple[str, ...]:
    """The values of the `family` setting."""
    return ("auto", *FAMILIES)


def _has(names: list[str], pattern: str) -> bool:
    match = re.compile(pattern).match
    return any(match(name) for name in names)


def _local_names(tensors: Mapping[str, TensorInfo], prefix: str) -> list[str]:
    return [name[len(prefix):] for name in tensors if name.startswith(prefix)]


def _fits(family: Family, names: list[str]) -> bool:
    return all(_has(names, need) for need in family.needs) and not any(_has(names, no) for no in family.forbids)


@dataclass(frozen=True)
class Detection:
    """The recognised family, the prefix its tensors carry in this file, and why."""

    family: Family
    prefix: str
    why: str


def detect(name: str, tensors: Mapping[str, TensorInfo], wanted: str, include: str) -> Detection:
    """Recognise the layout from the keys alone; `name` is the file's, for messages.

    Raises TpecError for layouts that are refused or unknown; with `include` an unknown one passes as "custom".
    """
    if wanted != "auto" and wanted not in FAMILIES:
        raise TpecError(f"There is no family '{wanted}': it must be one of {', '.join(family_names())}.")
    candidates = FAMILIES.values() if wanted == "auto" else [FAMILIES[wanted]]
    for prefix in PREFIXES:
        names = _local_names(tensors, prefix)
        for family in candidates if names else ():
            if _fits(family, names):
                if wanted == "auto":
                    _check_encoder(name, family, prefix, tensors)
                return Detection(family, prefix, _why(family, prefix, names))
    if wanted != "auto":
        raise TpecError(f"{name} does not have the layout of {FAMILIES[wanted].title} (its keys are "
                        f"{_sample(tensors)}): leave the family at auto.")
    for refusal in REFUSALS:
        if all(_has(list(tensors), need) for need in refusal.needs):
            raise TpecError(f"{name} cannot be quantized: {refusal.sentence}.")
    if include:
        return Detection(CUSTOM, _common_prefix(tensors), "unknown layout, only the layers named by include")
    raise TpecError(f"{name} has a layout that is not known here (its keys are {_sample(tensors)}; known are "
                    f"{', '.join(f.title for f in FAMILIES.values())}): nothing was written. If you know which layers "
                    "are safe, name them with include.")


def _why(family: Family, prefix: str, names: list[str]) -> str:
    proof = next(name for need in family.needs for name in names if re.match(need, name))
    where = f" under '{prefix}'" if prefix else ""
    return f"{family.title}: recognised by {proof}{where}"


def _check_encoder(name: str, family: Family, prefix: str, tensors: Mapping[str, TensorInfo]) -> None:
    """T5 sizes other than XXL share its key names; ComfyUI reads scales only for XXL."""
    if family is not T5XXL:
        return
    gate = tensors.get(f"{prefix}encoder.block.23.layer.1.DenseReluDense.wi_1.weight")
    old = tensors.get(f"{prefix}encoder.block.23.layer.1.DenseReluDense.wi.weight")
    if old is None and (gate is None or gate.shape[0] != 10240):
        raise TpecError(f"{name} cannot be quantized: it is a T5 text encoder but not T5-XXL, and ComfyUI ignores the "
                        "FP8 scales of the others (the result would be garbage): keep it in bf16.")


def _sample(tensors: Mapping[str, TensorInfo]) -> str:
    names = sorted(tensors)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _common_prefix(tensors: Mapping[str, TensorInfo]) -> str:
    return next((p for p in PREFIXES[1:] if any(name.startswith(p) for name in tensors)), "")
