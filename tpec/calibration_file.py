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
        facts, layers = json.loads(meta["facts"]), json.loads(meta["layers"])
        with Reader(checkpoint) as reader:
            groups = {name: _stats(reader, checkpoint.tensors, name, fact) for name, fact in facts.items()}
        return Calibration(groups, layers, meta["layers_hash"], meta.get("source", ""), int(meta["runs"]))
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
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


def _stats(reader: Reader, known: Mapping[str, object], name: str, fact: Mapping[str, float]) -> InputStats:
    parts = {part: reader.tensor(f"{name}.{part}") for part in _PLAIN if f"{name}.{part}" in known}
    gram = None
    if f"{name}.gram" in known:
        width = len(parts["mean"])
        gram = torch.zeros(width, width)
        row, column = torch.triu_indices(width, width)
        gram[row, column] = reader.tensor(f"{name}.gram")
        gram = gram + gram.triu(1).mT
    for tensor in (*parts.values(), gram):
        if tensor is not None and not bool(tensor.isfinite().all()):
            raise ValueError(f"'{name}' is not finite")
    return InputStats(absmax=float(fact["absmax"]), tokens=int(fact["tokens"]), gram=gram, **parts)
