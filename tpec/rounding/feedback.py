"""Rounding on the FP8 grid by error feedback, then coordinate descent; one algorithm for every metric.

All tensors are [n, rows] float32 in units of the scale, in the metric's column order.
"""

from collections.abc import Callable

import torch

from .grid import round_to_grid
from .kernels import block_rounder
from .metric import Metric

#: Called between blocks; may raise to stop.
Tick = Callable[[], None]


def no_tick() -> None:
    """For callers that need no progress."""


def nearest(weights: torch.Tensor) -> torch.Tensor:
    """Round to nearest, ties to even, saturating."""
    return round_to_grid(weights)


def feedback(weights: torch.Tensor, metric: Metric, tick: Tick = no_tick) -> tuple[torch.Tensor, torch.Tensor]:
    """Round column by column; each column makes up for the errors before it. Returns (values, errors)."""
    round_block = block_rounder(weights.device)
    values = torch.empty(weights.shape, device=weights.device)
    errors = torch.empty_like(values)
    state = metric.begin(errors)
    blocks = zip(*(tensor.split(metric.block) for tensor in (weights, errors, values)), strict=True)
    for index, (base, change, value) in enumerate(blocks):
        begin, end = index * metric.block, index * metric.block + len(base)
        metric.aim(base, state, begin, end, change)
        round_block(change, base, metric.feedback_coupling(begin, end), value)
        metric.push(state, begin, end, change)
        tick()
    return values, errors


def improve(values: torch.Tensor, errors: torch.Tensor, metric: Metric, sweeps: int, tick: Tick = no_tick) -> int:
    """At most `sweeps` of coordinate descent, in place, fewer when nothing moves any more. Returns how many."""
    for done in range(1, sweeps + 1):
        if descend(values, errors, metric, tick) == 0:
            return done
    return sweeps


def descend(values: torch.Tensor, errors: torch.Tensor, metric: Metric, tick: Tick = no_tick) -> torch.Tensor:
    """One sweep of coordinate descent, in place: every weight moves to its best grid value given all others.

    The loss never rises. Returns the number of weights that moved (a 0-d tensor on the device, not synchronised).
    """
    round_block = block_rounder(values.device)
    state, before = metric.start(errors), values.clone()
    for index, (block, error) in enumerate(zip(values.split(metric.block), errors.split(metric.block), strict=True)):
        begin, end = index * metric.block, index * metric.block + len(block)
        change = metric.descent(block, state, errors, begin, end)
        round_block(change, block, metric.descent_coupling(begin, end), block)
        error += change
        metric.push(state, begin, end, change)
        tick()
    return (values != before).sum()
