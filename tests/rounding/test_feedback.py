"""Rounding against straightforward definitions in float64."""

import pytest
import torch

from tpec.rounding.feedback import descend, feedback, nearest
from tpec.rounding.grid import FP8_MAX, encode, round_to_grid
from tpec.rounding.kernels import BLOCK, round_block_torch
from tpec.rounding.metric import DenseMetric, LowRankMetric, unit_upper


def random_metric(n: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(4 * n, n, generator=torch.Generator().manual_seed(seed)) * torch.logspace(0, 1, n)
    return x.T @ x / (4 * n) + 0.01 * torch.eye(n)


def low_rank(n: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, k, generator=generator))[0], torch.rand(k, generator=generator) * 4 + 0.5


def weights(n: int, rows: int, seed: int = 1) -> torch.Tensor:
    w = torch.randn(n, rows, generator=torch.Generator().manual_seed(seed))
    return w / w.abs().max() * FP8_MAX


def plain_feedback(w: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The definition: solve for the open columns exactly, in float64, one column at a time."""
    w, m = w.double(), matrix.double()
    q = torch.zeros_like(w)
    e = torch.zeros_like(w)
    for j in range(len(w)):
        best = -torch.linalg.solve(m[j:, j:], m[j:, :j] @ e[:j]) if j else torch.zeros_like(w)
        q[j] = round_to_grid((w[j] + best[0]).float()).double()
        e[j] = q[j] - w[j]
    return q


@pytest.mark.parametrize("n", [1, 7, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
def test_feedback_matches_the_definition_dense(n: int) -> None:
    w, m = weights(n, 11), random_metric(n)
    values, errors = feedback(w, DenseMetric(m, torch.arange(n)))
    assert (values == plain_feedback(w, m)).double().mean() > 0.99
    assert torch.equal(errors, values - w)


@pytest.mark.parametrize("n", [3, BLOCK, 2 * BLOCK + 3])
def test_feedback_matches_the_definition_low_rank(n: int) -> None:
    w = weights(n, 11)
    vectors, strength = low_rank(n, 3)
    matrix = torch.eye(n) + vectors @ torch.diag(strength) @ vectors.T
    values, _ = feedback(w, LowRankMetric(vectors, strength, torch.arange(n)))
    assert (values == plain_feedback(w, matrix)).double().mean() > 0.99


def test_order_is_only_a_permutation() -> None:
    n = 100
    w, m = weights(n, 9), random_metric(n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    values, _ = feedback(w[order], DenseMetric(m, order))
    expected, _ = feedback(w[order], DenseMetric(m[order][:, order], torch.arange(n)))
    assert torch.equal(values, expected)


@pytest.mark.parametrize("kind", ["dense", "low_rank"])
def test_loss_and_descent(kind: str) -> None:
    n = 2 * BLOCK + 9
    w = weights(n, 33)
    vectors, strength = low_rank(n, 5)
    matrix = random_metric(n) if kind == "dense" else torch.eye(n) + vectors @ torch.diag(strength) @ vectors.T
    order = torch.randperm(n, generator=torch.Generator().manual_seed(4))
    metric = DenseMetric(matrix, order) if kind == "dense" else LowRankMetric(vectors, strength, order)
    w, permuted = w[order], matrix[order][:, order]
    near = nearest(w)
    values, errors = feedback(w, metric)
    loss = metric.loss(errors)
    torch.testing.assert_close(loss, (errors * (permuted @ errors)).sum(), rtol=1e-4, atol=1e-4)
    assert loss < metric.loss(near - w)
    for _ in range(4):
        moved = descend(values, errors, metric)
        after = metric.loss(errors)
        assert after <= loss * (1 + 1e-6)
        loss = after
        torch.testing.assert_close(errors, values - w, rtol=0, atol=1e-3)
        assert torch.equal(round_to_grid(values), values)
    assert moved < values.numel() // 10


def test_descent_reaches_a_coordinate_minimum() -> None:
    n = 40
    w, m = weights(n, 5), random_metric(n)
    metric = DenseMetric(m, torch.arange(n))
    values, errors = feedback(w, metric)
    for _ in range(50):
        if descend(values, errors, metric) == 0:
            break
    base = metric.loss(errors)
    from tpec.rounding.grid import neighbour
    for up in (True, False):
        other = neighbour(values, torch.full_like(values, up, dtype=torch.bool))
        for j in range(n):
            trial = values.clone()
            trial[j] = other[j]
            change = trial - w
            per_row = (change * (m @ change)).sum(0) - (errors * (m @ errors)).sum(0)
            assert (per_row > -1e-3 * base / 5).all()


def test_unit_upper() -> None:
    m = random_metric(17)
    u = unit_upper(m)
    assert torch.equal(u.diagonal(), torch.ones(17))
    assert torch.equal(u.tril(-1), torch.zeros(17, 17))
    middle = torch.linalg.solve(u, torch.linalg.solve(u, m).T)
    torch.testing.assert_close(middle, torch.diag(middle.diagonal()), atol=1e-3, rtol=1e-3)


def test_block_without_coupling_is_nearest() -> None:
    w = weights(8, 20)
    changes, values = w.clone(), torch.empty_like(w)
    round_block_torch(changes, w, torch.zeros(8, 8), values)
    assert torch.equal(values, nearest(w))
    assert torch.equal(changes, values - w)
    assert torch.equal(encode(values).float(), values)
