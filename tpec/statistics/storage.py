"""Calibration statistics as one safetensors file: tensors "GROUP.mean", "GROUP.codes" and so on, and
"LAYER.output_codes" where gradients were collected. What is kept of a matrix is in packing/forms.py."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import TpecError, is_out_of_memory
from ..files.checkpoint import open_checkpoint
from ..files.plain import write_stream
from ..files.replace import NameTaken, disk_errors, exists, refuse_dead_link, replacing
from .calibration import EARLIER, VERSION, Calibration, hash_layers
from .packing.forms import Shapes, input_shapes, output_shapes, pack_inputs, pack_outputs, rank_of
from .stored import StoredFile, stored_gradients, stored_inputs

_KIND = "tpec_calibration"
_CPU = torch.device("cpu")

#: Told before each part of a file is made: how many are written, and of how many.
OnPart = Callable[[int, int], None]


@dataclass(frozen=True)
class _Group:
    """Tensors of the file that are made together: dtypes and shapes by name, and what makes them in that order."""

    shapes: Shapes
    make: Callable[[torch.device], Iterable[torch.Tensor]]


def save_calibration(calibration: Calibration, path: Path | str, overwrite: bool = False,
                     on_part: OnPart = lambda done, count: None, device: torch.device = _CPU) -> Path:
    """Write atomically, matrices as factors in few bits. Raises TpecError when `path` is taken.

    What is computed on access is computed part by part, on `device` where it has room. An exception from `on_part`
    leaves nothing behind.
    """
    path = Path(path)
    with disk_errors(path):
        refuse_dead_link(path)
        if exists(path, "written") and not overwrite:
            raise NameTaken(path)
    facts = {name: {"absmax": stats.absmax, "tokens": stats.tokens, "rank": rank_of(stats)}
             for name, stats in calibration.groups.items()}
    metadata = {"kind": _KIND, "version": VERSION, "layers_hash": calibration.layers_hash,
                "source": calibration.source, "runs": str(calibration.runs), "facts": json.dumps(facts),
                "layers": json.dumps(dict(calibration.layers)), "shapes": json.dumps(dict(calibration.shapes))}
    if calibration.outputs:
        metadata["outputs"] = json.dumps({name: {"rows": stats.rows, "tokens": stats.tokens}
                                          for name, stats in calibration.outputs.items()})
    if calibration.weights:
        metadata["weights"] = json.dumps(dict(calibration.weights))
    with replacing(path, overwrite) as part:
        _write(part, list(_groups(calibration)), metadata, on_part, device)
    return path


def open_calibration(path: Path | str) -> Calibration:
    """A calibration whose large parts are read from the file when they are needed; the file stays open meanwhile.

    Raises TpecError for anything else; what is wrong within a large part is said when it is read.
    """
    checkpoint = open_checkpoint(path)
    meta = checkpoint.metadata
    if meta.get("kind") != _KIND:
        raise TpecError(f"{checkpoint.name} is not a calibration file: choose one written by Save TPEC Calibration.")
    if meta.get("version") not in (VERSION, EARLIER):
        raise TpecError(f"{checkpoint.name} is of calibration version {meta.get('version')}, this program reads "
                        f"{VERSION}: collect it anew or update.")
    file = StoredFile(checkpoint)
    try:
        facts, layers = _table(meta["facts"]), _table(meta["layers"])
        if not layers or not set(layers.values()) <= facts.keys():
            raise ValueError("its layers name no statistics")
        groups = {name: stored_inputs(file, name, float(fact["absmax"]), int(fact["tokens"]), _rank(meta, fact))
                  for name, fact in facts.items()}
        outputs = {name: stored_gradients(file, name, int(fact["rows"]), int(fact["tokens"]))
                   for name, fact in _table(meta.get("outputs", "{}")).items()}
        return Calibration(groups, layers, meta["layers_hash"], meta.get("source", ""), int(meta["runs"]), outputs,
                           _shapes(meta.get("shapes", "{}"), meta["layers_hash"]), checkpoint.identity(),
                           _weights(meta.get("weights", "{}")))
    except (KeyError, ValueError, TypeError, ArithmeticError, RuntimeError, RecursionError) as error:
        raise file.damaged(error) from None


def _groups(calibration: Calibration) -> Iterator[_Group]:
    for name, stats in calibration.groups.items():
        shapes = input_shapes(stats.width, rank_of(stats))
        yield _Group({f"{name}.{part}": shape for part, shape in shapes.items()}, partial(pack_inputs, stats))
    for name, stats in calibration.outputs.items():
        shapes = output_shapes(stats.rows, stats.runs)
        yield _Group({f"{name}.{part}": shape for part, shape in shapes.items()}, partial(pack_outputs, stats))


def _write(path: Path, groups: list[_Group], metadata: dict[str, str], on_part: OnPart,
           device: torch.device) -> None:
    """Made group by group: all of them at once is much memory."""
    shapes = {name: shape for group in groups for name, shape in group.shapes.items()}
    write_stream(path, shapes, _made(groups, on_part, device), metadata)


def _made(groups: list[_Group], on_part: OnPart, device: torch.device) -> Iterator[torch.Tensor]:
    for at, group in enumerate(groups):
        on_part(at, len(groups))
        yield from _on(device, group)


def _on(device: torch.device, group: _Group) -> list[torch.Tensor]:
    """A group's tensors, in memory; computed there, too, where the device has no room for them."""
    try:
        return [tensor.cpu() for tensor in group.make(device)]
    except RuntimeError as error:
        if device.type == "cpu" or not is_out_of_memory(error):
            raise
    return list(group.make(_CPU))


def _rank(meta: Mapping[str, str], fact: Mapping[str, Any]) -> int | None:
    """Columns of a summary's factor, 0 of a whole matrix; None in files of version 1, whose tensors tell."""
    return int(fact["rank"]) if meta["version"] == VERSION else None


def _table(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("a table is missing")
    return value


def _weights(text: str) -> dict[str, tuple[float, ...]]:
    """A few weights of the model; none in files of earlier versions."""
    return {name: tuple(map(float, values)) for name, values in _table(text).items()}


def _shapes(text: str, expected: str) -> dict[str, tuple[int, ...]]:
    """The model's layers; none in files of earlier versions."""
    shapes = {name: tuple(shape) for name, shape in _table(text).items()}
    if shapes and hash_layers(shapes) != expected:
        raise ValueError("its list of layers is not what it was")
    return shapes
