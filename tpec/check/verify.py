"""Read a quantized file back, independently of the writer, and hold every tensor against the original's."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..files.checkpoint import Checkpoint, open_checkpoint
from ..model.finite import holds_nonfinite, nonfinite_note
from ..model.origin import GraphOrigin, origin_of
from .pair import Pair, open_pair
from .rules import CHANGED_RULES, FP8_RULES, Changed, Fp8Layer, broken

#: Bytes that are compared at a time, a multiple of every item's size.
_CHUNK_BYTES = 1 << 23
_MOST_FAULTS = 20
_EXTRAS = ("weight_scale", "scale_weight", "comfy_quant", "input_scale", "scale_input")


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
        """Whether no fault was found."""
        return not self.faults

    def text(self) -> str:
        """For people: the worst error and the counts, or the first 20 faults."""
        worst = max(self.errors.items(), key=lambda item: item[1], default=("-", 0.0))
        lines = [f"{len(self.errors)} FP8 layers read back, worst relative error {worst[1]:.4f} ({worst[0]}); "
                 f"{self.kept} kept tensors are bit-exact"
                 + (f", {self.corrected} biases are corrected" if self.corrected else "")]
        if self.faults:
            lines = [f"{len(self.faults)} fault(s):", *self.faults[:_MOST_FAULTS]]
        if self.origin is not None:
            lines.append(f"It was made from {self.origin.text()}: its original is what ComfyUI's ModelSave writes of "
                         "that model.")
        return "\n".join([*lines, *nonfinite_note(self.nonfinite)])


def verify(original: Path | str, quantized: Path | str) -> VerifyResult:
    """Compare two files tensor by tensor in bounded memory; the rules are in `rules`.

    `original` and `quantized` are what `open_checkpoint` takes. What is wrong with the quantized file is in the
    result's `faults`. Raises TpecError when one of the files cannot be read at all.
    """
    source, result = open_checkpoint(original), open_checkpoint(quantized)
    outcome = VerifyResult(origin=origin_of(result.metadata))
    with open_pair(source, result) as pair:
        outcome.faults += pair.faults
        for name in source.tensors:
            _check_tensor(name, pair, outcome)
    outcome.faults += _extras(source, result)
    if not outcome.errors:
        outcome.faults.append("No layer is in FP8.")
    return outcome


def _check_tensor(name: str, pair: Pair, outcome: VerifyResult) -> None:
    before, after = pair.source.tensors[name], pair.result.tensors.get(name)
    if after is None:
        outcome.faults += [] if name in pair.dropped else [f"{name} is missing."]
    elif after.shape != before.shape:
        outcome.faults.append(f"{name} has shape {after.shape} instead of {before.shape}.")
    elif pair.rounded(name):
        _check_layer(Fp8Layer(name, pair), outcome)
    elif before.dtype != after.dtype:
        outcome.faults.append(f"{name} changed its dtype from {before.dtype} to {after.dtype} without a scale.")
    elif _same_bytes(name, pair, outcome):
        outcome.kept += 1
    else:
        faults = list(broken(CHANGED_RULES, Changed(name, pair)))
        outcome.faults += faults
        outcome.corrected += not faults


def _check_layer(layer: Fp8Layer, outcome: VerifyResult) -> None:
    outcome.faults += broken(FP8_RULES, layer)
    if layer.is_linear and layer.has_one_scale:
        outcome.errors[layer.layer] = layer.error


def _same_bytes(name: str, pair: Pair, outcome: VerifyResult) -> bool:
    """Whether the tensor is bit-exact; NaN and infinite values in it are noted while its bytes pass by."""
    first, second = pair.source.tensors[name], pair.result.tensors[name]
    nonfinite = False
    for offset in range(0, first.nbytes, _CHUNK_BYTES):
        pieces = [bytearray(min(_CHUNK_BYTES, first.nbytes - offset)) for _ in range(2)]
        pair.before.read_into(first, memoryview(pieces[0]), offset)
        pair.after.read_into(second, memoryview(pieces[1]), offset)
        if pieces[0] != pieces[1]:
            return False
        nonfinite = nonfinite or holds_nonfinite(first.dtype, torch.frombuffer(pieces[0], dtype=torch.uint8))
    if nonfinite:
        outcome.nonfinite.append(name)
    return True


def _extras(source: Checkpoint, result: Checkpoint) -> list[str]:
    """Faults about tensors that the original does not have and that do not belong to an FP8 layer."""
    faults = []
    for name in sorted(result.tensors.keys() - source.tensors.keys()):
        layer, _, key = name.rpartition(".")
        if key != "scaled_fp8" and not (key in _EXTRAS and f"{layer}.weight" in result.tensors):
            faults.append(f"{name} is in the result but not in the original.")
    return faults
