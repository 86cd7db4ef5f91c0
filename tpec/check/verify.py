"""Read a quantized file back, independently of the writer, and hold every tensor against the original's."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..files.checkpoint import Checkpoint, Reader, open_checkpoint
from ..files.dtypes import FLOATS
from ..model.families import never_read
from ..model.finite import holds_nonfinite, nonfinite_note
from ..model.formats import CALIBRATED_KEY, DROPPED, RECIPE_KEY, WORST_ERROR
from ..model.origin import GraphOrigin, origin_of
from .bias import mean_length

#: A corrected bias may ask for a mean input this much longer than the recorded one: it was computed in float32.
_LONGER = 1.02
_ROWS_ITEMS = 1 << 23
_SCALES = ("weight_scale", "scale_weight")
_EXTRAS = (*_SCALES, "comfy_quant", "input_scale", "scale_input")


@dataclass
class VerifyResult:
    """Faults in sentences (none: the file is good), and the relative error |Q - W| / |W| of every FP8 layer.

    `kept` counts tensors that are bit-exact, `corrected` biases that make up for their layer's rounding; `nonfinite`
    names kept tensors that hold NaN or infinite values, in the original as well; `origin` is set for the result of a
    model that was no file.
    """

    faults: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    kept: int = 0
    corrected: int = 0
    nonfinite: list[str] = field(default_factory=list)
    origin: GraphOrigin | None = None

    @property
    def ok(self) -> bool:
        return not self.faults

    def text(self) -> str:
        worst = max(self.errors.items(), key=lambda item: item[1], default=("-", 0.0))
        lines = [f"{len(self.errors)} FP8 layers read back, worst relative error {worst[1]:.4f} ({worst[0]}); "
                 f"{self.kept} kept tensors are bit-exact"
                 + (f", {self.corrected} biases are corrected" if self.corrected else "")]
        if self.faults:
            lines = [f"{len(self.faults)} fault(s):", *self.faults[:20]]
        if self.origin is not None:
            lines.append(f"It was made from {self.origin.text()}: its original is what ComfyUI's ModelSave writes of "
                         "that model.")
        return "\n".join([*lines, *nonfinite_note(self.nonfinite)])


@dataclass(frozen=True)
class _Files:
    """Both files, and what the result's header says of its FP8 and its calibrated layers, None where it does not."""

    source: Checkpoint
    result: Checkpoint
    before: Reader
    after: Reader
    described: Mapping[str, object] | None
    calibrated: Mapping[str, float | None] | None
    outcome: VerifyResult

    def fault(self, sentence: str) -> None:
        self.outcome.faults.append(sentence)

    def rounded(self, name: str) -> bool:
        """Whether this tensor is in both files, FP8 in the result and not in the original."""
        before, after = self.source.tensors.get(name), self.result.tensors.get(name)
        return before is not None and after is not None and after.dtype == "F8_E4M3" and before.dtype in FLOATS


def verify(original: Path | str, quantized: Path | str) -> VerifyResult:
    """Compare two files tensor by tensor in bounded memory. Raises TpecError when one cannot be read at all."""
    source, result = open_checkpoint(original), open_checkpoint(quantized)
    outcome = VerifyResult(origin=origin_of(result.metadata))
    with Reader(source) as before, Reader(result) as after:
        files = _Files(source, result, before, after, _header_layers(result, outcome),
                       _calibrated_layers(result, outcome), outcome)
        dropped = _dropped(source, result, outcome)
        for name, info in source.tensors.items():
            if name not in result.tensors:
                if name not in dropped:
                    files.fault(f"{name} is missing.")
            elif result.tensors[name].shape != info.shape:
                files.fault(f"{name} has shape {result.tensors[name].shape} instead of {info.shape}.")
            elif files.rounded(name):
                _check_layer(name, files)
            else:
                _check_kept(name, files)
    _check_extras(source, result, outcome)
    if not outcome.errors:
        files.fault("No layer is in FP8.")
    return outcome


