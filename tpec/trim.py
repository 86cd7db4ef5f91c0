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
    relative = scale / components.unit
    parts = [u[a:b] @ ((codes[a:b].float() * relative - weight[a:b].float() / components.unit) @ v)
             for a, b in row_chunks(*weight.shape, items)]
    return torch.stack(parts).sum()


def trim_principal(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, components: Components,
                   metric: Metric, room: torch.Tensor, items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes float8_e4m3fn [rows, n], changed in place, with the objective near zero; only rows with a large u_1 change.

    Also returns what that adds to the layer's loss, 0-d in units of scale^2; where it were more than `room` (tiny
    layers) nothing is changed.
    """
    n = weight.shape[1]
    count = max(1, min(weight.shape[0], _CANDIDATE_ITEMS // n))
    rows = components.first_left.abs().topk(count).indices
    target = weight[rows].float() / scale
    before = values = codes.view(torch.uint8)[rows].view(codes.dtype).float()
    pull = components.first_left[rows][:, None] * components.first_right * (scale / components.unit)
    error = principal_error(weight, codes, scale, components, items)
    back = metric.order.argsort()
    for step in range(_PASSES):
        move = neighbour(values, pull * error < 0) - values
        gain = (pull * move).abs()
        if step < _PASSES - 1:
            flip = _cheapest(move, gain, _price(move, values - target, metric, back), error)
        else:
            flip = _closest(gain, error)
        values = torch.where(flip, values + move, values)
        error = error.sign() * (error.abs() - total(gain * flip))
    rise = _loss(values - target, metric) - _loss(before - target, metric)
    fits = rise <= room
    codes.view(torch.uint8)[rows] = encode(torch.where(fits, values, before)).view(torch.uint8)
    return codes, torch.where(fits, rise, 0.0)


def _loss(errors: torch.Tensor, metric: Metric) -> torch.Tensor:
    return metric.loss(errors.mT[metric.order])


def _price(move: torch.Tensor, errors: torch.Tensor, metric: Metric, back: torch.Tensor) -> torch.Tensor:
    """What moving each weight alone adds to the loss, with a floor; all [rows, n] in the file's order."""
    ordered = errors.mT[metric.order]
    slope = metric.gradient(metric.start(ordered), ordered, 0, len(ordered))
    rise = move * (move * metric.diagonal[back] + 2 * slope[back].mT)
    return rise.clamp(min=0) + _FLOOR * (total(errors.square()) / errors.numel())


def _cheapest(move: torch.Tensor, gain: torch.Tensor, price: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """The best flip of every row, the best rows first, as many as do not overshoot; bool [rows, n]."""
    rate, column = torch.where(gain > 0, price / gain, torch.inf).min(1)
    order = rate.argsort(stable=True)
    best = gain.gather(1, column[:, None])[:, 0]
    fits = torch.zeros_like(rate, dtype=torch.bool)
    fits[order] = best[order].cumsum(0) <= error.abs()
    fits &= rate.isfinite()
    return torch.zeros_like(gain, dtype=torch.bool).scatter_(1, column[:, None], fits[:, None])


def _closest(gain: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """The one flip that comes closest to what is left, if it helps at all; bool [rows, n]."""
    at = torch.where(gain > 0, (gain - error.abs()).abs(), torch.inf).argmin()
    flat = gain.flatten()
    flip = torch.zeros_like(flat, dtype=torch.bool)
    flip[at] = (flat[at] - error.abs()).abs() < error.abs()
    return flip.view_as(gain)
