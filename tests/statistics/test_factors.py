"""Positive matrices as factors in few bits: near, positive, and without their mean."""

import pytest
import torch
from samples import generator

from tpec.rounding.metric import unit_upper
from tpec.statistics.packing.codes import COARSE, FINE, decode, encode
from tpec.statistics.packing.factors import pack_triangle, unpack_triangle, without


def decaying(size: int, loud: float = 1.0) -> torch.Tensor:
    factor = torch.randn(size, size, generator=generator()) * torch.arange(1, size + 1) ** -1.0
    factor[::17] *= loud
    return factor @ factor.mT


@pytest.mark.parametrize("loud", [1.0, 50.0])
def test_small_eigenvalues_survive(loud: float) -> None:
    """Codes of the matrix itself would drown them: that is what the factor is for."""
    matrix = decaying(192, loud)
    kept = unpack_triangle(pack_triangle(matrix, FINE))
    assert torch.equal(kept, kept.mT)
    unit = matrix.diagonal().mean()
    assert torch.linalg.eigvalsh(kept.double()).min() > -1e-6 * unit
    assert expected_loss(kept, matrix) < 1.02 * expected_loss(matrix, matrix)
    assert torch.linalg.eigvalsh(coded_itself(matrix)).min() < -0.003 * unit, "no damping would do"


def expected_loss(metric: torch.Tensor, matrix: torch.Tensor) -> float:
    """Of error feedback on `metric`, least damped, where `matrix` is what counts."""
    upper = unit_upper(metric.double() + 0.003 * metric.diagonal().mean() * torch.eye(len(metric)))
    inverse = torch.linalg.inv(upper)
    return (inverse @ matrix.double() @ inverse.mT).trace().item()


def coded_itself(matrix: torch.Tensor) -> torch.Tensor:
    half = decode(encode(matrix, FINE), matrix.numel()).view(matrix.shape)
    return ((half + half.mT) / 2).double()


@pytest.mark.parametrize("case", ["zero", "dead inputs", "one token", "slightly indefinite", "one by one"])
def test_matrices_at_the_edge(case: str) -> None:
    matrix = {"zero": torch.zeros(70, 70), "dead inputs": torch.nn.functional.pad(decaying(60), (5, 5, 5, 5)),
              "one token": torch.outer(torch.arange(70.0), torch.arange(70.0)), "one by one": torch.ones(1, 1),
              "slightly indefinite": decaying(70) - 1e-6 * torch.eye(70)}[case]
    kept = unpack_triangle(pack_triangle(matrix, FINE))
    assert kept.isfinite().all() and (kept - matrix).norm() <= 0.02 * matrix.norm()


def test_runs_are_packed_together() -> None:
    matrices = torch.stack([decaying(50), 100 * decaying(50)])
    kept = unpack_triangle(pack_triangle(matrices, COARSE))
    for found, exact in zip(kept, matrices, strict=True):
        assert (found - exact).norm() < 0.05 * exact.norm()


def test_the_mean_is_taken_out_of_a_factor() -> None:
    columns = torch.randn(40, 6, generator=generator())
    mean = 20 * torch.randn(40, generator=generator(1))
    whole = torch.cat([columns, mean[:, None]], 1)
    assert torch.equal(without(whole, mean), columns)
    # Turned, the mean is no column any more.
    turned = whole @ torch.linalg.qr(torch.randn(7, 7, generator=generator(2))).Q
    left = without(turned, mean)
    exact = columns @ columns.mT
    assert (left @ left.mT - exact).norm() < 1e-3 * exact.norm()
    assert torch.equal(without(columns, torch.zeros(40)), columns)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("size", [64, 256, 1024])
def test_few_samples_are_kept(size: int, rows: int) -> None:
    """What a modulation layer sees: a vector per step, so a matrix of hardly any rank, beside a mean of its size."""
    random = generator(size + rows)
    seen = torch.randn(1, size, generator=random) + 0.6 * torch.randn(rows + 1, size, generator=random)
    mean = seen.mean(0)
    covariance = seen.T @ seen / len(seen) - torch.outer(mean, mean)
    kept = unpack_triangle(pack_triangle(covariance, FINE))
    exact = (seen - mean).double()
    exact = exact.T @ exact / len(seen)
    assert (kept - exact).norm() < 0.01 * exact.norm()