def _dropped(source: Checkpoint, result: Checkpoint, outcome: VerifyResult) -> frozenset[str]:
    """The tensors that were left out on purpose: the result's header lists them.

    Files of other programs, and of versions before that list, say nothing; there only what ComfyUI never reads of the
    original's family (a T5's decoder) may be absent.
    """
    try:
        recipe = json.loads(result.metadata.get(RECIPE_KEY, "{}"))
        if DROPPED in recipe:
            return frozenset(map(str, recipe[DROPPED]))
        family = recipe.get("family")
    except (ValueError, AttributeError, TypeError, RecursionError):
        outcome.faults.append(f"The header's {RECIPE_KEY} cannot be read.")
        return frozenset()
    return never_read(source.tensors, family)


def _header_layers(result: Checkpoint, outcome: VerifyResult) -> dict[str, object] | None:
    text = result.metadata.get("_quantization_metadata")
    if text is None:
        return None
    try:
        return dict(json.loads(text)["layers"])
    except (ValueError, KeyError, TypeError, RecursionError):
        outcome.faults.append("The header's _quantization_metadata cannot be read.")
        return None


def _calibrated_layers(result: Checkpoint, outcome: VerifyResult) -> dict[str, float | None] | None:
    """The record of calibrated layers; None in files of earlier versions and of other programs."""
    text = result.metadata.get(CALIBRATED_KEY)
    if text is None:
        return None
    try:
        return {name: None if length is None else abs(float(length)) for name, length in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError, ArithmeticError, RecursionError):
        outcome.faults.append(f"The header's {CALIBRATED_KEY} cannot be read.")
        return None


def _check_layer(name: str, files: _Files) -> None:
    layer, result, header = name.removesuffix(".weight"), files.result, files.described
    shape = result.tensors[name].shape
    if not name.endswith(".weight") or len(shape) != 2 or 0 in shape:
        files.fault(f"{name} is in FP8 but is no weight of a Linear: ComfyUI does not apply a scale there.")
        return
    found = {key: files.after.tensor(f"{layer}.{key}") for key in _SCALES if f"{layer}.{key}" in result.tensors}
    bad = [key for key, scale in found.items() if scale.dtype != torch.float32 or scale.numel() != 1
           or not math.isfinite(scale.item()) or scale.item() <= 0]
    if not found or bad or len({scale.item() for scale in found.values()}) != 1:
        files.fault(f"{layer} has no single positive float32 scale.")
        return
    described = _described(layer, files)
    if "weight_scale" in found and described is None and (header is None or layer not in header or _tells(result)):
        files.fault(f"{layer} has a weight_scale but nothing tells ComfyUI to use it (no comfy_quant).")
    if "weight_scale" not in found and not _marked(name, result):
        files.fault(f"{layer} has a scale_weight but nothing tells ComfyUI to use it (no scaled_fp8 marker).")
    if header is not None and layer not in header:
        files.fault(f"{layer} is not listed in the header's _quantization_metadata.")
    change = _bias_change(layer, files)
    scale = next(iter(found.values()))
    error, errors = _measure(files.before.tensor(name), files.after.tensor(name), scale, change is not None)
    files.outcome.errors[layer] = error
    if not error <= WORST_ERROR:
        files.fault(f"{layer} is off by {error:.3f} relative to the original: it is not a rounding of it.")
    elif change is not None:
        _check_change(layer, errors, change, files)


def _check_change(layer: str, errors: torch.Tensor, change: torch.Tensor, files: _Files) -> None:
    """Q - W [out, in] must explain what was added to the bias, as far as storing that allows."""
    bias, known = files.after.tensor(f"{layer}.bias"), files.calibrated[layer]
    unit = max(torch.finfo(bias.dtype).eps, torch.finfo(torch.float32).eps) / 2
    slack = bias.double().abs() * unit + torch.finfo(bias.dtype).smallest_normal
    length = mean_length(errors, change, slack)
    if not length <= _LONGER * known:
        files.fault(f"{layer}.bias changed by more than its layer's rounding explains: the mean input is {known:.3g} "
                    f"long and would have to be {length:.3g} at least.")


def _described(layer: str, files: _Files) -> object:
    name = f"{layer}.comfy_quant"
    info = files.result.tensors.get(name)
    if info is None:
        return None
    try:
        fits = (info.dtype, len(info.shape)) == ("U8", 1)
        described = json.loads(bytes(files.after.tensor(name).tolist())) if fits else {}
    except (ValueError, RecursionError):
        described = {}
    if not isinstance(described, dict) or described.get("format") != "float8_e4m3fn":
        files.fault(f"{name} does not say float8_e4m3fn.")
    return described


