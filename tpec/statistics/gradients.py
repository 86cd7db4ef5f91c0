"""Second moments of the gradients at a layer's output: which errors of its rows the model's result feels.

With S = E[g g^T] over outputs and M = E[x x^T] over inputs, tr(S E M E^T) approximates what an error E = Q - W costs
the result (Kronecker factors: Martens & Grosse 2015, arXiv:1503.05671; for rounding: Tseng et al. 2025,
arXiv:2505.22988).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from ..errors import TpecError
from .packing.panels import Panels, panels_bytes
from .workspace import Workspace, rows_at_a_time

#: S is kept for runs of at most so many neighbouring rows; errors of different runs count as independent.
RUN_LIMIT = 2048
_CPU = torch.device("cpu")


class GradientStats(Protocol):
    """Statistics of the gradients g at the output of one layer of `rows` outputs, over `tokens` gradients.

    S = E[g g^T] is kept for `runs` runs of neighbouring rows each, the last run padded with zeros.
    """

    @property
    def rows(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def runs(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def in_memory(self) -> "HeldGradients":
        """The same in memory, on the CPU."""
        ...

    def second_moment(self, device: torch.device | None = None) -> torch.Tensor:
        """S [runs, m, m] float32 on `device`, the CPU by default; a tensor of the caller's own."""
        ...


@dataclass(frozen=True, eq=False)
class HeldGradients:
    """GradientStats in memory; gram is S [runs, m, m] float32."""

    gram: torch.Tensor
    rows: int
    tokens: int

    @property
    def runs(self) -> int:
        return len(self.gram)

    @property
    def nbytes(self) -> int:
        return _nbytes(self.rows, self.runs)

    def in_memory(self) -> "HeldGradients":
        return self

    def second_moment(self, device: torch.device | None = None) -> torch.Tensor:
        return self.gram.to(device or _CPU, copy=True)


@dataclass(frozen=True, eq=False)
class GradientsOnDemand:
    """GradientStats computed at every access by `make(device)`, so that memory holds only those in use.

    `packed` gives the tensors of the calibration file that they are read from, if they are, for another file.
    """

    rows: int
    tokens: int
    runs: int
    make: Callable[[torch.device], torch.Tensor]
    packed: Callable[[], Iterator[torch.Tensor]] | None = None

    @property
    def nbytes(self) -> int:
        return _nbytes(self.rows, self.runs)

    def in_memory(self) -> HeldGradients:
        return HeldGradients(self.make(_CPU), self.rows, self.tokens)

    def second_moment(self, device: torch.device | None = None) -> torch.Tensor:
        return self.make(device or _CPU)


def run_shape(rows: int, limit: int = RUN_LIMIT) -> tuple[int, int]:
    """(runs, rows per run) for a layer of `rows` outputs and runs of at most `limit` rows."""
    runs = -(-rows // limit)
    return runs, -(-rows // runs)


def output_bytes(rows: int) -> int:
    """Memory that the statistics of one output take."""
    return _nbytes(rows, run_shape(rows)[0])


def output_sums_bytes(rows: int) -> int:
    """Memory that the sums take while they are collected."""
    runs, size = run_shape(rows)
    return runs * panels_bytes(size)


def _nbytes(rows: int, runs: int) -> int:
    return 4 * runs * (-(-rows // runs)) ** 2


class OutputAccumulator:
    """Adds up g g^T in float32 on `device`, in runs of at most `limit` rows."""

    def __init__(self, rows: int, device: torch.device, workspace: Workspace | None = None,
                 limit: int = RUN_LIMIT) -> None:
        self._rows, (self._runs, self._size) = rows, run_shape(rows, limit)
        self._sum = Panels(self._runs, self._size, device, workspace or Workspace())
        self._tokens = 0

    def add(self, gradients: torch.Tensor) -> None:
        """gradients [tokens, rows] of any float dtype on any device."""
        for part in gradients.split(rows_at_a_time(self._rows)):
            part = torch.nn.functional.pad(part.float(), (0, self._runs * self._size - self._rows))
            self._sum.add(part.view(-1, self._runs, self._size).transpose(0, 1))
            self._tokens += len(part)

    @property
    def usable(self) -> bool:
        """Whether any gradient came, and only finite ones."""
        return self._sum.usable

    def finish(self) -> GradientStats:
        """The statistics; the sums become them on access."""
        return GradientsOnDemand(self._rows, self._tokens, self._runs, self._moment)

    def _moment(self, device: torch.device) -> torch.Tensor:
        return self._sum.matrix(max(self._tokens, 1), device)


def merge_outputs(first: Mapping[str, GradientStats], second: Mapping[str, GradientStats]) -> dict[str, GradientStats]:
    """Token-weighted means by layer, added up on access; a layer that only one side knows keeps that side's.

    Raises TpecError when the two know different numbers of rows for a layer.
    """
    merged = {**first, **second}
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        if (a.rows, a.runs) != (b.rows, b.runs):
            raise TpecError(f"The two calibrations keep the output of '{name}' in different forms: collect them anew.")
        merged[name] = GradientsOnDemand(a.rows, a.tokens + b.tokens, a.runs, partial(_merged, a, b))
    return merged


def _merged(a: GradientStats, b: GradientStats, device: torch.device) -> torch.Tensor:
    share = a.tokens / (a.tokens + b.tokens)
    return (a.second_moment() * share + b.second_moment() * (1 - share)).to(device)
