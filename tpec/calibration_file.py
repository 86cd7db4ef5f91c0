"""Calibration statistics as one safetensors file: tensors "GROUP.gram" (upper triangle), ".mean" and so on,
and "LAYER.output_gram" where gradients were collected."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from .calibration import VERSION, Calibration, InputStats, hash_layers
from .checkpoint import Reader, open_checkpoint
from .demo import write_safetensors
from .errors import TpecError
from .header import TensorInfo
from .outputs import OutputStats, run_shape
from .spool import sync_folder

_KIND = "tpec_calibration"
_PLAIN = ("mean", "vectors", "values", "rest")


def save_calibration(calibration: Calibration, path: Path | str, overwrite: bool = False) -> Path:
    """Write atomically; of symmetric matrices only one triangle. Raises TpecError when `path` is taken."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise TpecError(f"{path.name} exists already: choose another name or allow overwriting.")
    facts = {name: {"absmax": stats.absmax, "tokens": stats.tokens} for name, stats in calibration.groups.items()}
    metadata = {"kind": _KIND, "version": VERSION, "layers_hash": calibration.layers_hash,
                "source": calibration.source, "runs": str(calibration.runs), "facts": json.dumps(facts),
                "layers": json.dumps(dict(calibration.layers)), "shapes": json.dumps(dict(calibration.shapes))}
    if calibration.outputs:
        metadata["outputs"] = json.dumps({name: {"rows": stats.rows, "tokens": stats.tokens}
                                          for name, stats in calibration.outputs.items()})
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write_safetensors(part, _tensors(calibration), metadata)
        with open(part, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise TpecError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        part.unlink(missing_ok=True)
    return path


def load_calibration(path: Path | str) -> Calibration:
    """Read a calibration file. Raises TpecError for anything else."""
    checkpoint = open_checkpoint(path)
    meta = checkpoint.metadata
    if meta.get("kind") != _KIND:
        raise TpecError(f"{checkpoint.name} is not a calibration file: choose one written by Save TPEC Calibration.")
    if meta.get("version") != VERSION:
        raise TpecError(f"{checkpoint.name} is of calibration version {meta.get('version')}, this program reads "
                        f"{VERSION}: collect it anew or update.")
    try:
        facts, layers = _table(meta["facts"]), _table(meta["layers"])
        if not layers or not set(layers.values()) <= facts.keys():
            raise ValueError("its layers name no statistics")
        with Reader(checkpoint) as reader:
            groups = {name: _stats(reader, checkpoint.tensors, name, fact) for name, fact in facts.items()}
            outputs = {name: _outputs(reader, checkpoint.tensors, name, fact)
                       for name, fact in _table(meta.get("outputs", "{}")).items()}
        return Calibration(groups, layers, meta["layers_hash"], meta.get("source", ""), int(meta["runs"]), outputs,
                           _shapes(meta.get("shapes", "{}"), meta["layers_hash"]))
    except (KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise TpecError(f"{checkpoint.name} is damaged ({error}): collect the calibration anew.") from None


def _tensors(calibration: Calibration) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, stats in calibration.groups.items():
        for part in _PLAIN:
            if getattr(stats, part) is not None:
                tensors[f"{name}.{part}"] = getattr(stats, part)
        if stats.gram is not None:
            row, column = torch.triu_indices(stats.width, stats.width)
            tensors[f"{name}.gram"] = stats.gram[row, column]
    for name, stats in calibration.outputs.items():
        row, column = torch.triu_indices(*stats.gram.shape[1:])
        tensors[f"{name}.output_gram"] = stats.gram[:, row, column]
    return tensors


def _table(text: str) -> dict[str, object]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("a table is missing")
    return value


def _shapes(text: str, expected: str) -> dict[str, tuple[int, ...]]:
    """The model's layers; none in files of earlier versions."""
    shapes = {name: tuple(shape) for name, shape in _table(text).items()}
    if shapes and hash_layers(shapes) != expected:
        raise ValueError("its list of layers is not what it was")
    return shapes


def _stats(reader: Reader, known: Mapping[str, TensorInfo], name: str, fact: Mapping[str, float]) -> InputStats:
    width = known[f"{name}.mean"].items
    found = {part: known[f"{name}.{part}"] for part in ("gram", *_PLAIN) if f"{name}.{part}" in known}
    k = found["values"].items if "values" in found else 0
    expected = {"mean": (width,), "gram": (width * (width + 1) // 2,)} if "gram" in found else {
        "mean": (width,), "vectors": (width, k), "values": (k,), "rest": (width,)}
    if {part: (info.dtype, info.shape) for part, info in found.items()} != {
            part: ("F32", shape) for part, shape in expected.items()}:
        raise ValueError(f"'{name}' has parts of the wrong form")
    parts = {part: reader.tensor(info.name) for part, info in found.items()}
    absmax, tokens = float(fact["absmax"]), int(fact["tokens"])
    if tokens < 1 or not all(bool(part.isfinite().all()) for part in (*parts.values(), torch.tensor(absmax))):
        raise ValueError(f"'{name}' is not finite")
    if "gram" in parts:
        parts["gram"] = _symmetric(parts["gram"], width)
    return InputStats(absmax=absmax, tokens=tokens, **parts)


def _outputs(reader: Reader, known: Mapping[str, TensorInfo], name: str, fact: Mapping[str, int]) -> OutputStats:
    rows, tokens = int(fact["rows"]), int(fact["tokens"])
    if rows < 1 or tokens < 1:
        raise ValueError(f"'{name}' has no outputs")
    runs, size = run_shape(rows)
    info = known[f"{name}.output_gram"]
    if (info.dtype, info.shape) != ("F32", (runs, size * (size + 1) // 2)):
        raise ValueError(f"the outputs of '{name}' are of the wrong form")
    packed = reader.tensor(info.name)
    if not packed.isfinite().all():
        raise ValueError(f"the outputs of '{name}' are not finite")
    return OutputStats(_symmetric(packed, size), rows, tokens)


def _symmetric(triangle: torch.Tensor, size: int) -> torch.Tensor:
    """Symmetric [..., size, size] from its upper triangle [..., size (size + 1) / 2]."""
    full = triangle.new_zeros(*triangle.shape[:-1], size, size)
    row, column = torch.triu_indices(size, size)
    full[..., row, column] = triangle
    return full + full.triu(1).mT