def _tells(result: Checkpoint) -> bool:
    """Whether layers of this file carry comfy_quant tensors; then all of them must."""
    return any(name.endswith(".comfy_quant") for name in result.tensors)


def _marked(name: str, result: Checkpoint) -> bool:
    """Whether the part of the file that holds `name` carries the legacy marker."""
    markers = [key for key in result.tensors if key.rpartition(".")[2] == "scaled_fp8"]
    return any(name.startswith(marker.removesuffix("scaled_fp8")) for marker in markers)


def _bias_change(layer: str, files: _Files) -> torch.Tensor | None:
    """What was added to a bias that the header calls corrected, float64 [out]; None for every other."""
    before, after = (part.tensors.get(f"{layer}.bias") for part in (files.source, files.result))
    if (files.calibrated or {}).get(layer) is None or before is None or after is None:
        return None
    rows = files.result.tensors[f"{layer}.weight"].shape[:1]
    if before.dtype != after.dtype or after.dtype not in FLOATS or not before.shape == after.shape == rows:
        return None
    return files.after.tensor(after.name).double() - files.before.tensor(before.name).double()


def _measure(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor,
             keep: bool) -> tuple[float, torch.Tensor | None]:
    """|Q - W| / |W|, and if asked Q - W [out, in] itself in float32."""
    step = max(1, _ROWS_ITEMS // max(weight.shape[1], 1))
    top = weight.abs().max().double().item() or 1.0
    error2 = norm2 = 0.0
    kept = torch.empty(weight.shape) if keep else None
    for begin in range(0, len(weight), step):
        # In units of the largest weight, so that neither tiny nor huge weights leave float32's range.
        part = weight[begin:begin + step].double() / top
        restored = codes[begin:begin + step].double() * (scale.double() / top)
        norm2 += part.square().sum().item()
        errors = restored - part
        error2 += errors.square().sum().item()
        if kept is not None:
            kept[begin:begin + step] = errors * top
    return math.sqrt(error2 / norm2) if norm2 else math.sqrt(error2), kept


def _check_kept(name: str, files: _Files) -> None:
    before, after = files.source.tensors[name], files.result.tensors[name]
    if before.dtype != after.dtype:
        files.fault(f"{name} changed its dtype from {before.dtype} to {after.dtype} without a scale.")
    elif _same_bytes(name, files):
        files.outcome.kept += 1
    elif not name.endswith(".bias") or not files.rounded(f"{name.removesuffix('.bias')}.weight"):
        files.fault(f"{name} should be unchanged and is not.")
    elif not bool(files.after.tensor(name).isfinite().all()):
        files.fault(f"{name} holds NaN or infinite values.")
    elif files.calibrated is not None and _bias_change(name.removesuffix(".bias"), files) is None:
        files.fault(f"{name} changed, and the header does not call it corrected.")
    else:
        # By how much it may change is seen with its layer.
        files.outcome.corrected += 1


def _same_bytes(name: str, files: _Files) -> bool:
    first, second = files.source.tensors[name], files.result.tensors[name]
    nonfinite = False
    for offset in range(0, first.nbytes, _ROWS_ITEMS):
        pieces = [bytearray(min(_ROWS_ITEMS, first.nbytes - offset)) for _ in range(2)]
        files.before.read_into(first, memoryview(pieces[0]), offset)
        files.after.read_into(second, memoryview(pieces[1]), offset)
        if pieces[0] != pieces[1]:
            return False
        # Pieces hold whole elements: their size is a multiple of every item's.
        nonfinite = nonfinite or holds_nonfinite(first.dtype, torch.frombuffer(pieces[0], dtype=torch.uint8))
    if nonfinite:
        files.outcome.nonfinite.append(name)
    return True


def _check_extras(source: Checkpoint, result: Checkpoint, outcome: VerifyResult) -> None:
    for name in result.tensors.keys() - source.tensors.keys():
        layer, _, key = name.rpartition(".")
        if key == "scaled_fp8" or (key in _EXTRAS and f"{layer}.weight" in result.tensors):
            continue
        outcome.faults.append(f"{name} is in the result but not in the original.")
