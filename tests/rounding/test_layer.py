"""One layer: any float input, any shape, never worse than round to nearest on the metric."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpec.errors import TpecError
from tpec.rounding.grid import FP8, decode
from tpec.rounding.layer import (
    Facts,
    Quantized,
    Rounding,
    check_finite,
    corrected_bias,
    quantize_nearest,
    quantize_tpec,
)
from tpec.rounding.metric import DenseMetric, Metric
from tpec.rounding.principal import data_free_metric, principal_components
from tpec.rounding.rows import RowCoupling
from tpec.statistics.gradients import HeldGradients

CHUNK = 1 << 20
SHAPES = [(1, 1), (1, 33), (33, 1), (2, 2), (5, 300), (300, 5), (40, 64), (129, 65)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tpec(weight: torch.Tensor, k: int = 4, sweeps: int = 0, chunk: int = CHUNK) -> tuple[Quantized, Metric]:
    largest = check_finite("w", weight)
    components = principal_components(weight, largest, k, chunk)
    metric = data_free_metric(components, 2.0)
    return quantize_tpec(weight, largest, Rounding(metric, sweeps, components), chunk), metric


def fact(result: Quantized, name: str) -> float:
    return getattr(result.facts, name).item()


def loss(weight: torch.Tensor, result: Quantized, metric: Metric) -> float:
    """Of the codes as they are, in units of the largest weight, in float64."""
    unit = weight.double().abs().max().clamp(min=1e-300)
    errors = (result.codes.double() * (result.scale.double() / unit) - weight.double() / unit).mT[metric.order]
    matrix = metric_matrix(metric, weight.shape[1]).double()
    return (errors * (matrix @ errors)).sum().item()


def metric_matrix(metric: Metric, n: int) -> torch.Tensor:
    """M in the metric's order, column by column from its own descent."""
    eye = torch.eye(n)
    return -metric.descent(torch.zeros(n, n), metric.start(eye), eye, 0, n) * metric.diagonal[:, None]


def relative_error(weight: torch.Tensor, result: Quantized) -> float:
    unit = weight.double().abs().max()
    restored = result.codes.double() * (result.scale.double() / unit)
    return ((restored - weight.double() / unit).norm() / (weight.double() / unit).norm()).item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_nearest_is_the_cast(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = random(*shape).to(dtype)
    result = quantize_nearest(weight, check_finite("w", weight), CHUNK)
    scale = weight.float().abs().max() / 448
    assert result.scale == scale
    assert torch.equal(result.codes.view(torch.uint8), (weight.float() / scale).to(FP8).view(torch.uint8))
    assert result.codes.shape == weight.shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_tpec_of_any_float_and_shape(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = random(*shape).to(dtype)
    result, _ = tpec(weight)
    assert (result.codes.shape, result.codes.dtype, result.scale.dtype) == (weight.shape, FP8, torch.float32)
    assert result.codes.float().isfinite().all()
    assert relative_error(weight, result) < 0.08


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e38])
def test_size_does_not_matter(size: float) -> None:
    weight = random(48, 64).clamp(-3, 3) / 3
    plain, _ = tpec(weight)
    scaled, _ = tpec(weight * size)
    assert relative_error(weight * size, scaled) == pytest.approx(relative_error(weight, plain), rel=0.02)
    assert fact(scaled, "loss") / fact(scaled, "nearest_loss") == pytest.approx(
        fact(plain, "loss") / fact(plain, "nearest_loss"), rel=0.02)
    near = quantize_nearest(weight * size, check_finite("w", weight * size), CHUNK)
    assert near.facts.error2 == near.facts.nearest_error2
    assert relative_error(weight * size, near) < 0.03


@pytest.mark.parametrize("method", [lambda w: tpec(w)[0], lambda w: quantize_nearest(w, check_finite("w", w), CHUNK)])
def test_zeros_stay_zeros(method) -> None:
    result = method(torch.zeros(7, 9))
    assert result.codes.float().count_nonzero() == 0
    assert result.scale == 1
    assert result.facts.stack().count_nonzero() == 0


