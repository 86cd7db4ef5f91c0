"""Drive the published TPEC objective u_1^T (Q - W) v_1 to zero by moving a few weights to their other neighbour.

The weights that pay least on the layer's metric for what they contribute go first, one in a row at a time so that no
row's own error along v_1 grows; one last flip meets what is left.
"""

import torch

from .grid import encode, neighbour
from .metric import Metric
from .principal import Components, row_chunks
from .steady import total

#: Weights considered, in the rows where u_1 is largest.
_CANDIDATE_ITEMS = 1 << 21
_PASSES = 5
#: A flip costs at least this share of the mean loss of a weight: free flips that achieve little are not worth making.
_FLOOR = 0.1


def principal_error(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, components: Components,
                    items: int) -> torch.Tensor:
    """u_1^T (Q - W) v_1, signed, in the components' unit, float32 0-d; W [rows, n] is read chunk by chunk."""
    v, u = components.first_right, components.first_left
    parts = [u[a:b] @ (codes[a:b].float().sub_(weight[a:b].float() / scale) @ v)
             for a, b in row_chunks(*weight.shape, items)]
    return torch.stack(parts).sum() * (scale / components.unit)


def trim_principal(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, components: Components,
                   metric: Metric, error: torch.Tensor, room: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes float8_e4m3fn [rows, n], changed in place, with the objective near zero; only rows with a large u_1 change.

    `error` is the codes' `principal_error`. Also returns what that adds to the layer's loss, 0-d in units of scale^2;
    where it were more than `room` (tiny layers) nothing is changed.
    """
    n = weight.shape[1]
    count = max(1, min(weight.shape[0], _CANDIDATE_ITEMS // n))
    rows = components.first_left.abs().topk(count).indices
    target = weight[rows].float() / scale
    before = codes.view(torch.uint8)[rows].view(codes.dtype).float()
    pull = components.first_left[rows][:, None] * components.first_right * (scale / components.unit)
    move = neighbour(before, pull * error < 0).sub_(before)
    gain = pull.mul_(move).abs_()
    rate = torch.where(gain > 0, _price(move, before - target, metric).div_(gain), torch.inf)
    values, left = before.clone(), error.abs()
    # No pass overshoots, so the direction stays; a weight moves once, and hardly changes what the others cost.
    for step in range(_PASSES):
        column, flip = _cheapest(gain, rate, left) if step < _PASSES - 1 else _closest(gain, rate, left)
        values.scatter_(1, column, values.gather(1, column) + move.gather(1, column) * flip)
        left = left - total(gain.gather(1, column) * flip)
        rate.scatter_(1, column, torch.where(flip, torch.inf, rate.gather(1, column)))
    rise = _loss(values - target, metric) - _loss(before - target, metric)
    fits = rise <= room
    codes.view(torch.uint8)[rows] = encode(torch.where(fits, values, before)).view(torch.uint8)
    return codes, torch.where(fits, rise, 0.0)


def _loss(errors: torch.Tensor, metric: Metric) -> torch.Tensor:
    return metric.loss(errors.mT[metric.order])


def _price(move: torch.Tensor, errors: torch.Tensor, metric: Metric) -> torch.Tensor:
    """What moving each weight alone adds to the loss, with a floor; all [rows, n] in the file's order."""
    ordered, back = errors.mT[metric.order], metric.order.argsort()
    slope = metric.gradient(metric.start(ordered), ordered, 0, len(ordered))
    rise = move * (move * metric.diagonal[back] + 2 * slope[back].mT)
    return rise.clamp_(min=0).add_(_FLOOR * (total(errors.square()) / errors.numel()))


def _cheapest(gain: torch.Tensor, rate: torch.Tensor, left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best flip of every row, the best rows first, as many as do not overshoot: columns and bool, both [rows, 1].

    `gain` [rows, n] is what a flip takes off the error, `rate` its price for that, `left` what is left of the error.
    """
    lowest, column = rate.min(1, keepdim=True)
    order = lowest.argsort(dim=0, stable=True)
    best = gain.gather(1, column)
    fits = (best.gather(0, order).cumsum(0) <= left) & lowest.gather(0, order).isfinite()
    return column, torch.empty_like(fits).scatter_(0, order, fits)


def _closest(gain: torch.Tensor, rate: torch.Tensor, left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The one flip that comes closest to what is left, if it helps at all; as `_cheapest`."""
    misses, column = torch.where(rate < torch.inf, (gain - left).abs(), torch.inf).min(1, keepdim=True)
    at = misses.argmin(0, keepdim=True)
    return column, torch.zeros_like(misses, dtype=torch.bool).scatter_(0, at, misses.gather(0, at) < left)
