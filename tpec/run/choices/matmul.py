"""matmul auto: FP8 multiplication where rounding the inputs costs the result least, full precision elsewhere.

What rounding an input costs differs by more than ten times per multiplication between kinds of layers: it is large
where large inputs nearly cancel in the output. It is measured as the weights' rounding is (losses.py), through the
weights on the inputs' second moment, and weighed in the same way.
"""

from collections.abc import Mapping
from dataclasses import replace

from ...model.families import QUANTIZE
from ...model.plan import Plan
from ...statistics.calibration import Calibration
from ..fit import fp8_options
from .losses import Measured, completed, importance
from .quality import choose

#: The error that FP8 inputs may add, of that of weights rounded to nearest (both as root mean squares).
BUDGET = 0.5
#: Tries of budgets between none and all multiplications.
_STEPS = 40


def input_costs(plan: Plan, found: Mapping[str, Measured]) -> dict[str, float]:
    """The squared error that rounding each layer's inputs is expected to add to the model's result.

    In units of what rounding all weights to nearest is expected to cost; only layers whose inputs are known.
    """
    weighty = importance(plan, found)
    known = {name: one for name, one in found.items() if one.output_error is not None and name in weighty}
    weights = {name: weighty[name] * (one.output_error or 0.0) for name, one in known.items()}
    inputs = {name: weighty[name] * (one.input_error or 0.0) for name, one in known.items()}
    felt = {name: one for name, one in known.items() if one.felt is not None}
    by_gradient = {name: (weights[name] * (one.felt or 0.0)) ** 0.5 for name, one in felt.items()}
    total = sum(completed(by_gradient, weights).values()) or 1.0
    ratios = {name: _root_ratio(one) for name, one in felt.items()}
    costs = {name: by_gradient[name] * ratios[name] for name in felt}
    return {name: cost / total for name, cost in completed(costs, inputs).items()}


def _root_ratio(one: Measured) -> float:
    """Of the input's rounding to the weight's, the geometric mean of the output's errors' and of what is felt of them.
    """
    if not one.output_error or not one.felt or one.input_error is None or one.input_felt is None:
        return 0.0
    return (one.input_error / one.output_error * one.input_felt / one.felt) ** 0.5


def multiplications(plan: Plan, calibration: Calibration) -> dict[str, int]:
    """By layer, as many as the calibration's runs took; 0 where it saw no input."""
    stats = {layer: calibration.stats(layer.linear_in_model) for layer in plan.of(QUANTIZE)}
    return {layer.linear: layer.info.items * (known.tokens if known else 0) for layer, known in stats.items()}


def cheapest(costs: Mapping[str, float], work: Mapping[str, int], rest: int) -> frozenset[str]:
    """The layers to multiply in FP8 when those that keep full precision may take `rest` multiplications in all."""
    return frozenset(costs) - choose(costs, {name: work[name] for name in costs}, rest)


def with_matmul(plan: Plan, found: Mapping[str, Measured], calibration: Calibration) -> Plan:
    """`plan` with every layer's matmul decided: as many multiplications in FP8 as BUDGET allows."""
    work = multiplications(plan, calibration)
    fit = {layer.linear for layer in plan.of(QUANTIZE)
           if (stats := calibration.stats(layer.linear_in_model)) is not None and not fp8_options(stats).full_precision}
    costs = {name: cost for name, cost in input_costs(plan, found).items() if name in fit}
    fast = _within_budget(costs, work)
    share = sum(work[name] for name in fast) / (sum(work.values()) or 1)
    added = sum(costs[name] for name in fast) ** 0.5
    layers = tuple(replace(layer, matmul="fp8" if layer.linear in fast else "full_precision")
                   if layer.action == QUANTIZE else layer for layer in plan.tensors)
    text = (f"matmul auto: {len(fast)} of {len(work)} layers multiply in FP8, {100 * share:.0f} % of the "
            f"multiplications, for an expected error of {added:.2f} x that of plainly rounded weights beside their own")
    return replace(plan, tensors=layers, bought=(*plan.bought, text))


def _within_budget(costs: Mapping[str, float], work: Mapping[str, int]) -> frozenset[str]:
    """The largest share of the multiplications whose cost stays within BUDGET."""
    total = sum(work[name] for name in costs)
    for step in range(_STEPS + 1):
        fast = cheapest(costs, work, total * step // _STEPS)
        if sum(costs[name] for name in fast) <= BUDGET**2:
            return fast
    return frozenset()
