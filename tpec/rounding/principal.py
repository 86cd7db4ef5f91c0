"""Principal components of a weight, and the data-free metric made of them.

TPEC (Top-Principal Error Correction, Clybius) wants u_1^T (Q - W) v_1 = 0 for the leading singular pair of W; here the
error of every row along all leading right singular vectors is held down.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..statistics.directions import Directions
from .feedback import Tick, no_tick
from .metric import LowRankMetric
from .reproducible import cholesky

_POWER_STEPS = 3
#: The first pair alone is needed to more digits: extra steps on a narrow basis.
_NARROW = 12
_NARROW_STEPS = 4
_SEED = 20250814


@dataclass(frozen=True)
class Components:
    """An orthonormal basis of the leading right singular space [n, k], and the first triple: [n], [rows], 0-d.

    All float32; `first_value` is in units of `unit`, the largest magnitude of W.
    """

    right: torch.Tensor
    first_right: torch.Tensor
    first_left: torch.Tensor
    first_value: torch.Tensor
    unit: torch.Tensor


def row_chunks(shape: Sequence[int], chunk: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Split the rows of a weight of `shape` [rows, n] so that each part holds about `chunk` of its values.

    Returns begin and end of each part; all but the last have whole multiples of `multiple` rows.
    """
    rows, columns = shape
    step = max(1, min(rows, chunk // max(columns, 1)) // multiple) * multiple
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def principal_components(weight: torch.Tensor, largest: torch.Tensor, k: int, chunk: int,
                         tick: Tick = no_tick, directions: Directions | None = None) -> Components:
    """Randomized subspace iteration (Halko et al. 2011, arXiv:0909.4061) on W [rows, n] of any float dtype.

    Works through chunks of about `chunk` weights in float32, so W is never held in float32 as a whole, and in units of
    its largest magnitude, so that neither huge nor tiny weights leave float32's range. It starts from
    `directions`, which a caller with many weights keeps.
    """
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    rows, n = weight.shape
    parts = _Parts(weight, chunk)
    width = min(max(k, _NARROW), rows, n)
    basis = (directions or start_directions()).matrix(n, width, weight.device)
    for step in range(_POWER_STEPS):
        basis = _orthonormal(_gram_product(parts, unit, basis, tick), 3 if step == _POWER_STEPS - 1 else 1)
    # Orthogonal iteration brings the leading directions to the front.
    first = _first_vector(parts, unit, basis[:, :_NARROW], tick)
    scaled = first / unit
    left = torch.cat([part @ scaled for part in parts])
    sigma = left.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return Components(basis[:, : min(k, width)].contiguous(), first, left / sigma, sigma, unit)


class _Parts:
    """A weight's chunks of rows in float32, made when asked for; a weight of a single chunk is kept."""

    def __init__(self, weight: torch.Tensor, chunk: int) -> None:
        self._weight = weight
        self._chunks = row_chunks(weight.shape, chunk)
        self._only = weight.float() if len(self._chunks) == 1 else None

    def __iter__(self) -> Iterator[torch.Tensor]:
        if self._only is not None:
            yield self._only
            return
        for begin, end in self._chunks:
            yield self._weight[begin:end].float()


def start_directions() -> Directions:
    """What the search for principal components starts from."""
    return Directions(_SEED)


def _first_vector(parts: _Parts, unit: torch.Tensor, basis: torch.Tensor, tick: Tick) -> torch.Tensor:
    for _ in range(_NARROW_STEPS):
        # Twice W^T W in between leaves float32 enough of all directions that may turn out the first.
        basis = _orthonormal(_gram_product(parts, unit, _gram_product(parts, unit, basis, tick), tick), 1)
    basis = _orthonormal(basis, 2)
    small = basis.mT @ _gram_product(parts, unit, basis, tick)
    # In float64: where a weight has a single component the rest underflows, and some LAPACKs then give up.
    return basis @ torch.linalg.eigh((small + small.mT).double())[1][:, -1].float()


def _orthonormal(basis: torch.Tensor, passes: int) -> torch.Tensor:
    """Orthonormal columns spanning `basis` [n, m]: shifted Cholesky QR (Fukaya et al. 2020).

    Three passes make them orthonormal to float32's last digits; with the TF32 products of a run on a GPU to about 1e-3,
    which is enough to steer rounding. Matrix products instead of Householder steps make it many times faster than
    linalg.qr on a GPU.
    """
    eye = torch.eye(basis.shape[1], device=basis.device)
    result = basis
    for _ in range(passes):
        gram = result.mT @ result
        diagonal = gram.diagonal()
        diagonal += 1e-6 * diagonal.sum() + torch.finfo(torch.float32).tiny
        lower = cholesky(gram)
        result = result @ torch.linalg.solve_triangular(lower, eye, upper=False).mT
    return result.nan_to_num_()


def _gram_product(parts: _Parts, unit: torch.Tensor, basis: torch.Tensor, tick: Tick) -> torch.Tensor:
    """W^T W B, chunk by chunk, with W in units of `unit`."""
    product = torch.zeros_like(basis)
    scaled = basis / unit
    for part in parts:
        product.addmm_(part.mT, (part @ scaled).div_(unit))
        tick()
    return product


def data_free_metric(components: Components, strength: float) -> LowRankMetric:
    """I + c V V^T with V = `components.right` and c = `strength`.

    Columns go in order of falling leverage, so that the ones that matter are rounded first.
    """
    right = components.right
    order = right.square().sum(1).argsort(descending=True, stable=True)
    return LowRankMetric(right, torch.full((right.shape[1],), strength, device=right.device), order)
