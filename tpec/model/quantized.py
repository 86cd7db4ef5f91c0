"""Which layers of a file are quantized already, in whatever form: asked before anything is quantized again."""

import json
import re
from collections.abc import Mapping

from ..errors import TpecError
from ..files.header import TensorInfo
from ..files.source import Source

TABLE_KEY = "_quantization_metadata"

_QUANTIZED_NAMES = re.compile(
    r"(^|\.)(scaled_fp8|weight_scale|scale_weight|comfy_quant|qweight|qzeros|g_idx|SCB|weight_format)$"
    r"|\.weight\.(absmax|quant_map|quant_state)")
_LOW_BIT = ("F8_", "F4", "F6_")


def header_table(checkpoint: Source) -> dict[str, object]:
    """The layers that the header's quantization table describes, by name; raises TpecError if it cannot be read."""
    text = checkpoint.metadata.get(TABLE_KEY)
    if text is None:
        return {}
    try:
        layers = json.loads(text)["layers"]
        return dict(layers.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TpecError(f"{checkpoint.name} is quantized already (its header says so, in a table that cannot be read): "
                        "use the bf16 or fp16 original.") from None


def refuse_quantized(checkpoint: Source, tensors: Mapping[str, TensorInfo], part: str) -> None:
    """Raises TpecError if one of `tensors` (by names in the file) is quantized, or named so by the header.

    `part` names what they are together, for the sentence.
    """
    described = next((layer for layer in header_table(checkpoint) if f"{layer}.weight" in tensors), None)
    if described is not None:
        raise TpecError(f"{checkpoint.name} is quantized already (its header says so of '{described}'): quantizing "
                        f"{part} again would ruin it, use the bf16 or fp16 original.")
    for name, info in tensors.items():
        if _low(info) or _QUANTIZED_NAMES.search(name):
            raise TpecError(f"{checkpoint.name} is quantized already (tensor '{name}' is {info.dtype}): quantizing "
                            f"{part} again would ruin it, use the bf16 or fp16 original.")


def legacy_only(checkpoint: Source) -> list[str]:
    """Layers that carry a scale in the legacy form alone."""
    layers = [name.removesuffix(".scale_weight") for name in checkpoint.tensors if name.endswith(".scale_weight")]
    return [layer for layer in layers if f"{layer}.weight_scale" not in checkpoint.tensors]


def _low(info: TensorInfo) -> bool:
    return info.dtype.startswith(_LOW_BIT) or (
        info.name.endswith(".weight") and len(info.shape) == 2 and info.dtype in ("I8", "U8"))
