"""Symmetric positive matrices by a factor F in few bits: F F^T stays positive whatever the codes lost.

Codes of the matrix itself would not do: errors of a thousandth of each correlation add up to eigenvalues that are far
below zero, and the small eigenvalues are what rounding lives on. An error of the factor only adds a little to them.
"""

from typing import NamedTuple

import torch

from .codes import Codes, decode, encode

#: Added to each diagonal entry, relative to it or to their mean, and so often ten times more where there is no factor
#: yet.
_JITTER = 1e-6
_TRIES = 6
#: A column that differs from the mean by no more of it is the mean.
_SAME = 1e-5


class Triangle(NamedTuple):
    """A Cholesky factor L [..., n, n]: pivots [..., n] float32 are its diagonal, codes what is below, row by row."""

    pivots: torch.Tensor
    below: Codes


def triangle(size: int) -> int:
    """Entries of a [size, size] matrix below its diagonal."""
    return size * (size - 1) // 2


def pack_triangle(matrix: torch.Tensor, bits: int) -> Triangle:
    """The factor of a positive semidefinite matrix [..., n, n] float32, which rounding may have left indefinite."""
    lower = _cholesky(matrix)
    size = matrix.shape[-1]
    row, column = torch.tril_indices(size, size, -1, device=matrix.device)
    return Triangle(lower.diagonal(dim1=-2, dim2=-1).contiguous(), encode(lower[..., row, column], bits))


def unpack_triangle(packed: Triangle) -> torch.Tensor:
    """L L^T [..., n, n] float32 on the codes' device, exactly symmetric."""
    pivots = packed.pivots
    size = pivots.shape[-1]
    lower = torch.diag_embed(pivots)
    row, column = torch.tril_indices(size, size, -1, device=pivots.device)
    count = triangle(size) * (pivots.numel() // size)
    lower[..., row, column] = decode(packed.below, count).view(*pivots.shape[:-1], -1)
    return symmetric(lower @ lower.mT)


def symmetric(matrix: torch.Tensor) -> torch.Tensor:
    """The mean of a matrix [..., n, n] and its transpose."""
    return (matrix + matrix.mT).div_(2)


def without(factor: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """A factor of F F^T - m m^T, as nearly as F [n, k] spans m [n]; in k or k - 1 columns.

    With F b = m it is F (I - c b b^T), where c = (1 - sqrt(1 - |b|^2)) / |b|^2.
    """
    if not mean.any():
        return factor
    if (factor[:, -1] - mean).norm() <= _SAME * mean.norm():
        return factor[:, :-1]
    wide = factor.double()
    gram = wide.mT @ wide
    gram.diagonal().add_(1e-12 * gram.diagonal().mean() + torch.finfo(torch.float32).tiny)
    lower, _ = torch.linalg.cholesky_ex(gram)
    b = torch.cholesky_solve(wide.mT @ mean.double()[:, None], lower)[:, 0]
    length2 = b.square().sum()
    if not torch.isfinite(length2) or length2 == 0:
        return factor
    share = (1 - (1 - length2).clamp(min=0).sqrt()) / length2
    return (wide - torch.outer(wide @ b, share * b)).float()


def _cholesky(matrix: torch.Tensor) -> torch.Tensor:
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    # Small entries, too, carry the rounding of sums of the others' size: with less than that few samples, whose matrix
    # has hardly any rank, would take so many tries that the last one drowns them.
    least = diagonal.mean(-1, keepdim=True) + torch.finfo(torch.float32).tiny
    jitter = _JITTER * torch.maximum(diagonal, least)
    for attempt in range(_TRIES):
        lower, failed = torch.linalg.cholesky_ex(matrix + torch.diag_embed(jitter * 10**attempt))
        # On a GPU a matrix that is not positive may give NaN and no failure.
        if not failed.any() and lower.isfinite().all():
            return lower
    # Nothing like a second moment: what is left of it are its diagonal's roots.
    return torch.diag_embed(diagonal.sqrt())
