"""What a file is: family, formats, sizes, and what quantizing it would do or why it is refused."""

from collections import Counter
from pathlib import Path

from ..errors import TpecError
from ..files.checkpoint import Checkpoint, open_checkpoint
from ..model.families import QUANTIZE
from ..model.plan import make_plan
from ..settings import Settings

_FORMAT_KEYS = {"weight_scale": "comfy_quant", "scale_weight": "scaled_fp8"}


def inspect(path: Path | str) -> dict[str, object]:
    """Plain data about a checkpoint, from its header alone. Raises TpecError when that is malformed."""
    checkpoint = open_checkpoint(path)
    data: dict[str, object] = {
        "file": checkpoint.name,
        "files": len(checkpoint.files),
        "tensors": len(checkpoint.tensors),
        "bytes": checkpoint.nbytes,
        "dtypes": _bytes_by_dtype(checkpoint),
        "formats": formats_of(checkpoint),
        "metadata": {key: value for key, value in checkpoint.metadata.items() if len(value) < 400},
    }
    try:
        plan = make_plan(checkpoint, Settings())
    except TpecError as refusal:
        return data | {"refused": str(refusal), "layers": _plain_layers(checkpoint)}
    layers = [{"name": layer.name, "dtype": layer.dtype, "shape": list(layer.shape), "action": layer.action,
               "reason": layer.reason} for layer in plan.layers]
    return data | {"family": plan.family.name, "why": plan.why, "kind": plan.kind,
                   "quantizable": len(plan.of(QUANTIZE)), "result_bytes": plan.output_nbytes, "layers": layers}


def formats_of(checkpoint: Checkpoint) -> list[str]:
    """The scaled-FP8 forms that a file carries."""
    suffixes = {name.rpartition(".")[2] for name in checkpoint.tensors}
    found = sorted(form for key, form in _FORMAT_KEYS.items() if key in suffixes)
    return found + (["header metadata"] if "_quantization_metadata" in checkpoint.metadata else [])


def text(data: dict[str, object]) -> str:
    """The inspection for people."""
    dtypes = ", ".join(f"{code} {size / 1e9:.3f} GB" for code, size in data["dtypes"].items())
    lines = [f"{data['file']}: {data['tensors']} tensors, {data['bytes'] / 1e9:.3f} GB ({dtypes})"]
    if data["formats"]:
        lines.append(f"scaled FP8 forms: {', '.join(data['formats'])}")
    if "refused" in data:
        lines.append(f"not quantizable: {data['refused']}")
    else:
        lines.append(f"{data['why']}; {data['quantizable']} layers would become FP8, "
                     f"{data['result_bytes'] / 1e9:.3f} GB in all ({data['kind']})")
    lines += [f"{layer['action']:8} {layer['dtype']:8} {'x'.join(map(str, layer['shape'])) or 'scalar':>13}  "
              f"{layer['name']}" + (f"  ({layer['reason']})" if layer["reason"] else "") for layer in data["layers"]]
    return "\n".join(lines)


def _bytes_by_dtype(checkpoint: Checkpoint) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for info in checkpoint.tensors.values():
        sizes[info.dtype] += info.nbytes
    return dict(sizes.most_common())


def _plain_layers(checkpoint: Checkpoint) -> list[dict[str, object]]:
    return [{"name": info.name, "dtype": info.dtype, "shape": list(info.shape), "action": "-", "reason": ""}
            for info in checkpoint.tensors.values()]
