"""The policy of a layer: what is chosen for which statistics, and what is kept from layer to layer."""

import pytest
import torch
from samples import generator

from tpec.errors import TpecError
from tpec.rounding import method
from tpec.rounding.grid import decode
from tpec.rounding.method import Policy, Rounded, Rounder, calibrated_metric, centred, default_rank
from tpec.rounding.metric import DenseMetric
from tpec.statistics.gradients import HeldGradients
from tpec.statistics.inputs import HeldInputs
from tpec.statistics.sums import GramAccumulator, SketchAccumulator
from tpec.statistics.workspace import Workspace

CPU = torch.device("cpu")
ROWS, WIDTH = 24, 32


def stats(width: int = WIDTH, tokens: int = 2000, sketch: bool = False) -> HeldInputs:
    accumulator = (SketchAccumulator if sketch else GramAccumulator)(width, CPU, Workspace())
    accumulator.add(torch.randn(tokens, width, generator=generator()) * torch.linspace(3, 0.2, width) + 0.5)
    return accumulator.finish().in_memory()


def gradients() -> HeldGradients:
    factor = torch.randn(1, ROWS, 6, generator=generator())
    return HeldGradients(factor @ factor.mT, ROWS, 10_000)


def weight() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=generator())


def same(first: Rounded, second: Rounded) -> bool:
    return torch.equal(first.quantized.codes.view(torch.uint8), second.quantized.codes.view(torch.uint8))


def test_what_is_known_of_a_layer_decides_the_metric() -> None:
    bias, rounder = torch.zeros(ROWS), Rounder(Policy())
    found = [rounder.round_linear("w", weight(), bias), rounder.round_linear("w", weight(), bias, stats()),
             rounder.round_linear("w", weight(), bias, stats(), gradients()),
             Rounder(Policy("nearest")).round_linear("w", weight(), bias, stats(), gradients())]
    assert [rounded.metric for rounded in found] == ["weight", "activation", "gradient", "nearest"]
    # Only inputs that are known say what the error does to the mean of the output.
    assert [rounded.bias is not None for rounded in found] == [False, True, True, False]
    for rounded in found[:3]:
        facts = rounded.quantized.facts
        assert facts.loss < facts.nearest_loss
    assert found[0].quantized.facts.principal_before > 0 == found[1].quantized.facts.principal_before


def test_sweeps_are_the_policys_own_or_the_users() -> None:
    """Where the weights are many, more sweeps than these never run out of moves."""
    w, some = torch.randn(200, WIDTH, generator=generator()), stats()
    gram = torch.eye(200)[None] + 0.5
    cases = [((), method._SWEEPS_DATA_FREE), ((None, some), method._SWEEPS_CALIBRATED),
             ((None, some, HeldGradients(gram, 200, 10_000)), method._SWEEPS_COUPLED)]
    for known, default in cases:
        for asked, expected in ((None, default), (0, 0), (1, 1)):
            facts = Rounder(Policy(sweeps=asked)).round_linear("w", w, *known).quantized.facts
            assert facts.sweeps == expected, (len(known), asked)


def test_rank_is_the_users_where_given() -> None:
    default, same_rank, other = (Rounder(Policy(rank=rank)).round_linear("w", weight()) for rank in (None, 2, 8))
    assert default_rank(WIDTH) == 2 and same(default, same_rank) and not same(default, other)


def test_corrected_bias_keeps_the_mean_output() -> None:
    w, bias, some = weight(), torch.randn(ROWS, generator=generator()), stats()
    rounded = Rounder(Policy()).round_linear("w", w, bias, some)
    restored = decode(rounded.quantized.codes, rounded.quantized.scale)
    torch.testing.assert_close(restored @ some.mean + rounded.bias, w @ some.mean + bias)
    assert not torch.equal(rounded.bias, bias)


def test_the_bias_stays_where_the_mean_is_not_trusted() -> None:
    few = stats(tokens=WIDTH)
    assert Rounder(Policy()).round_linear("w", weight(), torch.zeros(ROWS), few).bias is None
    assert centred(stats(tokens=1000), True)
    assert not centred(stats(tokens=1000), False)
    assert not centred(few, True)


def test_the_metric_is_kept_for_neighbours_with_the_same_input(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(*arguments: object) -> DenseMetric:
        made.append(arguments)
        return calibrated_metric(*arguments)

    monkeypatch.setattr(method, "calibrated_metric", counted)
    rounder, one, other, bias = Rounder(Policy()), stats(), stats(tokens=1500), torch.zeros(ROWS)
    first = rounder.round_linear("w", weight(), bias, one)
    assert same(rounder.round_linear("w", weight(), bias, one), first) and len(made) == 1
    rounder.round_linear("w", weight(), None, one)
    assert len(made) == 2, "without a bias to take it up the mean counts"
    rounder.round_linear("w", weight(), None, other)
    assert len(made) == 3
    rounder.forget()
    rounder.round_linear("w", weight(), None, other)
    assert len(made) == 4


@pytest.mark.parametrize("chunk", [1, 7 * WIDTH])
def test_smaller_chunks_give_nearly_the_same(chunk: int) -> None:
    w, bias, some = weight(), torch.zeros(ROWS), stats()
    whole, parts = (Rounder(Policy()).round_linear("w", w, bias, some, chunk=size) for size in (None, chunk))
    assert whole.quantized.scale == parts.quantized.scale
    same_codes = whole.quantized.codes.view(torch.uint8) == parts.quantized.codes.view(torch.uint8)
    assert same_codes.float().mean() > 0.99


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    broken = weight()
    broken[3, 4] = torch.inf
    for policy in (Policy(), Policy("nearest")):
        with pytest.raises(TpecError, match="'block.weight' holds NaN or infinite values"):
            Rounder(policy).round_linear("block.weight", broken)


@pytest.mark.parametrize("tokens", [1, 5, 4000])
@pytest.mark.parametrize("sketch", [False, True])
def test_metric_is_positive_whatever_the_tokens(tokens: int, sketch: bool) -> None:
    metric = calibrated_metric(stats(tokens=tokens, sketch=sketch), True, CPU)
    errors = torch.randn(WIDTH, 10, generator=generator())
    assert metric.loss(errors) > 0
    assert sorted(metric.order.tolist()) == list(range(WIDTH))


def test_default_rank_grows_with_the_width_up_to_a_limit() -> None:
    assert [default_rank(width) for width in (1, 16, 3072, 1 << 20)] == [1, 1, 192, 256]
