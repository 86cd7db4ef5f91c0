"""Sums and factors that steer rounding, divided among CPU threads only where that leaves the bits alone.

Sums over everything, and LAPACK's factors of more than a few dozen columns, have other last bits with another number of
threads. Sums along a dimension have not, nor had matrix products of the sizes that real layers bring; MKL promises
nothing, and for small odd sizes and many threads it does differ. Other devices take PyTorch's own.
"""

import torch

#: LAPACK factors so many columns in one thread.
_LEAF = 32


def total(x: torch.Tensor) -> torch.Tensor:
    """The sum of all elements, 0-d. Sums along a dimension are never divided among threads."""
    if x.device.type != "cpu" or x.dim() < 2:
        return x.sum()
    return x.sum(-1).sum()


def cholesky(matrix: torch.Tensor, *, check: bool = False) -> torch.Tensor:
    """Lower Cholesky factor of [..., n, n]. `check` raises torch.linalg.LinAlgError where there is none."""
    if matrix.device.type != "cpu" or matrix.shape[-1] <= _LEAF:
        return _lapack(matrix, check)
    factor = matrix.clone()
    _factor(factor, check)
    return factor.tril_()


def cholesky_inverse(lower: torch.Tensor) -> torch.Tensor:
    """(L L^T)^-1 of the factor L [..., n, n]; PyTorch's own takes batches one by one on a GPU."""
    eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower)
    inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
    return inverse.mT @ inverse


def _lapack(matrix: torch.Tensor, check: bool) -> torch.Tensor:
    lower, failed = torch.linalg.cholesky_ex(matrix)
    # On a GPU a matrix that is not positive may give NaN and no failure.
    if check and bool(failed.any() | ~lower.isfinite().all()):
        raise torch.linalg.LinAlgError("The matrix is not positive definite.")  # pyright: ignore[reportPrivateImportUsage]
    return lower


def _factor(matrix: torch.Tensor, check: bool) -> None:
    """In place, by halves, so that nearly all of the work is matrix products; what is above the diagonal is rubbish."""
    n = matrix.shape[-1]
    if n <= _LEAF:
        matrix.copy_(_lapack(matrix, check))
        return
    half = max(_LEAF, n // 2 // _LEAF * _LEAF)
    first, rest = matrix[..., :half, :half], matrix[..., half:, half:]
    _factor(first, check)
    below = torch.linalg.solve_triangular(first, matrix[..., half:, :half].mT, upper=False).mT
    matrix[..., half:, :half] = below
    rest -= below @ below.mT
    _factor(rest, check)
