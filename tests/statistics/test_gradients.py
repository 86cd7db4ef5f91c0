"""Second moments of gradients: sums in runs of rows, adding up, and what is computed on access."""

import pytest
import torch
from samples import generator

from tpec.errors import TpecError
from tpec.statistics.gradients import GradientsOnDemand, HeldGradients, OutputAccumulator, merge_outputs, run_shape

CPU = torch.device("cpu")


def test_wide_outputs_are_kept_in_runs() -> None:
    assert run_shape(10, 4) == (3, 4) and run_shape(8, 4) == (2, 4) and run_shape(3, 4) == (1, 3)
    gradients = torch.randn(50, 10, generator=generator())
    total = OutputAccumulator(10, CPU, limit=4)
    total.add(gradients[:20])
    total.add(gradients[20:].bfloat16().float())
    stats = total.finish()
    gram = stats.second_moment()
    assert gram.shape == (3, 4, 4) and stats.tokens == 50
    assert (stats.runs, stats.nbytes) == (3, 4 * 3 * 4 * 4)
    whole = gradients.mT @ gradients / 50
    torch.testing.assert_close(gram[1], whole[4:8, 4:8], atol=1e-2, rtol=0)
    assert not gram[2, 2:].any()


def test_merging_weighs_by_tokens_and_keeps_what_one_side_knows() -> None:
    one, three = HeldGradients(torch.ones(1, 2, 2), 2, 10), HeldGradients(3 * torch.ones(1, 2, 2), 2, 30)
    merged = merge_outputs({"a": one, "b": one}, {"a": three})
    assert merged["a"].tokens == 40 and torch.equal(merged["a"].second_moment(), torch.full((1, 2, 2), 2.5))
    assert merged["b"] is one


def test_other_forms_are_not_added_up() -> None:
    for other in (HeldGradients(torch.ones(1, 3, 3), 3, 1), HeldGradients(torch.ones(2, 1, 1), 2, 1)):
        with pytest.raises(TpecError, match="output of 'a' in different forms"):
            merge_outputs({"a": HeldGradients(torch.ones(1, 2, 2), 2, 10)}, {"a": other})


def test_on_demand_is_computed_at_every_access() -> None:
    asked: list[torch.device] = []

    def make(device: torch.device) -> torch.Tensor:
        asked.append(device)
        return torch.ones(2, 3, 3, device=device)

    lazy = GradientsOnDemand(5, 10, 2, make)
    assert lazy.nbytes == HeldGradients(torch.ones(2, 3, 3), 5, 10).nbytes and not asked
    assert torch.equal(lazy.second_moment(), lazy.in_memory().gram) and asked == [CPU, CPU]


def test_statistics_compare_by_identity_and_are_not_changed_by_their_users() -> None:
    """Comparing the tensors of two would have no single answer."""
    one, other = (HeldGradients(torch.ones(1, 2, 2), 2, 10) for _ in range(2))
    assert one == one and one != other and len({one, other}) == 2
    one.second_moment().zero_()
    assert one.gram.all()
