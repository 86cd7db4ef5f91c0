"""The layer layout of a published quantized file as a recipe: which layers are FP8 there, and how they multiply."""

import json
from collections.abc import Mapping

from ..errors import TpecError
from ..files.checkpoint import Checkpoint, Reader
from ..files.header import TensorInfo
from .families import PREFIXES
from .quantized import header_table
from .recipe import FP8, HIGH, Choice, Recipe, without_prefix

_LOW_BITS = ("F8_", "F6_", "F4", "I8", "U8")
_FULL = "full_precision_matrix_mult"
#: A layer's own description is a few dozen bytes.
_MOST_BYTES = 1 << 16


def recipe_like(template: Checkpoint) -> Recipe:
    """What `template` does with each 2-D weight, told by the weight's dtype: scales may be dummies.

    Matmul flags come from the layers' own descriptions, the header's table or the legacy marker, in this order. Names
    are without the prefix of a diffusion model. Raises TpecError for a file without quantized layers.
    """
    weights = {name.removesuffix(".weight"): info for name, info in template.tensors.items()
               if name.endswith(".weight") and len(info.shape) == 2}
    low = {layer: info for layer, info in weights.items() if info.dtype.startswith(_LOW_BITS)}
    if not low:
        raise TpecError(f"{template.name} holds no quantized layer: choose a quantized file of the same model for "
                        "`like`.")
    matmuls = _matmuls(template, low)
    choices = {}
    for layer in weights:
        choice = Choice(FP8, matmuls[layer], f"FP8 in {template.name}") if layer in low else Choice(
            HIGH, "", f"high precision in {template.name}")
        choices[without_prefix(layer)] = choice
    return Recipe(choices, template.name, lenient=True)


def _matmuls(template: Checkpoint, layers: Mapping[str, TensorInfo]) -> dict[str, str]:
    table = header_table(template)
    with Reader(template) as reader:
        return {layer: _matmul(template, reader, table, layer) for layer in layers}


def _matmul(template: Checkpoint, reader: Reader, table: Mapping[str, object], layer: str) -> str:
    described = table.get(layer)
    own = template.tensors.get(f"{layer}.comfy_quant")
    if own is not None and own.nbytes <= _MOST_BYTES:
        try:
            described = json.loads(bytes(reader.tensor(own.name).view(-1).tolist()))
        except (ValueError, TypeError, RecursionError):
            described = None
    if isinstance(described, dict):
        return "full_precision" if described.get(_FULL) is True else "fp8"
    return _legacy_matmul(template, layer)


def _legacy_matmul(template: Checkpoint, layer: str) -> str:
    """By the marker: empty allows FP8 matmul. Where there is none, nothing is said and full precision is safe."""
    marker = next((info for prefix in sorted(PREFIXES, key=len, reverse=True) if layer.startswith(prefix)
                   and (info := template.tensors.get(f"{prefix}scaled_fp8")) is not None), None)
    return "fp8" if marker is not None and marker.items == 0 else "full_precision"
