"""Gradients at layers' outputs: the right matrix, no hook left, the same model."""

import pytest
import torch
from torch.nn import Linear
from torch.utils.checkpoint import checkpoint

from tpec.statistics.backward import GradientCollector
from tpec.statistics.gradients import GradientStats


class Small(torch.nn.Module):
    """Tokens [b, t, 6] -> [b, t, 3], with a modulation of one vector per sample."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.mod = Linear(6, 8), Linear(8, 3), Linear(4, 8)
        self.checkpointed = checkpointed
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        hidden = checkpoint(self.up, x, use_reentrant=False) if self.checkpointed else self.up(x)
        return self.down(hidden * self.mod(vector)[:, None])


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, 6, generator=random), torch.randn(2, 4, generator=random)


def collected(model: Small, probes: int) -> dict[str, GradientStats]:
    x, vector = inputs()
    with GradientCollector({name: getattr(model, name) for name in ("up", "down", "mod")}) as collector:
        for _ in range(probes):
            collector.probe(model(x.requires_grad_(True), vector.requires_grad_(True)))
    return collector.finish()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_second_moments_are_those_of_the_jacobian(checkpointed: bool) -> None:
    model, probes = Small(checkpointed), 400
    found = collected(model, probes)
    assert set(found) == {"up", "down"}, "one vector per sample is left out"
    gates = model.mod(inputs()[1])
    jacobians = [model.down.weight * gate for gate in gates]
    expected = sum(j.mT @ j for j in jacobians) / len(jacobians)
    assert (found["up"].second_moment()[0] - expected).norm() < 0.1 * expected.norm()
    assert (found["down"].second_moment()[0] - torch.eye(3)).norm() < 0.1 * 3**0.5
    assert found["up"].tokens == probes * 10


def test_the_same_seed_gives_the_same_statistics() -> None:
    first, second = collected(Small(), 3), collected(Small(), 3)
    assert torch.equal(first["up"].second_moment(), second["up"].second_moment())


def test_hooks_go_also_after_an_error_and_plain_runs_count_for_nothing() -> None:
    model = Small()
    before = model(*inputs())
    with pytest.raises(RuntimeError), GradientCollector({"up": model.up}) as collector:
        assert torch.equal(model(*inputs()), before)
        raise RuntimeError("stop")
    assert not model.up._forward_hooks
    assert collector.finish() == {}
