"""Principal components of a weight, and the data-free metric made of them.

TPEC (Top-Principal Error Correction, Clybius) wants u_1^T (Q - W) v_1 = 0 for the leading singular pair of W; here the
error of every row along all leading right singular vectors is held down.
"""

import functools
from dataclasses import dataclass

import torch

from .metric import LowRankMetric
from .rounding import Tick, no_tick
from .steady import cholesky

_POWER_STEPS = 3
#: The first pair alone is needed to more digits: extra steps on a narrow basis.
_NARROW = 12
_NARROW_STEPS = 8
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


def row_chunks(rows: int, columns: int, items: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Split rows so that a chunk holds about `items` weights, in whole multiples of `multiple` rows."""
    step = max(1, min(rows, items // max(columns, 1)) // multiple) * multiple
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def principal_components(weight: torch.Tensor, largest: torch.Tensor, k: int, items: int,
                         tick: Tick = no_tick) -> Components:
    """Randomized subspace iteration (Halko et al. 2011, arXiv:0909.4061) on W [rows, n] of any float dtype.

    Works through chunks of about `items` weights in float32, so W is never held in float32 as a whole, and in units of
    its largest magnitude, so that neither huge nor tiny weights leave float32's range.
    """
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    rows, n = weight.shape
    chunks = row_chunks(rows, n, items)
    width = min(max(k, _NARROW), rows, n)
    basis = _start(n, width, weight.device)
    for step in range(_POWER_STEPS):
        basis = _orthonormal(_gram_product(weight, unit, basis, chunks, tick), 3 if step == _POWER_STEPS - 1 else 1)
    # Orthogonal iteration brings the leading directions to the front.
    first = _first_vector(weight, unit, basis[:, :_NARROW], chunks, tick)
    left = torch.cat([weight[a:b].float() @ (first / unit) for a, b in chunks])
    sigma = left.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return Components(basis[:, : min(k, width)].contiguous(), first, left / sigma, sigma, unit)


@functools.lru_cache(8)
def _start(n: int, width: int, device: torch.device) -> torch.Tensor:
    """The same random directions on every device; a model has few shapes, so they are kept."""
    return torch.randn(n, width, generator=torch.Generator().manual_seed(_SEED)).to(device)


def forget_starts() -> None:
    """Free the device memory of the kept random directions."""
    _start.cache_clear()


def _first_vector(weight: torch.Tensor, unit: torch.Tensor, basis: torch.Tensor,
                  chunks: list[tuple[int, int]], tick: Tick) -> torch.Tensor:
    for _ in range(_NARROW_STEPS):
        basis = _orthonormal(_gram_product(weight, unit, basis, chunks, tick), 1)
    basis = _orthonormal(basis, 2)
    small = basis.mT @ _gram_product(weight, unit, basis, chunks, tick)
    return basis @ torch.linalg.eigh((small + small.mT) / 2)[1][:, -1]


def _orthonormal(basis: torch.Tensor, passes: int) -> torch.Tensor:
    """Orthonormal columns spanning `basis` [n, m]: shifted Cholesky QR (Fukaya et al. 2020), thrice to be exact.

    Matrix products instead of Householder steps make it many times faster than linalg.qr on a GPU.
    """
    eye = torch.eye(basis.shape[1], device=basis.device)
    result = basis
    for _ in range(passes):
        gram = result.mT @ result
        shift = 1e-6 * gram.diagonal().sum() + torch.finfo(torch.float32).tiny
        lower = cholesky(gram + shift * eye)
        result = result @ torch.linalg.solve_triangular(lower, eye, upper=False).mT
    return result.nan_to_num_()


def _gram_product(weight: torch.Tensor, unit: torch.Tensor, basis: torch.Tensor,
                  chunks: list[tuple[int, int]], tick: Tick) -> torch.Tensor:
    """W^T W B, chunk by chunk, with W in units of `unit`."""
    product = torch.zeros_like(basis)
    for begin, end in chunks:
        part = weight[begin:end].float()
        product.addmm_(part.mT, (part @ (basis / unit)) / unit)
        tick()
    return product


def data_free_metric(components: Components, strength: float) -> LowRankMetric:
    """I + c V V^T, columns in order of falling leverage so that the ones that matter are rounded first."""
    right = components.right
    order = right.square().sum(1).argsort(descending=True, stable=True)
    return LowRankMetric(right, torch.full((right.shape[1],), strength, device=right.device), order)
