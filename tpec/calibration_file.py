"""Calibration statistics as one safetensors file: tensors "GROUP.gram" (upper triangle), ".mean" and so on."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from .calibration import VERSION, Calibration, InputStats
from .checkpoint import Reader, open_checkpoint
from .demo import write_safetensors
from .errors import TpecError
from .header import TensorInfo
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
                "layers": json.dumps(dict(calibration.layers))}
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
        return Calibration(groups, layers, meta["layers_hash"], meta.get("source", ""), int(meta["runs"]))
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
    return tensors


def _table(text: str) -> dict[str, object]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("a table is missing")
    return value


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
        gram = torch.zeros(width, width)
        row, column = torch.triu_indices(width, width)
        gram[row, column] = parts["gram"]
        parts["gram"] = gram + gram.triu(1).mT
    return InputStats(absmax=absmax, tokens=tokens, **parts)
