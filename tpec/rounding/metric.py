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
    """M [n, n] as rounding needs it: by blocks of at most `block` columns, in rounding order.

    `order` [n] int64 puts the columns of a weight into that order; everything else is in it. `diagonal` [n] float32 is
    that of M. E [n, rows] float32 are the errors of a chunk of rows, in units of the scale; those of a block are
    E[begin:end] [b, rows]. What the metric must know of all errors to deal with one block is its state, which `start`
    or `begin` makes and `push` keeps up to date; it may be E itself.
    """

    order: torch.Tensor
    diagonal: torch.Tensor
    block: int

    def start(self, errors: torch.Tensor) -> torch.Tensor:
        """The state of a chunk of rows that is rounded already; it may share memory with `errors` [n, rows]."""
        ...

    def begin(self, errors: torch.Tensor) -> torch.Tensor:
        """The state of a chunk of rows of which nothing is rounded yet.

        `errors` [n, rows] is where the caller will write them, block by block; what it holds now means nothing.
        """
        ...

    def push(self, state: torch.Tensor, begin: int, end: int, change: torch.Tensor) -> None:
        """Bring `state` up to date: E[begin:end] has grown by `change` [b, rows], and the caller has written that."""
        ...

    def aim(self, weights: torch.Tensor, state: torch.Tensor, begin: int, end: int, out: torch.Tensor) -> None:
        """Write to `out` [b, rows] what the block's `weights` [b, rows] are best rounded to, given all blocks before.

        The columns behind it are still open. What columns of the block do to each other is `feedback_coupling`.
        """
        ...

    def feedback_coupling(self, begin: int, end: int) -> torch.Tensor:
        """[b, b], of which the kernel reads what is above the diagonal: an error e_i moves the target of column j > i
        by -[i, j] e_i."""
        ...

    def descent(self, values: torch.Tensor, state: torch.Tensor, errors: torch.Tensor, begin: int,
                end: int) -> torch.Tensor:
        """[b, rows]: what the block's `values` [b, rows] are best rounded to, each given that all others stay.

        That is value - (M E)_j / M_jj; `errors` [n, rows] are those of all columns.
        """
        ...

    def descent_coupling(self, begin: int, end: int) -> torch.Tensor:
        """[b, b]: a value i that moves by d moves the target of column j > i of the block by -[i, j] d."""
        ...

    def gradient(self, errors: torch.Tensor) -> torch.Tensor:
        """M E [n, rows] for errors [n, rows], in new memory: half the gradient of the loss."""
        ...

    def loss(self, errors: torch.Tensor, weighed: torch.Tensor | None = None) -> torch.Tensor:
        """tr(E^T M E), 0-d; or tr(F^T M E) with `weighed` F = E S [n, rows], the errors as rows count together."""
        ...


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
        # The kernel counts a column's error from its weight, not from the target that earlier blocks gave it; that
        # difference, known before the block begins, is added to the pull here. Lists, since taking slices of tensors
        # one by one is what Python would spend its time on.
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

    def gradient(self, errors: torch.Tensor) -> torch.Tensor:
        return (self._scaled @ errors).mul_(self.diagonal[:, None])

    def loss(self, errors: torch.Tensor, weighed: torch.Tensor | None = None) -> torch.Tensor:
        return total(self.gradient(errors).mul_(errors if weighed is None else weighed))


def unit_upper(matrix: torch.Tensor, *, check: bool = True) -> torch.Tensor:
    """U of matrix = U D U^T, unit upper triangular; batches allowed [..., n, n].

    Raises torch.linalg.LinAlgError when the matrix is not positive definite, unless `check` is off.
    """
    lower = cholesky(matrix.flip(-1, -2), check=check)
    upper = lower.flip(-1, -2)
    return upper / upper.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
