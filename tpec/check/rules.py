"""What must hold of a quantized file, as tables of rules: one for its FP8 layers, one for tensors that changed.

ComfyUI's side of it: `comfy/ops.py` and `comfy/utils.py` of v0.33.0 (`model.formats` writes what is asked for here).
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import torch

from ..model.formats import WORST_ERROR
from .bias import mean_length
from .pair import Pair

#: A corrected bias may ask for a mean input this much longer than the recorded one: it was computed in float32.
_LONGER = 1.02
_CHUNK_ITEMS = 1 << 23
_SCALES = ("weight_scale", "scale_weight")

_Subject = TypeVar("_Subject")


@dataclass(frozen=True)
class Rule(Generic[_Subject]):
    """`sentence` says what is wrong where `holds(it)` is false; its braces are filled from `it`.

    last: the rules after it make no sense where it is broken.
    """

    name: str
    holds: Callable[[_Subject], bool]
    sentence: str
    last: bool = False


def broken(rules: Sequence[Rule[_Subject]], it: _Subject) -> Iterator[str]:
    """The sentences of the rules that do not hold of `it`, in their order."""
    for rule in rules:
        if not rule.holds(it):
            yield rule.sentence.format(it=it)
            if rule.last:
                return


@dataclass(frozen=True)
class Measured:
    """error: |Q - W| / |W|. errors: Q - W [out, in], float32, where it was asked for."""

    error: float
    errors: torch.Tensor | None


class Fp8Layer:
    """A tensor that is FP8 in the result and was not in the original. What is costly is computed on access, once."""

    def __init__(self, name: str, pair: Pair) -> None:
        self.name, self.pair = name, pair
        self.layer = name.removesuffix(".weight")

    @property
    def is_linear(self) -> bool:
        """Whether it can be a Linear's weight [out, in]; no other tensor gets a scale in ComfyUI."""
        shape = self.pair.result.tensors[self.name].shape
        return self.name.endswith(".weight") and len(shape) == 2 and 0 not in shape

    @cached_property
    def scales(self) -> dict[str, torch.Tensor]:
        """The layer's scales in the result, by the last part of their names."""
        return {key: self.pair.after.tensor(f"{self.layer}.{key}") for key in _SCALES
                if f"{self.layer}.{key}" in self.pair.result.tensors}

    @property
    def has_one_scale(self) -> bool:
        """Whether there is a scale, usable, and the same in both forms."""
        good = all(scale.dtype == torch.float32 and scale.numel() == 1 and 0 < scale.item() < math.inf
                   for scale in self.scales.values())
        return good and len({scale.item() for scale in self.scales.values()}) == 1

    @cached_property
    def description(self) -> object:
        """What `comfy_quant` holds: {} where it cannot be read, None where there is none."""
        info = self.pair.result.tensors.get(f"{self.layer}.comfy_quant")
        if info is None:
            return None
        if (info.dtype, len(info.shape)) != ("U8", 1):
            return {}
        try:
            return json.loads(bytes(self.pair.after.tensor(info.name).tolist()))
        except (ValueError, RecursionError):
            return {}

    @property
    def says_its_format(self) -> bool:
        """Whether `comfy_quant`, if it is there, names the format that the weight has."""
        description = self.description
        return description is None or (isinstance(description, dict) and description.get("format") == "float8_e4m3fn")

    @property
    def is_used_as_current_form(self) -> bool:
        """Whether ComfyUI uses a `weight_scale`: told by the layer's own description or, without any, the table."""
        listed = self.layer in (self.pair.table or {}) and not self.pair.described
        return "weight_scale" not in self.scales or self.description is not None or listed

    @property
    def is_used_as_legacy_form(self) -> bool:
        """Whether ComfyUI uses a `scale_weight` that stands alone: told by the marker of its part of the file."""
        return "weight_scale" in self.scales or self.name.startswith(self.pair.markers)

    @property
    def is_listed(self) -> bool:
        """Whether the header's table, if there is one, has the layer."""
        return self.pair.table is None or self.layer in self.pair.table

    @cached_property
    def measured(self) -> Measured:
        """Codes times scale against the original's weight."""
        scale = next(iter(self.scales.values()))
        return _measure(self.pair.before.tensor(self.name), self.pair.after.tensor(self.name), scale,
                        keep=self.bias_change is not None)

    @property
    def error(self) -> float:
        """|Q - W| / |W|, NaN if a code is."""
        return self.measured.error

    @cached_property
    def bias_change(self) -> torch.Tensor | None:
        """What was added to the bias, as `Pair.bias_change` has it."""
        return self.pair.bias_change(self.layer)

    @property
    def mean_input(self) -> float:
        """|E[x]| as the header records it, 0 where it does not."""
        return (self.pair.calibrated or {}).get(self.layer) or 0.0

    @cached_property
    def needed_input(self) -> float:
        """The least |E[x]| with which Q - W explains what was added to the bias, as far as storing that allows."""
        change, errors = self.bias_change, self.measured.errors
        if change is None or errors is None:
            return 0.0
        bias = self.pair.after.tensor(f"{self.layer}.bias")
        unit = max(torch.finfo(bias.dtype).eps, torch.finfo(torch.float32).eps) / 2
        return mean_length(errors, change, bias.double().abs() * unit + torch.finfo(bias.dtype).smallest_normal)


