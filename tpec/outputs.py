"""Second moments of the gradients at a layer's output: which errors of its rows the model's result feels.

With S = E[g g^T] over outputs and M = E[x x^T] over inputs, tr(S E M E^T) approximates what an error E = Q - W costs
the result (Kronecker factors: Martens & Grosse 2015, arXiv:1503.05671; for rounding: Tseng et al. 2025,
arXiv:2505.22988).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from .errors import TpecError
from .workspace import Workspace

#: S is kept for runs of at most so many neighbouring rows; errors of different runs count as independent.
RUN_LIMIT = 2048
_TOKENS = 8192


@dataclass(frozen=True)
class OutputStats:
    """gram [runs, m, m] float32 on the CPU: E[g g^T] of m neighbouring rows each, the last run padded with zeros.

    `rows` is the layer's number of outputs, `tokens` the number of gradients seen.
    """

    gram: torch.Tensor
    rows: int
    tokens: int

    @property
    def nbytes(self) -> int:
        return output_bytes(self.rows)

    def whole(self) -> "OutputStats":
        """The same in memory."""
        return self

    def on(self, device: torch.device) -> torch.Tensor:
        """`gram` on a device."""
        return self.gram.to(device)


class LazyOutputs(OutputStats):
    """As OutputStats, but `make` makes them at every look, so that memory holds only those in use."""

    gram = property(lambda self: self.whole().gram)

    def __init__(self, rows: int, tokens: int, make: Callable[[], OutputStats]) -> None:
        # The base class is a frozen dataclass.
        for name, value in (("rows", rows), ("tokens", tokens), ("_make", make)):
            object.__setattr__(self, name, value)

    def whole(self) -> OutputStats:
        return self._make()


def run_shape(rows: int) -> tuple[int, int]:
    """(runs, rows per run) for a layer of `rows` outputs."""
    runs = -(-rows // RUN_LIMIT)
    return runs, -(-rows // runs)


def output_bytes(rows: int) -> int:
    """Memory that the statistics of one output take."""
    runs, size = run_shape(rows)
    return 4 * runs * size * size


class OutputAccumulator:
    """Adds up g g^T in float32 on `device`, run by run."""

    def __init__(self, rows: int, device: torch.device, workspace: Workspace | None = None) -> None:
        self._workspace = workspace or Workspace()
        self._rows, (runs, self._size) = rows, run_shape(rows)
        with torch.inference_mode(False):
            self._gram = torch.zeros(runs, self._size, self._size, device=device)
        self._tokens = 0

    def add(self, gradients: torch.Tensor) -> None:
        """gradients [tokens, rows] of any float dtype on any device."""
        runs = len(self._gram)
        for part in gradients.split(_TOKENS):
            part = torch.nn.functional.pad(part.float(), (0, runs * self._size - self._rows))
            part = part.view(-1, runs, self._size).transpose(0, 1)
            self._workspace.add(self._gram, part.mT @ part)
            self._tokens += part.shape[1]

    @property
    def usable(self) -> bool:
        """Whether any gradient came, and only finite ones."""
        return bool(self._gram.isfinite().all() and self._gram.any())

    def finish(self) -> OutputStats:
        """The statistics; the sums become them when somebody looks."""
        return LazyOutputs(self._rows, self._tokens, self._whole)

    def _whole(self) -> OutputStats:
        gram = (self._gram / max(self._tokens, 1)).cpu()
        return OutputStats((gram + gram.mT) / 2, self._rows, self._tokens)


def merge_outputs(first: Mapping[str, OutputStats], second: Mapping[str, OutputStats]) -> dict[str, OutputStats]:
    """Token-weighted means by layer, added up when somebody looks; a layer that only one side knows keeps that side's.
    """
    merged = {**first, **second}
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        if a.rows != b.rows:
            raise TpecError(f"The two calibrations keep the output of '{name}' in different forms: collect them anew.")
        merged[name] = LazyOutputs(a.rows, a.tokens + b.tokens, partial(_merged, a, b))
    return merged


def _merged(a: OutputStats, b: OutputStats) -> OutputStats:
    share = a.tokens / (a.tokens + b.tokens)
    return OutputStats(a.gram * share + b.gram * (1 - share), a.rows, a.tokens + b.tokens)
