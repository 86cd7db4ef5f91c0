"""Every value of the half formats through the grid, and weights that no model should have."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import generator

from tpec.rounding.grid import FP8, FP8_MAX, encode, round_to_grid
from tpec.rounding.layer import (
    Quantized,
    Rounding,
    check_finite,
    quantize_nearest,
    quantize_tpec,
    with_vanished,
)
from tpec.rounding.method import calibrated_metric
from tpec.rounding.principal import data_free_metric, principal_components
from tpec.statistics.inputs import Gram, HeldInputs


def saturating(x: torch.Tensor) -> torch.Tensor:
    """PyTorch's own cast, of float32, saturating."""
    return x.float().clamp(-FP8_MAX, FP8_MAX).to(FP8)


def same_codes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal codes; -0 and +0 are one number, and round_to_grid makes +0 of both."""
    a, b = (code.view(torch.uint8) for code in (a, b))
    return torch.equal(torch.where(a == 0x80, 0, a), torch.where(b == 0x80, 0, b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_value_is_rounded_as_pytorch_casts_it(dtype: torch.dtype) -> None:
    x = torch.arange(-2**15, 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    x = x[~x.isnan()]
    assert len(x) >= 63_490  # all but the NaNs
    assert torch.equal(encode(x).view(torch.uint8), saturating(x).view(torch.uint8))
    rounded = round_to_grid(x)
    assert torch.equal(rounded, saturating(x).float())
    assert same_codes(encode(rounded), saturating(x))
    assert not bool(((encode(x).view(torch.uint8) & 0x7F) == 0x7F).any())


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_any_float32_is_rounded_as_pytorch_casts_it(seed: int) -> None:
    bits = torch.randint(-2**31, 2**31, (50_000,), generator=generator(seed))
    x = bits.to(torch.int32).view(torch.float32)
    x = torch.cat([x, torch.randn(10_000, generator=generator(seed)) * 100])
    x = x[~x.isnan()]
    assert torch.equal(round_to_grid(x), saturating(x).float())
    assert torch.equal(encode(x).view(torch.uint8), saturating(x).view(torch.uint8))


@pytest.mark.parametrize("view", ["transposed", "strided", "expanded"])
def test_views_are_rounded_as_their_copies(view: str) -> None:
    plain = torch.randn(64, 48, generator=generator()) * 50
    x = {"transposed": plain.mT, "strided": plain[::3, 1::2], "expanded": plain[:1].expand(7, 48)}[view]
    before = x.clone()
    assert torch.equal(round_to_grid(x), round_to_grid(x.contiguous()))
    assert torch.equal(encode(x).view(torch.uint8), encode(x.contiguous()).view(torch.uint8))
    assert torch.equal(x, before)


WEIGHTS = {
    "denormal": torch.full((9, 7), 1e-42), "smallest": torch.full((9, 7), 1.4e-45), "zeros": torch.zeros(9, 7),
    "constant": torch.full((9, 7), 0.3), "signs": torch.tensor([[1.0, -1.0], [-1.0, 1.0]]),
    "one": torch.tensor([[-3.0]]),
    "one row": torch.randn(1, 50, generator=generator()), "one column": torch.randn(50, 1, generator=generator()),
    "rank one": torch.outer(torch.arange(20.0), torch.randn(30, generator=generator())),
    "huge": torch.randn(12, 20, generator=generator()) * 1e37,
    "transposed": torch.randn(20, 30, generator=generator()).mT,
    "strided": torch.randn(40, 60, generator=generator())[::2, ::3], "zero row": torch.eye(8)[:, :5],
}
GRAMS = {"zero": torch.zeros, "huge": lambda n, _: torch.eye(n) * 1e30, "tiny": lambda n, _: torch.eye(n) * 1e-30,
         "rank one": lambda n, _: torch.ones(n, n), "one input": lambda n, _: torch.diag(torch.eye(n)[0]),
         "steep": lambda n, _: torch.diag(10.0 ** torch.linspace(-15, 15, n))}


def quantized(weight: torch.Tensor, gram: torch.Tensor | None = None) -> Quantized:
    largest = check_finite("w", weight)
    if gram is None:
        components = principal_components(weight, largest, 4, 1 << 20)
        return quantize_tpec(weight, largest, Rounding(data_free_metric(components, 2.0), 2, components), 1 << 20)
    inputs = HeldInputs(torch.zeros(len(gram)), 1.0, 100, Gram(gram))
    return quantize_tpec(weight, largest, Rounding(calibrated_metric(inputs, False, weight.device), 2), 1 << 20)


def holds(weight: torch.Tensor, result: Quantized) -> None:
    """Finite in everything, never a NaN's code, and at most as far off as a verified file may be."""
    assert torch.stack(tuple(result.facts)).isfinite().all() and result.scale.isfinite() and result.scale > 0
    assert not ((result.codes.view(torch.uint8) & 0x7F) == 0x7F).any()
    restored = result.codes.double() * result.scale.double()
    # A weight below the smallest normal float32 cannot have a scale of its own.
    assert (restored - weight.double()).norm() <= 0.2 * weight.double().norm() + 1e-38


@pytest.mark.parametrize("name", WEIGHTS)
def test_strange_weights_give_finite_codes(name: str) -> None:
    weight = WEIGHTS[name]
    holds(weight, quantized(weight))
    holds(weight, quantize_nearest(weight, check_finite("w", weight), 1 << 20))
    copy = quantized(weight.contiguous())
    assert torch.equal(quantized(weight).codes.view(torch.uint8), copy.codes.view(torch.uint8))


@pytest.mark.parametrize("name", GRAMS)
def test_strange_gram_matrices_give_finite_codes(name: str) -> None:
    weight = torch.randn(24, 40, generator=generator())
    result = quantized(weight, GRAMS[name](40, 40))
    holds(weight, result)
    assert result.facts.loss <= result.facts.nearest_loss


@pytest.mark.parametrize(("outlier", "least", "most"), [(1.0, 0.0, 0.001), (1e3, 0.0, 0.5), (1e5, 0.99, 1.0)])
def test_weights_that_an_outlier_costs_are_counted(outlier: float, least: float, most: float) -> None:
    """The relative error says nothing: the outlier is most of the norm."""
    weight = torch.randn(64, 64, generator=generator()) * 0.03
    weight[5, 7] = outlier
    result = with_vanished(weight, quantized(weight))
    lost = (result.codes.float() == 0) & (weight != 0)
    assert result.facts.vanished == (lost.sum() if (result.codes.float() == 0).float().mean() > 0.01 else 0)
    assert least <= lost.float().mean() <= most
