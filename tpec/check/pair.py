"""A quantized file beside its original, and what the quantized one's header says of itself."""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch

from ..files.checkpoint import Checkpoint, Reader
from ..files.dtypes import FLOATS
from ..files.source import Source, TensorReader
from ..model.families import never_read
from ..model.formats import CALIBRATED_KEY, DROPPED, RECIPE_KEY
from ..model.quantized import TABLE_KEY

_UNREADABLE = (ValueError, KeyError, AttributeError, TypeError, ArithmeticError, RecursionError)


@dataclass(frozen=True)
class Pair:
    """Both files, open for reading.

    table: the header's description of quantized layers by name, None without one. calibrated: |E[x]| of calibrated
    layers by name, None for a layer whose bias is the original's; the whole is None where the header has no such
    record (files of earlier versions and of other programs). described: whether any layer has a `comfy_quant` tensor;
    then all need one. markers: the prefixes of the parts with a legacy marker. faults: what in the header cannot be
    read, in sentences.
    """

    source: Source
    result: Checkpoint
    before: TensorReader
    after: Reader
    table: Mapping[str, object] | None
    calibrated: Mapping[str, float | None] | None
    dropped: frozenset[str]
    described: bool
    markers: tuple[str, ...]
    faults: tuple[str, ...]

    def rounded(self, name: str) -> bool:
        """Whether tensor `name` is in both files, FP8 in the result and not in the original."""
        before, after = self.source.tensors.get(name), self.result.tensors.get(name)
        return before is not None and after is not None and after.dtype == "F8_E4M3" and before.dtype in FLOATS

    def bias_change(self, layer: str) -> torch.Tensor | None:
        """What was added to a bias that the header calls corrected, float64 [out]; None for every other."""
        name = f"{layer}.bias"
        before, after = self.source.tensors.get(name), self.result.tensors.get(name)
        if (self.calibrated or {}).get(layer) is None or before is None or after is None:
            return None
        rows = self.result.tensors[f"{layer}.weight"].shape[:1]
        if before.dtype != after.dtype or after.dtype not in FLOATS or not before.shape == after.shape == rows:
            return None
        return self.after.tensor(name).double() - self.before.tensor(name).double()


@contextmanager
def open_pair(source: Source, result: Checkpoint) -> Iterator[Pair]:
    """Open both files and read the result's header. Raises TpecError when one cannot be opened."""
    faults: list[str] = []
    table, calibrated = _table(result, faults), _calibrated(result, faults)
    dropped = _dropped(source, result, faults)
    described = any(name.endswith(".comfy_quant") for name in result.tensors)
    markers = tuple(name.removesuffix("scaled_fp8") for name in result.tensors
                    if name.rpartition(".")[2] == "scaled_fp8")
    with closing(source.reader()) as before, Reader(result) as after:
        yield Pair(source, result, before, after, table, calibrated, dropped, described, markers, tuple(faults))


def _table(result: Checkpoint, faults: list[str]) -> dict[str, object] | None:
    text = result.metadata.get(TABLE_KEY)
    if text is None:
        return None
    try:
        return dict(json.loads(text)["layers"].items())
    except _UNREADABLE:
        faults.append(f"The header's {TABLE_KEY} cannot be read.")
        return None


def _calibrated(result: Checkpoint, faults: list[str]) -> dict[str, float | None] | None:
    text = result.metadata.get(CALIBRATED_KEY)
    if text is None:
        return None
    try:
        return {name: None if length is None else abs(float(length)) for name, length in json.loads(text).items()}
    except _UNREADABLE:
        faults.append(f"The header's {CALIBRATED_KEY} cannot be read.")
        return None


def _dropped(source: Source, result: Checkpoint, faults: list[str]) -> frozenset[str]:
    """The tensors that were left out on purpose: the result's header lists them.

    Files of other programs, and of versions before that list, say nothing; there only what ComfyUI never reads of the
    original's family (a T5's decoder) may be absent.
    """
    try:
        recipe = json.loads(result.metadata.get(RECIPE_KEY, "{}"))
        if DROPPED in recipe:
            return frozenset(map(str, recipe[DROPPED]))
        family = recipe.get("family")
    except _UNREADABLE:
        faults.append(f"The header's {RECIPE_KEY} cannot be read.")
        return frozenset()
    return never_read(source.tensors, family)
