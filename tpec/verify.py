"""Read a quantized file back, independently of the writer, and hold every tensor against the original's."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .checkpoint import Checkpoint, Reader, open_checkpoint
from .dtypes import FLOATS

#: No rounding of a layer that a model could live with is worse than this; a lost scale is far above it.
_WORST_ERROR = 0.2
_ROWS_ITEMS = 1 << 23
_SCALES = ("weight_scale", "scale_weight")
_EXTRAS = (*_SCALES, "comfy_quant", "input_scale", "scale_input")


@dataclass
class VerifyResult:
    """Faults in sentences (none: the file is good), and the relative error |Q - W| / |W| of every FP8 layer."""

    faults: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    kept: int = 0

    @property
    def ok(self) -> bool:
        return not self.faults

    def text(self) -> str:
        worst = max(self.errors.items(), key=lambda item: item[1], default=("-", 0.0))
        lines = [f"{len(self.errors)} FP8 layers read back, worst relative error {worst[1]:.4f} ({worst[0]}); "
                 f"{self.kept} kept tensors are bit-exact"]
        if self.faults:
            lines = [f"{len(self.faults)} fault(s):", *self.faults[:20]]
        return "\n".join(lines)


def verify(original: Path | str, quantized: Path | str) -> VerifyResult:
    """Compare two files tensor by tensor in bounded memory. Raises TpecError when one cannot be read at all."""
    source, result = open_checkpoint(original), open_checkpoint(quantized)
    outcome = VerifyResult()
    header = _header_layers(result, outcome)
    with Reader(source) as before, Reader(result) as after:
        for name, info in source.tensors.items():
            if name not in result.tensors:
                if not _may_be_dropped(name):
                    outcome.faults.append(f"{name} is missing.")
            elif result.tensors[name].shape != info.shape:
                outcome.faults.append(f"{name} has shape {result.tensors[name].shape} instead of {info.shape}.")
            elif result.tensors[name].dtype == "F8_E4M3" and info.dtype in FLOATS:
                _check_layer(name, before, after, result, header, outcome)
            else:
                _check_kept(name, before, after, source, result, outcome)
    _check_extras(source, result, outcome)
    if not outcome.errors:
        outcome.faults.append("No layer is in FP8.")
    return outcome


def _may_be_dropped(name: str) -> bool:
    return name.startswith(("decoder.", "lm_head."))


def _header_layers(result: Checkpoint, outcome: VerifyResult) -> dict[str, object] | None:
    text = result.metadata.get("_quantization_metadata")
    if text is None:
        return None
    try:
        return json.loads(text)["layers"]
    except (ValueError, KeyError, TypeError):
        outcome.faults.append("The header's _quantization_metadata cannot be read.")
        return None


def _check_layer(name: str, before: Reader, after: Reader, result: Checkpoint, header: dict[str, object] | None,
                 outcome: VerifyResult) -> None:
    layer = name.removesuffix(".weight")
    shape = result.tensors[name].shape
    if not name.endswith(".weight") or len(shape) != 2 or 0 in shape:
        outcome.faults.append(f"{name} is in FP8 but is no weight of a Linear: ComfyUI does not apply a scale there.")
        return
    found = {key: after.tensor(f"{layer}.{key}") for key in _SCALES if f"{layer}.{key}" in result.tensors}
    bad = [key for key, scale in found.items() if scale.dtype != torch.float32 or scale.numel() != 1
           or not math.isfinite(scale.item()) or scale.item() <= 0]
    if not found or bad or len({scale.item() for scale in found.values()}) != 1:
        outcome.faults.append(f"{layer} has no single positive float32 scale.")
        return
    described = _described(layer, after, result, outcome)
    if "weight_scale" in found and described is None and (header is None or layer not in header or _tells(result)):
        outcome.faults.append(f"{layer} has a weight_scale but nothing tells ComfyUI to use it (no comfy_quant).")
    if "weight_scale" not in found and not _marked(name, result):
        outcome.faults.append(f"{layer} has a scale_weight but nothing tells ComfyUI to use it (no scaled_fp8 marker).")
    if header is not None and layer not in header:
        outcome.faults.append(f"{layer} is not listed in the header's _quantization_metadata.")
    error = _relative_error(before.tensor(name), after.tensor(name), next(iter(found.values())))
    outcome.errors[layer] = error
    if not error <= _WORST_ERROR:
        outcome.faults.append(f"{layer} is off by {error:.3f} relative to the original: it is not a rounding of it.")


def _described(layer: str, after: Reader, result: Checkpoint, outcome: VerifyResult) -> object:
    name = f"{layer}.comfy_quant"
    info = result.tensors.get(name)
    if info is None:
        return None
    try:
        described = json.loads(bytes(after.tensor(name).tolist())) if (info.dtype, len(info.shape)) == ("U8", 1) else {}
    except (ValueError, RecursionError):
        described = {}
    if not isinstance(described, dict) or described.get("format") != "float8_e4m3fn":
        outcome.faults.append(f"{name} does not say float8_e4m3fn.")
    return described


def _tells(result: Checkpoint) -> bool:
    """Whether layers of this file carry comfy_quant tensors; then all of them must."""
    return any(name.endswith(".comfy_quant") for name in result.tensors)


def _marked(name: str, result: Checkpoint) -> bool:
    """Whether the part of the file that holds `name` carries the legacy marker."""
    markers = [key for key in result.tensors if key.rpartition(".")[2] == "scaled_fp8"]
    return any(name.startswith(marker.removesuffix("scaled_fp8")) for marker in markers)


def _relative_error(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> float:
    step = max(1, _ROWS_ITEMS // max(weight.shape[1], 1))
    top = weight.abs().max().double().item() or 1.0
    error2 = norm2 = 0.0
    for begin in range(0, len(weight), step):
        # In units of the largest weight, so that neither tiny nor huge weights leave float32's range.
        part = weight[begin:begin + step].double() / top
        restored = codes[begin:begin + step].double() * (scale.double() / top)
        error2 += (restored - part).square().sum().item()
        norm2 += part.square().sum().item()
    return math.sqrt(error2 / norm2) if norm2 else math.sqrt(error2)


def _check_kept(name: str, before: Reader, after: Reader, source: Checkpoint, result: Checkpoint,
                outcome: VerifyResult) -> None:
    if source.tensors[name].dtype != result.tensors[name].dtype:
        outcome.faults.append(f"{name} changed its dtype from {source.tensors[name].dtype} to "
                              f"{result.tensors[name].dtype} without a scale.")
        return
    same = _same_bytes(name, before, after, source, result)
    corrected = name.endswith(".bias") and f"{name.removesuffix('.bias')}.weight" in outcome.errors
    if same:
        outcome.kept += 1
    elif not name.endswith(".bias"):
        outcome.faults.append(f"{name} should be unchanged and is not.")
    elif not corrected and result.tensors.get(f"{name.removesuffix('.bias')}.weight", None) is None:
        outcome.faults.append(f"{name} changed without its layer.")
    elif not bool(after.tensor(name).isfinite().all()):
        outcome.faults.append(f"{name} holds NaN or infinite values.")


def _same_bytes(name: str, before: Reader, after: Reader, source: Checkpoint, result: Checkpoint) -> bool:
    first, second = source.tensors[name], result.tensors[name]
    for offset in range(0, first.nbytes, _ROWS_ITEMS):
        pieces = [bytearray(min(_ROWS_ITEMS, first.nbytes - offset)) for _ in range(2)]
        before.read_into(first, memoryview(pieces[0]), offset)
        after.read_into(second, memoryview(pieces[1]), offset)
        if pieces[0] != pieces[1]:
            return False
    return True


def _check_extras(source: Checkpoint, result: Checkpoint, outcome: VerifyResult) -> None:
    for name in result.tensors.keys() - source.tensors.keys():
        layer, _, key = name.rpartition(".")
        if key == "scaled_fp8" or (key in _EXTRAS and f"{layer}.weight" in result.tensors):
            continue
        outcome.faults.append(f"{name} is in the result but not in the original.")
