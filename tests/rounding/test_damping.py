"""Damping: how much, one rule for all tries, and exactly what was asked for on the first."""

import pytest
import torch
from samples import generator

from tpec.errors import TpecError
from tpec.rounding.damping import Damping, damped, scaled


def test_few_tokens_are_damped_more_within_bounds() -> None:
    damping = Damping(2.0, 0.003, 0.03)
    shares = [damping.share(32, tokens) for tokens in (0, 20, 5000, 100_000)]
    assert shares == [0.03, 0.03, 2 * 32 / 5000, 0.003]


def test_scaled_to_a_mean_diagonal_of_one_without_the_padding() -> None:
    matrix = torch.zeros(2, 4, 4)
    matrix[0] = torch.diag(torch.arange(1.0, 5))
    matrix[1, :2, :2] = torch.diag(torch.tensor([3.0, 5.0]))
    result = scaled(matrix, 6)
    assert result is matrix
    assert result.diagonal(dim1=-2, dim2=-1).sum() == pytest.approx(6)
    assert not scaled(torch.zeros(3, 3), 3).any(), "nothing seen stays nothing"


def test_first_try_adds_the_share_itself_to_the_diagonal_alone() -> None:
    factor = torch.randn(6, 6, generator=generator())
    matrix = factor @ factor.mT
    expected = matrix + 0.03 * torch.eye(6)
    assert torch.equal(damped(matrix, 0.03, torch.clone), expected)


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_each_further_try_damps_ten_times_as_much_of_the_same_matrix(failures: int) -> None:
    """Two rules of this kind used to differ: one added up what it had tried, one did not."""
    seen: list[torch.Tensor] = []

    def factor(matrix: torch.Tensor) -> int:
        seen.append(matrix.clone())
        if len(seen) <= failures:
            raise torch.linalg.LinAlgError
        return len(seen)

    matrix = torch.full((2, 3, 3), 0.5)
    assert damped(matrix.clone(), 0.01, factor) == failures + 1
    for attempt, tried in enumerate(seen):
        torch.testing.assert_close(tried, matrix + 0.01 * 10**attempt * torch.eye(3))


def test_what_no_damping_makes_positive_is_one_sentence() -> None:
    with pytest.raises(TpecError, match="a matrix that is not positive: collect it anew"):
        damped(-1e6 * torch.eye(3), 0.01, torch.linalg.cholesky)
