"""What a file is: family, formats, sizes, and what quantizing it would do or why it is refused."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from ..errors import TpecError
from ..files.checkpoint import Checkpoint, open_checkpoint
from ..files.header import MAX_HEADER_BYTES, TensorInfo
from ..model.families import QUANTIZE, Action
from ..model.formats import make_layout
from ..model.plan import Plan, TensorPlan, make_plan
from ..settings import Settings

_FORMAT_KEYS = {"weight_scale": "comfy_quant", "scale_weight": "scaled_fp8"}
#: Metadata with longer values (workflows, tables of layers) is left out of the JSON.
_LONGEST_VALUE = 400


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint's header tells.

    checkpoint: the file or shards. plan: what quantizing with the default settings would do, None where that is
    refused. refused: the sentence with which it is refused, '' where it is not.
    """

    checkpoint: Checkpoint
    plan: Plan | None
    refused: str = ""

    @property
    def dtypes(self) -> dict[str, int]:
        """Bytes of tensor data by safetensors dtype code, the largest first."""
        sizes: Counter[str] = Counter()
        for info in self.checkpoint.tensors.values():
            sizes[info.dtype] += info.nbytes
        return dict(sizes.most_common())

    @property
    def formats(self) -> list[str]:
        """The scaled FP8 forms that the file carries already."""
        suffixes = {name.rpartition(".")[2] for name in self.checkpoint.tensors}
        found = sorted(form for key, form in _FORMAT_KEYS.items() if key in suffixes)
        return found + (["header metadata"] if "_quantization_metadata" in self.checkpoint.metadata else [])

    def to_json(self) -> dict[str, object]:
        """Plain data for `json.dumps`; "layers" lists every tensor, sizes are in bytes."""
        checkpoint = self.checkpoint
        data: dict[str, object] = {
            "file": checkpoint.name,
            "files": len(checkpoint.files),
            "tensors": len(checkpoint.tensors),
            "bytes": checkpoint.nbytes,
            "dtypes": self.dtypes,
            "formats": self.formats,
            "metadata": {key: value for key, value in checkpoint.metadata.items() if len(value) < _LONGEST_VALUE},
        }
        if self.plan is None:
            return data | {"refused": self.refused, "layers": [_entry(info, "-", "")
                                                               for info in checkpoint.tensors.values()]}
        plan = self.plan
        return data | {"family": plan.family.name, "why": plan.why, "kind": plan.kind,
                       "quantizable": len(plan.of(QUANTIZE)), "result_bytes": plan.output_nbytes,
                       "layers": [_entry(layer.info, layer.action, layer.reason) for layer in plan.tensors]}

    def text(self, every_tensor: bool = False) -> str:
        """The inspection for people: a few lines, or one more for every tensor."""
        dtypes = ", ".join(f"{code} {size / 1e9:.3f} GB" for code, size in self.dtypes.items())
        lines = [f"{self.checkpoint.name}: {len(self.checkpoint.tensors)} tensors, "
                 f"{self.checkpoint.nbytes / 1e9:.3f} GB ({dtypes})"]
        if self.formats:
            lines.append(f"scaled FP8 forms: {', '.join(self.formats)}")
        if self.plan is None:
            lines.append(f"not quantizable: {self.refused}")
            entries = [(info, "-", "") for info in self.checkpoint.tensors.values()]
        else:
            lines += _verdict(self.plan)
            entries = [(layer.info, layer.action, layer.reason) for layer in self.plan.tensors]
        if every_tensor:
            lines += [_line(*entry) for entry in entries]
        elif self.plan is not None:
            lines += _groups(self.plan)
        return "\n".join(lines)


def inspect(path: Path | str) -> Inspection:
    """Describe a checkpoint from its header alone; `path` is what `open_checkpoint` takes.

    Raises TpecError when the header is malformed or the file cannot be read. A valid file that quantizing would refuse
    is no error: the sentence is in `refused`.
    """
    checkpoint = open_checkpoint(path)
    try:
        plan = make_plan(checkpoint, Settings())
        if _header_may_be_too_large(checkpoint):
            make_layout(plan, {})
    except TpecError as refusal:
        return Inspection(checkpoint, None, str(refusal))
    return Inspection(checkpoint, plan)


def _header_may_be_too_large(checkpoint: Checkpoint) -> bool:
    """Laying out the result takes longer than all the rest, and no real model comes near the limit."""
    most_per_tensor = 8  # a weight, its scales in two forms, its description and its line in the header's table
    return most_per_tensor * sum(len(name) + 100 for name in checkpoint.tensors) > MAX_HEADER_BYTES


def _verdict(plan: Plan) -> list[str]:
    return [f"{plan.why}; {len(plan.of(QUANTIZE))} layers would become FP8, {plan.output_nbytes / 1e9:.3f} GB in all "
            f"({plan.kind})", *plan.notes]


def _groups(plan: Plan) -> list[str]:
    """One line for each action and reason: how many tensors it holds for, and their size."""
    groups: defaultdict[tuple[Action, str], list[TensorPlan]] = defaultdict(list)
    for layer in plan.tensors:
        groups[layer.action, layer.reason].append(layer)
    lines = [(sum(layer.info.nbytes for layer in layers), len(layers), *key) for key, layers in groups.items()]
    return [f"{action:8} {count:5} tensors {size / 1e9:9.3f} GB  {reason}"
            for size, count, action, reason in sorted(lines, reverse=True)]


def _line(info: TensorInfo, action: str, reason: str) -> str:
    shape = "x".join(map(str, info.shape)) or "scalar"
    return f"{action:8} {info.dtype:8} {shape:>13}  {info.name}" + (f"  ({reason})" if reason else "")


def _entry(info: TensorInfo, action: str, reason: str) -> dict[str, object]:
    return {"name": info.name, "dtype": info.dtype, "shape": list(info.shape), "action": action, "reason": reason}