@dataclass(frozen=True)
class Changed:
    """A tensor of both files whose bytes are not the original's, though its dtype and shape are."""

    name: str
    pair: Pair

    @property
    def layer(self) -> str:
        """The Linear that it is the bias of, if it is one."""
        return self.name.removesuffix(".bias")


FP8_RULES: tuple[Rule[Fp8Layer], ...] = (
    Rule("a Linear's weight", lambda it: it.is_linear,
         "{it.name} is in FP8 but is no weight of a Linear: ComfyUI does not apply a scale there.", last=True),
    Rule("one scale", lambda it: it.has_one_scale,
         "{it.layer} has no single positive float32 scale.", last=True),
    Rule("format", lambda it: it.says_its_format,
         "{it.layer}.comfy_quant does not say float8_e4m3fn."),
    Rule("current form", lambda it: it.is_used_as_current_form,
         "{it.layer} has a weight_scale but nothing tells ComfyUI to use it (no comfy_quant)."),
    Rule("legacy form", lambda it: it.is_used_as_legacy_form,
         "{it.layer} has a scale_weight but nothing tells ComfyUI to use it (no scaled_fp8 marker)."),
    Rule("table", lambda it: it.is_listed,
         "{it.layer} is not listed in the header's _quantization_metadata."),
    Rule("rounding", lambda it: it.error <= WORST_ERROR,
         "{it.layer} is off by {it.error:.3f} relative to the original: it is not a rounding of it.", last=True),
    Rule("bias", lambda it: it.needed_input <= _LONGER * it.mean_input,
         "{it.layer}.bias changed by more than its layer's rounding explains: the mean input is {it.mean_input:.3g} "
         "long and would have to be {it.needed_input:.3g} at least."),
)

#: By how much a bias may change is the last rule of its layer.
CHANGED_RULES: tuple[Rule[Changed], ...] = (
    Rule("bias of an FP8 layer", lambda it: it.name.endswith(".bias") and it.pair.rounded(f"{it.layer}.weight"),
         "{it.name} should be unchanged and is not.", last=True),
    Rule("finite", lambda it: bool(it.pair.after.tensor(it.name).isfinite().all()),
         "{it.name} holds NaN or infinite values.", last=True),
    Rule("recorded", lambda it: it.pair.calibrated is None or it.pair.bias_change(it.layer) is not None,
         "{it.name} changed, and the header does not call it corrected."),
)


def _measure(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, keep: bool) -> Measured:
    """Of a weight and its codes [out, in] in bounded memory; `keep` asks for the errors themselves."""
    step = max(1, _CHUNK_ITEMS // max(weight.shape[1], 1))
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
    return Measured(math.sqrt(error2 / norm2) if norm2 else math.sqrt(error2), kept)
