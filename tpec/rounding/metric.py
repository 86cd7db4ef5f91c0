"""What a rounding error costs: the loss of a layer is tr(E M E^T) with E = Q - W and M an n x n positive matrix.

Tensors here are transposed, [n, rows], so that a column of the weight is contiguous and a block of columns is a slice.
M = U D U^T with U unit upper triangular gives the best continuous answer of the columns still open to the errors
already made (Babai's nearest plane; Frantar et al. 2022, GPTQ, arXiv:2210.17323; Chen et al. 2025, arXiv:2507.18553):
column j aims at w_j - sum_{i<j} U_ij e_i.
"""

import functools
from typing import Protocol

import torch

from .kernels import block_size
from .reproducible import cholesky, cholesky_inverse, total


class Metric(Protocol):
    """The two linear maps that rounding needs, `block` columns by `block` columns.

    `order` [n] puts the columns into rounding order; all else is in that order. `start(errors)` makes the running
    state of a chunk of rows and `begin(errors)` that of rows of which nothing is rounded yet, whatever `errors` holds;
    `push` tells it that errors[begin:end] grew by `change`. `aim` writes to `out` what to round a block's weights to
    when the columns behind it are still open, `descent` gives what to round its `values` to when all are rounded.
    `loss` is tr(E M E^T), or tr(F M E^T) with the errors F = S E weighed by how rows count together.
    """

    order: torch.Tensor
    diagonal: torch.Tensor
    block: int

    def start(self, errors: torch.Tensor) -> torch.Tensor: ...

    def begin(self, errors: torch.Tensor) -> torch.Tensor: ...

    def push(self, state: torch.Tensor, begin: int, end: int, change: torch.Tensor) -> None: ...

    def aim(self, weights: torch.Tensor, state: torch.Tensor, begin: int, end: int, out: torch.Tensor) -> None: ...

    def feedback_coupling(self, begin: int, end: int) -> torch.Tensor: ...

    def descent(self, values: torch.Tensor, state: torch.Tensor, errors: torch.Tensor, begin: int,
                end: int) -> torch.Tensor: ...

    def descent_coupling(self, begin: int, end: int) -> torch.Tensor: ...

    def loss(self, errors: torch.Tensor, weighed: torch.Tensor | None = None) -> torch.Tensor: ...


