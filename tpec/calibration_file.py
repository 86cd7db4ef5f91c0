"""Calibration statistics as one safetensors file: tensors "GROUP.gram" (upper triangle), ".mean" and so on,
and "LAYER.output_gram" where gradients were collected."""

import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from .calibration import VERSION, Calibration, InputStats, hash_layers
from .checkpoint import open_checkpoint
from .errors import TpecError
from .outputs import OutputStats, run_shape
from .spool import sync_folder
from .stored import StoredFile, StoredOutputs, StoredStats, folded

_KIND = "tpec_calibration"

#: A tensor of the file: its name, its shape, and what makes it.
_Part = tuple[str, tuple[int, ...], Callable[[], torch.Tensor]]


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
        _write(part, list(_parts(calibration)), metadata)
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise TpecError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        part.unlink(missing_ok=True)
    return path


def open_calibration(path: Path | str) -> Calibration:
    """A calibration whose large parts are read from the file when they are needed; the file stays open meanwhile.

    Raises TpecError for anything else; what is wrong within a large part is said when it is read.
    """
    checkpoint = open_checkpoint(path)
    meta = checkpoint.metadata
    if meta.get("kind") != _KIND:
        raise TpecError(f"{checkpoint.name} is not a calibration file: choose one written by Save TPEC Calibration.")
    if meta.get("version") != VERSION:
        raise TpecError(f"{checkpoint.name} is of calibration version {meta.get('version')}, this program reads "
                        f"{VERSION}: collect it anew or update.")
    file = StoredFile(checkpoint)
    try:
        facts, layers = _table(meta["facts"]), _table(meta["layers"])
        if not layers or not set(layers.values()) <= facts.keys():
            raise ValueError("its layers name no statistics")
        groups = {name: StoredStats(file, name, float(fact["absmax"]), int(fact["tokens"]))
                  for name, fact in facts.items()}
        outputs = {name: StoredOutputs(file, name, int(fact["rows"]), int(fact["tokens"]))
                   for name, fact in _table(meta.get("outputs", "{}")).items()}
        return Calibration(groups, layers, meta["layers_hash"], meta.get("source", ""), int(meta["runs"]), outputs,
                           _shapes(meta.get("shapes", "{}"), meta["layers_hash"]), checkpoint.identity())
    except (KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise file.damaged(error) from None


def load_calibration(path: Path | str) -> Calibration:
    """A calibration in memory; nothing of the file is held. Raises TpecError for anything else."""
    stored = open_calibration(path)
    groups = {name: stats.whole() for name, stats in stored.groups.items()}
    outputs = {name: stats.whole() for name, stats in stored.outputs.items()}
    return replace(stored, groups=groups, outputs=outputs, identity=None)


def _parts(calibration: Calibration) -> Iterator[_Part]:
    for name, stats in calibration.groups.items():
        yield f"{name}.mean", (stats.width,), partial(getattr, stats, "mean")
        if stats.gram is not None:
            yield f"{name}.gram", (stats.width * (stats.width + 1) // 2,), partial(_folded, stats)
            continue
        yield f"{name}.vectors", tuple(stats.vectors.shape), partial(getattr, stats, "vectors")
        yield f"{name}.values", tuple(stats.values.shape), partial(getattr, stats, "values")
        yield f"{name}.rest", (stats.width,), partial(getattr, stats, "rest")
    for name, stats in calibration.outputs.items():
        runs, size = run_shape(stats.rows)
        yield f"{name}.output_gram", (runs, size * (size + 1) // 2), partial(_folded, stats)


def _folded(stats: InputStats | OutputStats) -> torch.Tensor:
    return folded(stats.gram)


def _write(path: Path, parts: list[_Part], metadata: dict[str, str]) -> None:
    """A safetensors file of float32 tensors, made one by one: several times as much as all of them is much memory."""
    header: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for name, shape, _ in parts:
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, make in parts:
            file.write(memoryview(make().contiguous().cpu().numpy()).cast("B"))
        file.flush()
        os.fsync(file.fileno())


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
