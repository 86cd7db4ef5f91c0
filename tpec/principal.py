"""Principal components of a weight, the data-free metric made of them, and the published TPEC objective.

TPEC (Top-Principal Error Correction, Clybius) wants u_1^T (Q - W) v_1 = 0 for the leading singular pair of W.
"""

from dataclasses import dataclass

import torch

from .metric import LowRankMetric

_OVERSAMPLING = 8
_POWER_STEPS = 3
#: The first pair alone is needed to more digits: extra steps on a narrow basis.
_NARROW = 12
_NARROW_STEPS = 12
_SEED = 20250814


@dataclass(frozen=True)
class Components:
    """Leading right singular vectors [n, k], and the first triple precisely: [n], [rows], 0-d; all float32.

    `first_value` is in units of `unit`, the largest magnitude of W.
    """

    right: torch.Tensor
    first_right: torch.Tensor
    first_left: torch.Tensor
    first_value: torch.Tensor
    unit: torch.Tensor


def row_chunks(rows: int, columns: int, items: int) -> list[tuple[int, int]]:
    """Split rows so that a chunk holds about `items` weights."""
    step = max(1, min(rows, items // max(columns, 1)))
    return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def principal_components(weight: torch.Tensor, largest: torch.Tensor, k: int, items: int) -> Components:
    """Randomized subspace iteration (Halko et al. 2011, arXiv:0909.4061) on W [rows, n] of any float dtype.

    Works through chunks of about `items` weights in float32, so W is never held in float32 as a whole, and in units of
    its largest magnitude, so that neither huge nor tiny weights leave float32's range.
    """
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    rows, n = weight.shape
    k = min(k, rows, n)
    width = min(k + _OVERSAMPLING, rows, n)
    chunks = row_chunks(rows, n, items)
    basis = torch.randn(n, width, generator=torch.Generator().manual_seed(_SEED)).to(weight.device)
    for _ in range(_POWER_STEPS):
        basis = _orthonormal(_gram_product(weight, unit, basis, chunks)[0])
    product, small = _gram_product(weight, unit, basis, chunks)
    _, rotation = torch.linalg.eigh((small + small.mT) / 2)
    right = basis @ rotation.flip(1)[:, :k]
    first = _first_vector(weight, unit, right[:, :_NARROW], chunks)
    left = torch.cat([(weight[a:b].float() / unit) @ first for a, b in chunks])
    sigma = left.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return Components(right.contiguous(), first, left / sigma, sigma, unit)


def _first_vector(weight: torch.Tensor, unit: torch.Tensor, basis: torch.Tensor,
                  chunks: list[tuple[int, int]]) -> torch.Tensor:
    for _ in range(_NARROW_STEPS):
        basis = _orthonormal(_gram_product(weight, unit, basis, chunks)[0])
    _, small = _gram_product(weight, unit, basis, chunks)
    return basis @ torch.linalg.eigh((small + small.mT) / 2)[1][:, -1]


def _orthonormal(basis: torch.Tensor) -> torch.Tensor:
    """Orthonormal columns spanning those of `basis` [n, m]: shifted Cholesky QR, thrice (Fukaya et al. 2020).

    Matrix products instead of Householder steps make it many times faster than linalg.qr on a GPU.
    """
    result = basis
    for _ in range(3):
        gram = result.mT @ result
        shift = 1e-6 * gram.diagonal().sum() + torch.finfo(torch.float32).tiny
        lower, _ = torch.linalg.cholesky_ex(gram + shift * torch.eye(len(gram), device=gram.device))
        result = torch.linalg.solve_triangular(lower, result.mT, upper=False).mT
    return result if bool(result.isfinite().all()) else torch.linalg.qr(basis)[0]


def _gram_product(weight: torch.Tensor, unit: torch.Tensor, basis: torch.Tensor,
                  chunks: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """W^T W B and B^T W^T W B, chunk by chunk, with W in units of `unit`."""
    product = torch.zeros_like(basis)
    small = torch.zeros(basis.shape[1], basis.shape[1], device=basis.device)
    for begin, end in chunks:
        part = weight[begin:end].float() / unit
        image = part @ basis
        product.addmm_(part.mT, image)
        small.addmm_(image.mT, image)
    return product, small


def data_free_metric(components: Components, strength: float) -> LowRankMetric:
    """I + c V V^T, columns in order of falling leverage so that the ones that matter are rounded first."""
    right = components.right
    order = right.square().sum(1).argsort(descending=True, stable=True)
    return LowRankMetric(right, torch.full((right.shape[1],), strength, device=right.device), order)
