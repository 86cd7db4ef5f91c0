"""keep_quality: extra bytes spent on the layers that matter most for theirs, chosen before the file is laid out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import TpecError
from ...model.families import KEEP, QUANTIZE
from ...model.plan import Plan, TensorPlan
from ...patterns import matches
from .losses import Measured, expected

#: So many of the layers that found no room are tried in place of others.
_TRIES = 200


@dataclass(frozen=True)
class Quality:
    """What so many percent of extra size buy.

    shares: of every layer that was measured, by its name in the file, its share of the expected squared error of the
        model's result; kept: those that stay in high precision; nbytes: what that costs; after: the expected error,
        where 1 is that of the smallest file.
    """

    percent: float
    kept: tuple[str, ...]
    nbytes: int
    shares: Mapping[str, float]

    @property
    def after(self) -> float:
        return max(1 - sum(self.shares[name] for name in self.kept), 0.0) ** 0.5

    def text(self) -> str:
        """One line for people."""
        if not self.kept:
            return f"keep_quality {self.percent:g} %: no layer is small enough for so little, nothing more is kept"
        return (f"keep_quality {self.percent:g} %: {len(self.kept)} of {len(self.shares)} layers more stay in high "
                f"precision, {self.nbytes / 1e6:.1f} MB, for {self.after:.2f} x the expected error")


def find_quality(plan: Plan, found: Mapping[str, Measured]) -> Quality:
    """Choose the layers that `settings.keep_quality` percent pay for, from what was measured of all (see losses.py).

    The percentage is of the result's size without it. Layers that the user included stay FP8. Raises TpecError when
    no layer would be left to quantize.
    """
    shares = expected(plan, found)
    costs = {layer.linear: layer.info.nbytes - layer.info.items for layer in plan.of(QUANTIZE)
             if not layer.embedding and not _included(plan, layer)}
    percent = plan.settings.keep_quality
    kept = choose({name: shares[name] for name in costs}, costs, int(plan.output_nbytes * percent / 100))
    if len(kept) == len(shares):
        raise TpecError(f"keep_quality {percent:g} leaves no layer to quantize: take less.")
    return Quality(percent, tuple(name for name in costs if name in kept), sum(costs[name] for name in kept), shares)


def with_quality(plan: Plan, quality: Quality) -> Plan:
    """`plan` with the layers kept that `quality` chose, and a note on what that buys."""
    kept = {name: _reason(quality, name) for name in quality.kept}
    layers = tuple(replace(layer, action=KEEP, reason=kept[layer.linear])
                   if layer.action == QUANTIZE and layer.linear in kept else layer for layer in plan.tensors)
    return replace(plan, tensors=layers, bought=(*plan.bought, quality.text()))


def choose(gains: Mapping[str, float], costs: Mapping[str, int], budget: int) -> frozenset[str]:
    """The names whose gains sum up to most while their costs stay within `budget`, nearly.

    Best gain for its cost first, and whether one that is left out so is worth more than what it displaces.
    """
    order = sorted(gains, key=lambda name: (-gains[name] / max(costs[name], 1), name))
    tries = [_filled(order, costs, budget)]
    left = [name for name in order if name not in set(tries[0]) and costs[name] <= budget]
    for name in sorted(left, key=lambda name: -gains[name])[:_TRIES]:
        rest = [other for other in order if other != name]
        tries.append((name, *_filled(rest, costs, budget - costs[name])))
    return frozenset(max(tries, key=lambda names: sum(gains[name] for name in names)))


def _filled(order: Sequence[str], costs: Mapping[str, int], budget: int) -> tuple[str, ...]:
    taken = []
    for name in order:
        if costs[name] <= budget:
            taken.append(name)
            budget -= costs[name]
    return tuple(taken)


def _included(plan: Plan, layer: TensorPlan) -> bool:
    include = plan.settings.include
    return bool(include and matches(include, layer.name))


def _reason(quality: Quality, name: str) -> str:
    return f"kept for quality: {100 * quality.shares[name]:.2g} % of the expected squared error"
