"""The published objective is driven to zero by few moves between grid neighbours."""

import pytest
import torch

from tpec.rounding.grid import FP8, encode
from tpec.rounding.layer import check_finite
from tpec.rounding.metric import LowRankMetric
from tpec.rounding.principal import Components, data_free_metric, principal_components
from tpec.rounding.scale import absmax_scale
from tpec.rounding.trim import principal_error, trim_principal

CHUNK = 1 << 20
ROOM = torch.tensor(torch.inf)


def layer(rows: int, columns: int, size: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Components,
                                                             LowRankMetric]:
    generator = torch.Generator().manual_seed(rows + columns)
    weight = torch.randn(rows, columns, generator=generator)
    weight += torch.randn(rows, 1, generator=generator) * torch.randn(1, columns, generator=generator)
    weight = weight / weight.abs().max() * size
    largest = check_finite("w", weight)
    components = principal_components(weight, largest, 4, CHUNK)
    scale = absmax_scale(largest)
    return weight, encode(weight / scale), scale, components, data_free_metric(components, 2.0)


def trim(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, components: Components, metric: LowRankMetric,
         room: torch.Tensor = ROOM) -> tuple[torch.Tensor, torch.Tensor]:
    error = principal_error(weight, codes, scale, components, CHUNK)
    return trim_principal(weight, codes.clone(), scale, components, metric, error, room)


def test_principal_error_is_its_definition() -> None:
    weight, codes, scale, components, _ = layer(60, 40)
    left, sigma, right = torch.linalg.svd(weight.double())
    direct = left[:, 0] @ (codes.double() * scale.double() - weight.double()) @ right[0]
    found = principal_error(weight, codes, scale, components, CHUNK) * components.unit
    assert found.item() == pytest.approx(direct.item(), abs=1e-6 * sigma[0].item())
    chunked = principal_error(weight, codes, scale, components, 40 * 7) * components.unit
    assert chunked.item() == pytest.approx(direct.item(), abs=1e-6 * sigma[0].item())


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e38])
@pytest.mark.parametrize("shape", [(64, 64), (300, 40), (40, 300)])
def test_objective_goes_to_zero_with_few_moves(shape: tuple[int, int], size: float) -> None:
    weight, codes, scale, components, metric = layer(*shape, size)
    before = principal_error(weight, codes, scale, components, CHUNK).abs() / components.first_value
    trimmed, _ = trim(weight, codes, scale, components, metric)
    after = principal_error(weight, trimmed, scale, components, CHUNK).abs() / components.first_value
    assert after <= before
    assert after < 2e-6
    assert (trimmed.view(torch.uint8) != codes.view(torch.uint8)).float().mean() < 0.02


@pytest.mark.parametrize("shape", [(5000, 600), (600, 5000)])
def test_large_layers_have_moves_enough(shape: tuple[int, int]) -> None:
    weight, codes, scale, components, metric = layer(*shape)
    # An error along the whole of the first pair, as large as rounding on the grid makes it.
    codes = encode(codes.float() + 0.002 * weight / scale)
    before = principal_error(weight, codes, scale, components, CHUNK).abs() / components.first_value
    trimmed, _ = trim(weight, codes, scale, components, metric)
    after = principal_error(weight, trimmed, scale, components, CHUNK).abs() / components.first_value
    assert before > 1e-4
    assert after < 1e-6


def test_moves_go_to_neighbours_only() -> None:
    weight, codes, scale, components, metric = layer(200, 64)
    trimmed, _ = trim(weight, codes, scale, components, metric)
    grid = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    grid = grid[grid.isfinite()].unique()
    steps = (torch.searchsorted(grid, trimmed.float()) - torch.searchsorted(grid, codes.float())).abs()
    moved = (trimmed.view(torch.uint8) != codes.view(torch.uint8)).sum()
    assert 0 < moved
    assert steps.max() == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_small_shapes_do_not_get_worse(shape: tuple[int, int]) -> None:
    weight, codes, scale, components, metric = layer(*shape)
    before = principal_error(weight, codes, scale, components, CHUNK).abs()
    trimmed, _ = trim(weight, codes, scale, components, metric)
    assert principal_error(weight, trimmed, scale, components, CHUNK).abs() <= before + 1e-7


def test_exact_codes_are_left_alone() -> None:
    weight, _, scale, components, metric = layer(8, 8)
    codes = encode((weight / scale).round().clamp(-8, 8))
    exact = codes.float() * scale
    trimmed, rise = trim(exact, codes, scale, components, metric)
    assert torch.equal(trimmed.view(torch.uint8), codes.view(torch.uint8))
    assert rise == 0


def test_rise_is_what_the_moves_cost_and_too_much_is_not_done() -> None:
    weight, codes, scale, components, metric = layer(64, 64)

    def loss(found: torch.Tensor) -> float:
        return metric.loss((found.float() - weight / scale).mT[metric.order]).item()

    trimmed, rise = trim(weight, codes, scale, components, metric)
    assert rise.item() == pytest.approx(loss(trimmed) - loss(codes), rel=1e-3)
    assert rise > 0
    kept, none = trim(weight, codes, scale, components, metric, rise * 0.99)
    assert torch.equal(kept.view(torch.uint8), codes.view(torch.uint8))
    assert none == 0
    done, _ = trim(weight, codes, scale, components, metric, rise * 1.01)
    assert torch.equal(done.view(torch.uint8), trimmed.view(torch.uint8))