def test_zero_rows_stay_zero_and_zero_columns_small() -> None:
    weight = random(30, 40)
    weight[3], weight[:, 5] = 0, 0
    for sweeps in (0, 2):
        result, _ = tpec(weight, sweeps=sweeps)
        restored = decode(result.codes, result.scale)
        # Nothing to make up for in a row of zeros; a column of zeros may make up for others, but only by little.
        assert restored[3].count_nonzero() == 0
        assert restored[:, 5].norm() < 0.05 * weight[:, 4].norm()
        assert relative_error(weight, result) < 0.05


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_values_that_are_not_finite_are_refused_by_name(value: float) -> None:
    weight = random(8, 8).double()
    weight[7, 7] = value
    with pytest.raises(TpecError, match="'block.weight' holds NaN or infinite values"):
        check_finite("block.weight", weight)


@given(rows=st.integers(1, 40), columns=st.integers(1, 80), k=st.integers(1, 8), sweeps=st.integers(0, 2),
       seed=st.integers(0, 10_000), heavy=st.booleans())
@settings(max_examples=60)
def test_never_worse_than_nearest_on_the_metric(rows: int, columns: int, k: int, sweeps: int, seed: int,
                                                heavy: bool) -> None:
    weight = random(rows, columns, seed=seed)
    weight = (weight**3 if heavy else weight).bfloat16()
    result, metric = tpec(weight, k, sweeps)
    assert fact(result, "loss") <= fact(result, "nearest_loss") * (1 + 1e-5)
    near = quantize_nearest(weight, check_finite("w", weight), CHUNK)
    allowed = loss(weight, near, metric)
    assert loss(weight, result, metric) <= allowed * (1 + 1e-4)
    base = near.scale.double() / weight.double().abs().max()
    assert loss(weight, result, metric) == pytest.approx(fact(result, "loss") * base.item() ** 2, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("sweeps", [0, 3])
def test_dense_metric_never_worse_and_sweeps_help(sweeps: int) -> None:
    x = random(500, 20) @ random(20, 60, seed=1) + 0.1 * random(500, 60, seed=2)
    metric = DenseMetric(x.T @ x / 500, torch.arange(60).flip(0))
    weight = random(50, 60, seed=3)
    largest = check_finite("w", weight)
    result = quantize_tpec(weight, largest, Rounding(metric, sweeps), CHUNK)
    near = quantize_nearest(weight, largest, CHUNK)
    assert loss(weight, result, metric) < 0.6 * loss(weight, near, metric)
    assert fact(result, "sweeps") == sweeps
    if sweeps:
        without = quantize_tpec(weight, largest, Rounding(metric, 0), CHUNK)
        assert loss(weight, result, metric) < loss(weight, without, metric)


@pytest.mark.parametrize("coupled", [False, True])
def test_sweeps_end_where_nothing_moves_and_are_reported_as_made(coupled: bool) -> None:
    x = random(500, 30)
    metric = DenseMetric(x.T @ x / 500, torch.arange(30))
    weight = random(48, 30, seed=3)
    largest = check_finite("w", weight)
    coupling = RowCoupling(HeldGradients(torch.eye(48)[None], 48, 10_000), weight.device) if coupled else None
    several, many = (quantize_tpec(weight, largest, Rounding(metric, sweeps, coupling=coupling), CHUNK)
                     for sweeps in (300, 400))
    assert 1 < fact(several, "sweeps") == fact(many, "sweeps") < 300
    assert torch.equal(several.codes.view(torch.uint8), many.codes.view(torch.uint8))


def test_reported_losses_are_those_of_the_codes() -> None:
    x = random(300, 48)
    metric = DenseMetric(x.T @ x / 300 + torch.eye(48), torch.arange(48))
    weight = random(32, 48, seed=5)
    largest = check_finite("w", weight)
    result = quantize_tpec(weight, largest, Rounding(metric, 1), CHUNK)
    near = quantize_nearest(weight, largest, CHUNK)
    assert fact(result, "loss") / fact(result, "nearest_loss") == pytest.approx(
        loss(weight, result, metric) / loss(weight, near, metric), rel=1e-3)
    error = (fact(result, "error2") / fact(result, "weight_norm2")) ** 0.5
    assert error == pytest.approx(relative_error(weight, result), rel=1e-3)


def test_chunks_do_not_change_the_codes() -> None:
    weight = random(60, 32)
    x = random(300, 32)
    metric = DenseMetric(x.T @ x / 300 + torch.eye(32), torch.arange(32))
    largest = check_finite("w", weight)
    codes = [quantize_tpec(weight, largest, Rounding(metric, 1), chunk).codes.view(torch.uint8)
             for chunk in (CHUNK, 32 * 7, 1)]
    assert torch.equal(codes[0], codes[1])
    assert (codes[0] == codes[2]).float().mean() > 0.99
    near = [quantize_nearest(weight, largest, chunk).codes.view(torch.uint8) for chunk in (CHUNK, 1)]
    assert torch.equal(*near)


def test_same_input_same_bytes() -> None:
    weight = random(64, 96).bfloat16()
    first, second = tpec(weight, sweeps=1)[0], tpec(weight, sweeps=1)[0]
    assert torch.equal(first.codes.view(torch.uint8), second.codes.view(torch.uint8))
    assert first.scale == second.scale


def test_tick_is_called_within_the_layer_and_may_stop_it() -> None:
    weight, calls = random(64, 300), []
    largest = check_finite("w", weight)
    components = principal_components(weight, largest, 4, CHUNK)
    metric = data_free_metric(components, 2.0)
    quantize_tpec(weight, largest, Rounding(metric, 2, components), CHUNK, lambda: calls.append(1))
    assert len(calls) >= 6

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_tpec(weight, largest, Rounding(metric, 0, components), CHUNK, stop)


def test_corrected_bias_keeps_the_mean_output() -> None:
    weight, bias, mean = random(20, 30), random(20, seed=1), random(30, seed=2)
    result = quantize_nearest(weight, check_finite("w", weight), CHUNK)
    new = corrected_bias(weight, result, bias, mean, 64)
    assert torch.allclose(decode(result.codes, result.scale) @ mean + new, weight @ mean + bias, atol=1e-5)
    assert new.dtype == bias.dtype


def test_facts_come_back_from_one_tensor_under_their_names() -> None:
    facts = Facts(*(torch.tensor(float(at)) for at in range(len(Facts._fields))))
    stacked = facts.stack()
    assert stacked.tolist() == [float(at) for at in range(len(Facts._fields))]
    assert Facts.of(stacked) == facts and Facts.of(stacked).vanished == len(Facts._fields) - 1


@pytest.mark.parametrize("sweeps", [0, 300])
def test_facts_of_a_layer_do_not_depend_on_its_chunks(sweeps: int) -> None:
    weight = random(60, 32)
    weight[3] *= 5
    largest = check_finite("w", weight)
    components = principal_components(weight, largest, 4, CHUNK)
    rounding = Rounding(data_free_metric(components, 2.0), sweeps, components)
    whole, parts = (quantize_tpec(weight, largest, rounding, chunk).facts for chunk in (CHUNK, 32 * 7))
    for name in ("weight_norm2", "error2", "nearest_error2", "loss", "nearest_loss", "saturated"):
        assert getattr(parts, name).item() == pytest.approx(getattr(whole, name).item(), rel=1e-4), name
    assert parts.principal_before.item() == pytest.approx(whole.principal_before.item(), rel=1e-3)
    assert parts.sweeps == whole.sweeps <= sweeps


def test_where_nearest_is_taken_its_facts_are_told() -> None:
    """Weights on the grid of the absmax scale: nothing can be better than no error."""
    weight = torch.tensor([[448.0, 13.0, -0.5], [288.0, 26.0, 7.5]]) * 0.125
    result = quantize_tpec(weight, check_finite("w", weight), Rounding(DenseMetric(torch.eye(3), torch.arange(3)), 1),
                           CHUNK)
    facts = result.facts
    assert facts.error2 == facts.nearest_error2 == facts.loss == facts.nearest_loss == facts.saturated == 0
    assert torch.equal(decode(result.codes, result.scale), weight)