class LowRankMetric:
    """M = I + V diag(c) V^T: every weight counts, the k principal components count 1 + c times.

    vectors [n, k] float32 with orthonormal columns, strength [k] float32 > 0, order [n] int64. No n x n matrix is made:
    marginalising the columns after a block leaves I + V_B S V_B^T with S = (diag(1/c) + V_after^T V_after)^-1.
    """

    def __init__(self, vectors: torch.Tensor, strength: torch.Tensor, order: torch.Tensor) -> None:
        self.order = order
        self.block = block_size(vectors.device)
        self._vectors = vectors[order].contiguous()
        self._strength = strength
        self.diagonal = 1 + self._vectors.square() @ strength
        self._prepare()

    def _prepare(self) -> None:
        n, k = self._vectors.shape
        blocks = -(-n // self.block)
        padded = torch.zeros(blocks * self.block, k, device=self._vectors.device)
        padded[:n] = self._vectors
        v = padded.view(blocks, self.block, k)
        grams = v.mT @ v
        # What block b leaves open is what block b + 1 begins with: one inverse serves as both.
        remaining = torch.cat([grams.flip(0).cumsum(0).flip(0), torch.zeros_like(grams[:1])])
        inverses = cholesky_inverse(cholesky(remaining + torch.diag(1 / self._strength)))
        # Positive definite by its making: not checking spares the device a stop.
        coupling = unit_upper(torch.eye(self.block, device=v.device) + v @ inverses[1:] @ v.mT, check=False)
        pull = v @ inverses[:-1]
        # Shifted so that the kernel can measure every error from the weight itself. Lists, since taking slices of
        # tensors one by one is what Python would spend its time on.
        self._pulls = (pull + coupling.triu(1).mT @ pull).unbind()
        self._couplings = coupling.unbind()
        self._parts = self._vectors.mT.split(self.block, 1)

    def start(self, errors: torch.Tensor) -> torch.Tensor:
        return self._vectors.mT @ errors

    def begin(self, errors: torch.Tensor) -> torch.Tensor:
        return errors.new_zeros(self._vectors.shape[1], errors.shape[1])

    def push(self, state: torch.Tensor, begin: int, end: int, change: torch.Tensor) -> None:
        state.addmm_(self._parts[begin // self.block], change)

    def aim(self, weights: torch.Tensor, state: torch.Tensor, begin: int, end: int, out: torch.Tensor) -> None:
        pull = self._pulls[begin // self.block]
        torch.addmm(weights, pull if end - begin == self.block else pull[: end - begin], state, alpha=-1, out=out)

    def feedback_coupling(self, begin: int, end: int) -> torch.Tensor:
        coupling, size = self._couplings[begin // self.block], end - begin
        return coupling if size == self.block else coupling[:size, :size].contiguous()

    def gradient(self, errors: torch.Tensor) -> torch.Tensor:
        """M E for errors [n, rows]."""
        return errors + (self._vectors * self._strength) @ self.start(errors)

    def descent(self, values: torch.Tensor, state: torch.Tensor, errors: torch.Tensor, begin: int,
                end: int) -> torch.Tensor:
        gradient = torch.addmm(errors[begin:end], self._vectors[begin:end] * self._strength, state)
        return torch.addcdiv(values, gradient, self.diagonal[begin:end, None], value=-1)

    def descent_coupling(self, begin: int, end: int) -> torch.Tensor:
        v = self._vectors[begin:end]
        return (v * self._strength) @ v.mT / self.diagonal[begin:end]

    def loss(self, errors: torch.Tensor, weighed: torch.Tensor | None = None) -> torch.Tensor:
        projected = self._vectors.mT @ errors
        other = projected if weighed is None else self._vectors.mT @ weighed
        plain = total(errors * (errors if weighed is None else weighed))
        return plain + ((projected * other).sum(1) * self._strength).sum()


class DenseMetric:
    """Any positive definite M [n, n] float32, for example a damped Gram matrix of activations; order [n] int64."""

    def __init__(self, matrix: torch.Tensor, order: torch.Tensor) -> None:
        self.order = order
        self.block = block_size(matrix.device)
        matrix = matrix[order][:, order]
        self.diagonal = matrix.diagonal().clone()
        self._upper = unit_upper(matrix)
        # Rows in units of the diagonal, as descent wants them.
        self._scaled = matrix.div_(self.diagonal[:, None])
        self._rows = self._scaled.split(self.block)

    def start(self, errors: torch.Tensor) -> torch.Tensor:
        return errors

    def begin(self, errors: torch.Tensor) -> torch.Tensor:
        return errors

    def push(self, state: torch.Tensor, begin: int, end: int, change: torch.Tensor) -> None:
        """The state is the errors themselves, which the caller has updated."""

    def aim(self, weights: torch.Tensor, state: torch.Tensor, begin: int, end: int, out: torch.Tensor) -> None:
        torch.addmm(weights, self._upper[:begin, begin:end].mT, state[:begin], alpha=-1, out=out)

    def feedback_coupling(self, begin: int, end: int) -> torch.Tensor:
        return self._upper[begin:end, begin:end].contiguous()

    def descent(self, values: torch.Tensor, state: torch.Tensor, errors: torch.Tensor, begin: int,
                end: int) -> torch.Tensor:
        return torch.addmm(values, self._rows[begin // self.block], errors, alpha=-1)

    def descent_coupling(self, begin: int, end: int) -> torch.Tensor:
        return self._descent_couplings[begin // self.block]

    @functools.cached_property
    def _descent_couplings(self) -> list[torch.Tensor]:
        """Of all blocks, made once for all sweeps over all chunks of rows."""
        return [rows[:, at * self.block: at * self.block + len(rows)].mT.contiguous()
                for at, rows in enumerate(self._rows)]

    def loss(self, errors: torch.Tensor, weighed: torch.Tensor | None = None) -> torch.Tensor:
        gradient = (self._scaled @ errors).mul_(self.diagonal[:, None])
        return total(gradient.mul_(errors if weighed is None else weighed))


def unit_upper(matrix: torch.Tensor, *, check: bool = True) -> torch.Tensor:
    """U of matrix = U D U^T, unit upper triangular; batches allowed [..., n, n].

    Raises torch.linalg.LinAlgError when the matrix is not positive definite, unless `check` is off.
    """
    lower = cholesky(matrix.flip(-1, -2), check=check)
    upper = lower.flip(-1, -2)
    return upper / upper.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
