"""The FP8 grid against PyTorch's own casts."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tpec.rounding.grid import FP8, FP8_MAX, decode, encode, neighbour, round_to_grid, spacing

ALL_CODES = torch.arange(256, dtype=torch.uint8).view(FP8).float()
GRID = ALL_CODES[ALL_CODES.isfinite()].unique()


def cast(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-FP8_MAX, FP8_MAX).to(FP8).float()


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=64))
def test_rounding_is_the_saturating_cast(values: list[float]) -> None:
    x = torch.tensor(values)
    assert torch.equal(round_to_grid(x), cast(x))


def test_rounding_of_every_grid_point_midpoint_and_its_float_neighbours() -> None:
    middles = (GRID[1:] + GRID[:-1]) / 2
    points = torch.cat([GRID, middles])
    around = [points, torch.nextafter(points, torch.tensor(1e9)), torch.nextafter(points, torch.tensor(-1e9))]
    for x in around:
        assert torch.equal(round_to_grid(x), cast(x))


def test_tiny_and_huge_values() -> None:
    x = torch.tensor([0.0, -0.0, 1e-45, -1e-38, 2.0**-10, 1.5 * 2.0**-10, 3e38, -3e38, 464.0, 465.0])
    assert torch.equal(round_to_grid(x), cast(x))


def test_encode_decode_round_trip() -> None:
    assert torch.equal(decode(encode(GRID)), GRID)
    assert torch.equal(decode(encode(GRID), 0.5), GRID * 0.5)


def test_neighbours_walk_the_whole_grid() -> None:
    up = torch.ones_like(GRID, dtype=torch.bool)
    assert torch.equal(neighbour(GRID, up), torch.cat([GRID[1:], GRID[-1:]]))
    assert torch.equal(neighbour(GRID, ~up), torch.cat([GRID[:1], GRID[:-1]]))


def test_spacing_is_the_gap_above() -> None:
    positive = GRID[GRID >= 0]
    assert torch.equal(spacing(positive[:-1]), positive[1:] - positive[:-1])
