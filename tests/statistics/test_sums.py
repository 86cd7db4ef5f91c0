"""Running statistics against direct ones in float64."""

import pytest
import torch
from samples import generator

from tpec.statistics.sums import (
    SKETCH_SHARE,
    WIDTH_LIMIT,
    GramAccumulator,
    SketchAccumulator,
    accumulator_bytes,
    make_accumulator,
)
from tpec.statistics.workspace import Workspace

CPU = torch.device("cpu")


def inputs(tokens: int, width: int, rank: int = 0) -> torch.Tensor:
    source = generator(tokens)
    if not rank:
        return torch.randn(tokens, width, generator=source) + 0.3
    return torch.randn(tokens, rank, generator=source) @ torch.randn(rank, width, generator=source)


def fill(accumulator, rows: torch.Tensor, parts: int = 3):
    for part in rows.tensor_split(parts):
        accumulator.add(part)
    return accumulator.finish()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [1, 7, 9000])
def test_gram_is_exact(tokens: int, dtype: torch.dtype) -> None:
    rows = inputs(tokens, 24).to(dtype)
    stats = fill(GramAccumulator(24, CPU, Workspace()), rows, min(tokens, 3))
    exact = rows.double()
    gram = stats.second_moment()
    assert torch.allclose(gram.double(), exact.T @ exact / tokens, rtol=1e-4, atol=1e-5)
    assert torch.equal(gram, gram.mT)
    assert torch.allclose(stats.mean.double(), exact.mean(0), atol=1e-5)
    assert (stats.tokens, stats.width) == (tokens, 24)
    assert stats.absmax == exact.abs().max().float().item()
    kept = gram.clone()
    gram.zero_()
    assert torch.equal(stats.second_moment(), kept), "what callers do with theirs changes nobody else's"


def test_sketch_of_a_low_rank_gram_is_exact() -> None:
    width, rows = 256, inputs(600, 256, rank=12)
    stats = fill(SketchAccumulator(width, CPU, Workspace()), rows)
    exact = rows.double().T @ rows.double() / 600
    assert list(stats.form) == ["mean", "vectors", "values", "rest"]
    assert stats.parts()["vectors"].shape == stats.form["vectors"] == (width, width // SKETCH_SHARE + 1)
    error = (stats.second_moment().double() - exact).norm() / exact.norm()
    assert error < 1e-3
    assert torch.allclose(stats.mean.double(), rows.double().mean(0), atol=1e-5)


def test_sketch_of_any_gram_keeps_the_diagonal_and_stays_positive() -> None:
    rows = inputs(2000, 128) * torch.logspace(0, 1, 128)
    stats = fill(SketchAccumulator(128, CPU, Workspace()), rows)
    exact = rows.double().T @ rows.double() / 2000
    moment = stats.second_moment().double()
    assert torch.allclose(moment.diagonal(), exact.diagonal(), rtol=1e-3)
    assert torch.linalg.eigvalsh(moment).min() > 0
    parts = stats.parts()
    assert (parts["rest"] >= 0).all()
    assert (parts["values"] >= 0).all()
    vectors = parts["vectors"][:, :-1]
    assert torch.allclose(vectors.mT @ vectors, torch.eye(16), atol=1e-4)
    # The mean is kept apart, exactly.
    assert torch.allclose(parts["vectors"][:, -1] * parts["values"][-1].sqrt(), parts["mean"], atol=1e-6)


def test_sketch_of_inputs_that_are_mostly_mean() -> None:
    """What is beside the mean is approximated as well as if there were none."""
    rows = inputs(2000, 256, rank=40) + 0.1 * inputs(2000, 256)
    errors = []
    for mean in (0.0, 100.0):
        shifted = rows + mean
        stats = fill(SketchAccumulator(256, CPU, Workspace()), shifted)
        covariance = stats.second_moment().double() - torch.outer(stats.mean.double(), stats.mean.double())
        exact = (shifted.double() - shifted.double().mean(0)).T @ (shifted.double() - shifted.double().mean(0)) / 2000
        errors.append(((covariance - exact).norm() / exact.norm()).item())
    assert errors[1] < 1.05 * errors[0] + 1e-3


def test_parts_do_not_matter() -> None:
    rows = inputs(100, 32)
    for make in (GramAccumulator, SketchAccumulator):
        one, many = fill(make(32, CPU, Workspace()), rows, 1), fill(make(32, CPU, Workspace()), rows, 50)
        assert torch.allclose(one.second_moment(), many.second_moment(), rtol=1e-3, atol=1e-4)
        assert (one.tokens, one.absmax) == (many.tokens, many.absmax)


@pytest.mark.parametrize("make", [GramAccumulator, SketchAccumulator])
def test_a_weight_of_two_counts_twice(make) -> None:
    rows, others = inputs(40, 16, rank=2), 0.1 * inputs(60, 16, rank=2) + 1
    weighed, repeated = make(16, CPU, Workspace()), make(16, CPU, Workspace())
    weighed.add(rows, 2.0)
    weighed.add(others, 1.0)
    for part in (rows, rows, others):
        repeated.add(part)
    one, many = weighed.finish(), repeated.finish()
    assert torch.allclose(one.second_moment(), many.second_moment(), rtol=1e-3, atol=1e-4)
    assert torch.allclose(one.mean, many.mean, atol=1e-5)
    assert (one.tokens, one.absmax) == (100, many.absmax)


@pytest.mark.parametrize("make", [GramAccumulator, SketchAccumulator])
def test_zero_inputs_are_finite(make) -> None:
    stats = fill(make(16, CPU, Workspace()), torch.zeros(10, 16))
    assert stats.second_moment().abs().max() < 1e-6
    assert stats.absmax == 0


@pytest.mark.parametrize("make", [GramAccumulator, SketchAccumulator])
def test_results_of_inference_mode_are_plain_tensors(make) -> None:
    accumulator = make(16, CPU, Workspace())
    with torch.inference_mode():
        stats = fill(accumulator, torch.randn(10, 16))
    assert not stats.mean.is_inference()
    stats.second_moment().add_(1)
    stats.mean.add_(1)


def test_wide_inputs_are_summarised() -> None:
    assert isinstance(make_accumulator(WIDTH_LIMIT, CPU), GramAccumulator)
    assert isinstance(make_accumulator(WIDTH_LIMIT + 8, CPU), SketchAccumulator)
    assert accumulator_bytes(64) == 4 * 64 * 64
    assert accumulator_bytes(3072) == 4 * (3072 * 3072 + 3072 * 256) // 2, "little more than one triangle"
    assert accumulator_bytes(2 * WIDTH_LIMIT) == 4 * 2 * WIDTH_LIMIT * 2 * WIDTH_LIMIT // SKETCH_SHARE
