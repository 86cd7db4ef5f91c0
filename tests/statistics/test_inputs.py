"""Statistics in memory and computed on access, adding up, and eigenvalues."""

import pytest
import torch
from samples import generator

from tpec.statistics.inputs import Gram, HeldInputs, InputsOnDemand, Moment, Summary, eigenpairs, merge_inputs

CPU = torch.device("cpu")


def stats(seed: int, wide: bool = False, tokens: int = 10) -> HeldInputs:
    source = generator(seed)
    factor = torch.randn(8, 8, generator=source)
    mean = torch.randn(8, generator=source)
    if not wide:
        return HeldInputs(mean, 1.0 + seed, tokens, Gram(factor @ factor.mT))
    vectors = torch.linalg.qr(factor).Q[:, :3].contiguous()
    moment = Summary(vectors, torch.tensor([3.0, 2.0, 1.0]), torch.rand(8) + 0.1)
    return HeldInputs(mean, 1.0 + seed, tokens, moment)


@pytest.mark.parametrize("wide", [False, True])
def test_on_demand_is_the_made_one_and_nothing_is_kept(wide: bool) -> None:
    real, asked = stats(0, wide), []

    def make(device: torch.device) -> Moment:
        asked.append(device)
        return type(real.moment)(*(part.clone() for part in real.moment))

    lazy = InputsOnDemand(real.mean, real.absmax, real.tokens, real.form, make)
    assert (lazy.width, lazy.nbytes, dict(lazy.form)) == (real.width, real.nbytes, dict(real.form))
    assert not asked, "what is known needs no work"
    assert torch.equal(lazy.second_moment(CPU), real.second_moment())
    assert torch.equal(lazy.energies(), real.energies())
    assert list(lazy.parts()) == list(real.parts()) == (
        ["mean", "vectors", "values", "rest"] if wide else ["mean", "gram"])
    assert asked == [CPU] * 3
    assert all(torch.equal(part, real.parts()[name]) for name, part in lazy.in_memory().parts().items())


@pytest.mark.parametrize("wide", [False, True])
def test_second_moments_are_the_callers_own(wide: bool) -> None:
    held = stats(0, wide)
    kept = held.second_moment()
    held.second_moment().zero_()
    assert torch.equal(held.second_moment(), kept)
    torch.testing.assert_close(kept.diagonal(), held.energies())


@pytest.mark.parametrize("wide", [False, True])
def test_statistics_compare_by_identity(wide: bool) -> None:
    """Comparing the tensors of two would have no single answer."""
    one, other = stats(0, wide), stats(0, wide)
    assert one == one and one != other and len({one, other}) == 2


@pytest.mark.parametrize("wide", [False, True])
def test_merging_computes_nothing_before_it_is_asked(wide: bool) -> None:
    def broken(device: torch.device) -> Moment:
        raise AssertionError("asked")

    real = stats(0, wide)
    lazy = InputsOnDemand(real.mean, real.absmax, real.tokens, real.form, broken)
    merged = merge_inputs("x", lazy, stats(1, wide, tokens=30))
    assert (merged.tokens, merged.absmax, merged.nbytes) == (40, 2.0, real.nbytes)
    with pytest.raises(AssertionError, match="asked"):
        merged.second_moment()


def test_merging_weighs_by_tokens() -> None:
    a, b = stats(0, tokens=10), stats(1, tokens=30)
    merged = merge_inputs("x", a, b)
    assert torch.equal(merged.second_moment(), a.second_moment() * 0.25 + b.second_moment() * 0.75)
    assert torch.equal(merged.mean, a.mean * 0.25 + b.mean * 0.75)
    a, b = stats(0, True, 10), stats(1, True, 30)
    diagonal = a.second_moment().diagonal() * 0.25 + b.second_moment().diagonal() * 0.75
    torch.testing.assert_close(merge_inputs("x", a, b).second_moment().diagonal(), diagonal)


@pytest.mark.parametrize("shape", [(40, 12), (12, 12), (30, 1)])
@pytest.mark.parametrize("fall", [0.0, 3.0])
def test_eigenpairs_are_those_of_an_svd(shape: tuple[int, int], fall: float) -> None:
    factor = torch.randn(shape, generator=generator()) * torch.logspace(0, -fall, shape[1])
    vectors, values = eigenpairs(factor)
    sigma = torch.linalg.svdvals(factor.double())
    torch.testing.assert_close(values.double(), sigma.square(), rtol=1e-5, atol=0)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(shape[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close((vectors * values) @ vectors.mT, factor @ factor.mT, rtol=1e-4, atol=1e-5)


def test_eigenpairs_without_full_rank_are_finite() -> None:
    assert not eigenpairs(torch.zeros(5, 2))[0].any()
    factor = torch.randn(20, 2, generator=generator()) @ torch.randn(2, 6, generator=generator(1))
    vectors, values = eigenpairs(factor)
    assert vectors.isfinite().all() and (values >= 0).all()
    assert values[2:].max() < 1e-5 * values[0]
    torch.testing.assert_close((vectors * values) @ vectors.mT, factor @ factor.mT, rtol=1e-4, atol=1e-4)
