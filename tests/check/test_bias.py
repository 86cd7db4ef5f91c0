"""How long a mean input must be for a rounding error to explain a change of the bias."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import generator

from tpec.check.bias import mean_length

NONE = torch.zeros(1, dtype=torch.float64)


def layer(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Q - W [rows, columns] and a mean input."""
    source = generator(seed)
    return torch.randn(rows, columns, generator=source) * 1e-3, torch.randn(columns, generator=source)


@given(rows=st.integers(1, 70), columns=st.integers(1, 70), seed=st.integers(0, 99),
       scale=st.sampled_from([1e-25, 1.0, 1e25]))
def test_the_true_mean_is_always_long_enough(rows: int, columns: int, seed: int, scale: float) -> None:
    errors, mean = layer(rows, columns, seed)
    errors = errors * scale
    change = -(errors.double() @ mean.double())
    assert 0 < mean_length(errors, change, NONE.expand(rows)) <= 1.001 * mean.norm()
    stored = (change + 1.0 * scale).bfloat16().double() - 1.0 * scale
    slack = torch.full((rows,), 2.0**-8 * 1.2 * scale, dtype=torch.float64)
    assert mean_length(errors, stored, slack) <= 1.001 * mean.norm()


@pytest.mark.parametrize("seed", range(5))
def test_other_changes_of_that_size_take_a_far_longer_one(seed: int) -> None:
    errors, mean = layer(300, 100, seed)
    change = -(errors @ mean).double()
    slack = NONE.expand(300)
    assert mean_length(errors, change.roll(1), slack) > 2 * mean.norm()
    assert mean_length(errors, 3 * change, slack) == pytest.approx(3 * mean_length(errors, change, slack), rel=1e-3)
    assert mean_length(errors, change * torch.randn(300, generator=generator(seed)).sign(), slack) > 2 * mean.norm()


def test_single_values_are_looked_at() -> None:
    errors, mean = layer(5000, 10)
    change = torch.zeros(5000, dtype=torch.float64)
    change[77] = 1.0
    assert mean_length(errors, change, NONE.expand(5000)) >= 1.0 / errors[77].norm() * 0.999


def test_no_error_explains_nothing_but_rounding() -> None:
    change = torch.tensor([0.0, 0.01, 0.0], dtype=torch.float64)
    assert mean_length(torch.zeros(3, 4), change, torch.full((3,), 0.02).double()) == 0
    assert mean_length(torch.zeros(3, 4), change, torch.full((3,), 0.001).double()) == float("inf")
    assert mean_length(torch.ones(3, 4), change * 0, NONE.expand(3)) == 0
