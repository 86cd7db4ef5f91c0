"""The scale of a layer: from absmax, then the best of one octave."""

import pytest
import torch

from tpec.rounding.grid import FP8_MAX, round_to_grid
from tpec.rounding.scale import SAMPLE_WEIGHTS, TOPS, absmax, absmax_scale, sample_rows, search_scale

TINY = torch.finfo(torch.float32).tiny


def loss(weights: torch.Tensor, importance: torch.Tensor, scale: float) -> float:
    """The definition: squared error of the restored weights, in float64."""
    restored = round_to_grid(weights / scale).double() * scale
    return ((restored - weights.double()).square().sum(1) @ importance.double()).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_absmax_of_any_dtype(dtype: torch.dtype) -> None:
    assert absmax(torch.tensor([[1.0, -3.0], [2.0, 0.5]], dtype=dtype)) == torch.tensor(3.0)
    assert absmax(torch.tensor([[0.0, 4.0]], dtype=dtype)).dtype == torch.float32
    for value in (float("nan"), float("inf"), float("-inf")):
        assert not absmax(torch.tensor([[1.0, value]], dtype=dtype)).isfinite()


def test_absmax_scale() -> None:
    assert absmax_scale(torch.tensor(448.0)) == 1
    assert absmax_scale(torch.tensor(0.0)) == 1
    assert absmax_scale(torch.tensor(1e-44)) == TINY
    assert absmax_scale(torch.tensor(3e38)).isfinite()


def test_tops_are_the_grids_last_binade() -> None:
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    grid = grid[grid.isfinite()].unique()
    # 224 = 448 / 2 gives the same rounding as 448, so the octave stops before it.
    assert sorted(TOPS) == grid[grid > 224].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_search_finds_the_best_candidate(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(50, 40, generator=generator)
    importance = torch.rand(50, generator=generator) + 0.1
    base = absmax_scale(weights.abs().max())
    found = search_scale(weights, importance, base).item()
    best = min(loss(weights, importance, (base * (FP8_MAX / top)).item()) for top in TOPS)
    assert loss(weights, importance, found) == pytest.approx(best, rel=1e-5)
    assert base.item() <= found <= 2 * base.item()


def test_weights_on_the_grid_keep_their_scale() -> None:
    weights = torch.tensor([[448.0, 13.0, -0.5], [288.0, 26.0, 7.5]]) * 0.125
    base = absmax_scale(weights.abs().max())
    assert search_scale(weights, torch.ones(2), base) == base


def test_sampled_rows_are_spread_and_bounded() -> None:
    assert sample_rows(5, 10).tolist() == [0, 1, 2, 3, 4]
    rows = sample_rows(100_000, 4096)
    assert len(rows) == SAMPLE_WEIGHTS // 4096
    assert rows[0] == 0
    assert rows[-1] > 99_000
    assert (rows.diff() > 0).all()
    assert sample_rows(3, SAMPLE_WEIGHTS * 2).tolist() == [0]
    assert sample_rows(1, 1).tolist() == [0]
