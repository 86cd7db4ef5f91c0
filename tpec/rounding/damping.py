"""Second moments of samples made fit for factoring: scaled, and shrunk towards a multiple of the identity."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..errors import TpecError

Factored = TypeVar("Factored")
#: Where rounding of float32 sums left a matrix indefinite, each further try damps so much more, so often.
_STEP = 10
_TRIES = 4


@dataclass(frozen=True)
class Damping:
    """How much of the identity is added, in units of the mean diagonal: `shrinkage` * width / tokens, within bounds.

    Few tokens for many columns make the sample's eigenvalues spread too far (Ledoit and Wolf 2004).
    """

    shrinkage: float
    least: float
    most: float

    def share(self, width: int, tokens: int) -> float:
        """What to add to the diagonal of a matrix [width, width] of `tokens` samples, in units of its mean."""
        return min(max(self.shrinkage * width / max(tokens, 1), self.least), self.most)


def scaled(matrix: torch.Tensor, rows: int) -> torch.Tensor:
    """`matrix` [..., n, n] in units of the mean of its `rows` diagonal entries that are no padding; in place."""
    average = matrix.diagonal(dim1=-2, dim2=-1).sum() / rows
    matrix /= average.clamp(min=torch.finfo(torch.float32).tiny)
    return matrix


def damped(matrix: torch.Tensor, share: float, factor: Callable[[torch.Tensor], Factored]) -> Factored:
    """`factor(matrix + d I)` for `matrix` [..., n, n], which is changed in place; d is `share`, or 10, 100, 1000 times.

    `factor` raises torch.linalg.LinAlgError for a matrix that is not positive definite, and must not write to it.
    Raises TpecError when none of them is.
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    plain = diagonal.clone()
    for attempt in range(_TRIES):
        torch.add(plain, share * _STEP**attempt, out=diagonal)
        try:
            return factor(matrix)
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
            continue
    raise TpecError("The calibration holds a matrix that is not positive: collect it anew.")
