"""The output file, known to the byte before the first layer is computed: every tensor's name, dtype, shape and offset.

The three formats are those ComfyUI reads (its QUANTIZATION.md, and comfy/ops.py and comfy/utils.py of v0.33.0):
"comfy_quant" the current one, "scaled_fp8" the legacy one, "universal" both in one file.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import TpecError
from ..files.layout import Layout, place
from ..version import __version__
from .families import DROP, ENCODER_PREFIXES, QUANTIZE
from .origin import ORIGIN_KEY
from .plan import Plan, TensorPlan
from .quantized import TABLE_KEY, header_table, legacy_only

#: Header metadata: a JSON object of the calibrated layers. The value is |E[x]| of the layer's input where the bias
#: makes up for the mean error, null where the bias is the original's. Files of earlier versions lack it.
CALIBRATED_KEY = "tpec_calibrated"
#: Header metadata: a JSON object of how the file was made; `DROPPED` there lists the original's tensors that were left
#: out.
RECIPE_KEY = "tpec"
DROPPED = "dropped"
#: |Q - W| / |W| of a layer. No rounding that a model could live with is worse; a lost scale is far above it.
WORST_ERROR = 0.2


@dataclass(frozen=True)
class LayerOptions:
    """What calibration decides for one layer before the run: the input's scale (float) and its matmul."""

    input_scale: float | None = None
    full_precision: bool = True


def make_layout(plan: Plan, options: Mapping[str, LayerOptions],
                calibrated: Mapping[str, float | None] | None = None) -> Layout:
    """Lay out the result of `plan`; `options` by layer name, missing ones are the settings' own.

    `calibrated` is the record of `calibration_record`, kept in the header; verifying a file relies on it. A header too
    large for any reader loses the largest of the source's own metadata, with a note. Raises TpecError when that does
    not help.
    """
    default = LayerOptions(full_precision=plan.settings.matmul != "fp8")
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    constants: dict[str, bytes] = {}
    described: dict[str, dict[str, object]] = {}
    for layer in plan.tensors:
        if layer.action == DROP:
            continue
        if layer.action != QUANTIZE:
            shapes[layer.name] = (layer.dtype, layer.shape)
            continue
        choice = options.get(layer.linear, default)
        described[layer.linear] = _description(choice)
        _add_layer(shapes, constants, layer, plan, choice)
    if plan.settings.format != "comfy_quant":
        # The legacy form has one flag for all layers.
        full = plan.settings.matmul != "fp8" or any(layer.matmul == "full_precision" for layer in plan.tensors)
        marker = 2 if full else 0
        for part in plan.parts:
            shapes[f"{part.prefix}scaled_fp8"] = ("F8_E4M3", (marker,))
            constants[f"{part.prefix}scaled_fp8"] = bytes(marker)
    return place(shapes, constants, _metadata(plan, described, calibrated or {}), plan.checkpoint.metadata)


def scalar_names(layer: str, plan: Plan) -> tuple[str, ...]:
    """The float32 scalars that hold one layer's weight scale."""
    names = {"universal": ("weight_scale", "scale_weight"), "comfy_quant": ("weight_scale",),
             "scaled_fp8": ("scale_weight",)}[plan.settings.format]
    if plan.settings.format == "scaled_fp8" and _published_input_scale(layer, plan):
        names += ("scale_input",)
    return tuple(f"{layer}.{name}" for name in names)


def float32_bytes(value: float) -> bytes:
    """The value as a little-endian float32."""
    return struct.pack("<f", value)


def _published_input_scale(layer: str, plan: Plan) -> bool:
    # The published script repeats the weight's scale as T5's scale_input. It is harmless only where the input is
    # never rounded to FP8, so a file that allows FP8 matmul does not get it.
    part = plan.part(layer)
    return part is not None and part.family.writes_input_scale and plan.settings.matmul != "fp8"


def _description(choice: LayerOptions) -> dict[str, object]:
    conf: dict[str, object] = {"format": "float8_e4m3fn"}
    if choice.full_precision:
        conf["full_precision_matrix_mult"] = True
    return conf


def _add_layer(shapes: dict[str, tuple[str, tuple[int, ...]]], constants: dict[str, bytes], layer: TensorPlan,
               plan: Plan, choice: LayerOptions) -> None:
    shapes[layer.name] = ("F8_E4M3", layer.shape)
    for name in scalar_names(layer.linear, plan):
        # The published script writes one-element vectors; the current form is a scalar.
        shapes[name] = ("F32", () if name.endswith(".weight_scale") else (1,))
    if plan.settings.format != "scaled_fp8":
        content = json.dumps(_description(choice)).encode()
        shapes[f"{layer.linear}.comfy_quant"] = ("U8", (len(content),))
        constants[f"{layer.linear}.comfy_quant"] = content
    if choice.input_scale is not None:
        for key, wanted in (("input_scale", "scaled_fp8"), ("scale_input", "comfy_quant")):
            if plan.settings.format != wanted:
                shapes[f"{layer.linear}.{key}"] = ("F32", () if key == "input_scale" else (1,))
                constants[f"{layer.linear}.{key}"] = float32_bytes(choice.input_scale)


def _metadata(plan: Plan, described: Mapping[str, dict[str, object]],
              calibrated: Mapping[str, float | None]) -> dict[str, str]:
    metadata = {key: value for key, value in plan.checkpoint.metadata.items() if key != TABLE_KEY}
    table = _table(plan, described)
    if table:
        metadata[TABLE_KEY] = json.dumps({"format_version": "1.0", "layers": table})
    recipe = {"version": __version__, "source": plan.checkpoint.name, "family": plan.family.name,
              **plan.settings.recipe()}
    if plan.checkpoint.origin:
        recipe[ORIGIN_KEY] = dict(plan.checkpoint.origin)
    dropped = [layer.name for layer in plan.of(DROP)]
    if dropped:
        recipe[DROPPED] = dropped
    metadata[RECIPE_KEY] = json.dumps(recipe)
    metadata[CALIBRATED_KEY] = json.dumps(dict(calibrated))
    return metadata


def _table(plan: Plan, described: Mapping[str, dict[str, object]]) -> dict[str, object]:
    """The layers that the header describes: those of parts that were quantized before, and ours.

    Where a header has a table, ComfyUI (`utils.convert_old_quants`) no longer looks for the legacy marker of the
    diffusion model; so there is none beside legacy layers, and none in a legacy file.
    """
    before, legacy = header_table(plan.checkpoint), legacy_only(plan.checkpoint)
    if plan.settings.format == "scaled_fp8":
        told = {f"{layer}.comfy_quant" for layer in before} <= plan.checkpoint.tensors.keys()
        if not told:
            raise TpecError(f"{plan.checkpoint.name} holds layers that only its header describes, and ComfyUI does not "
                            "read legacy layers beside them: choose the format universal or comfy_quant.")
        return {}
    if any(not layer.startswith(ENCODER_PREFIXES) for layer in legacy):
        return {}
    return {**before, **described} if before or plan.settings.format == "universal" else {}
