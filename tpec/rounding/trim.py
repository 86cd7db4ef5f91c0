"""Drive the published TPEC objective u_1^T (Q - W) v_1 to zero by moving a few weights to their other neighbour.

The weights that pay least on the layer's metric for what they contribute go first, few in a row so that no row's own
error along v_1 grows much; one last flip meets what is left.
"""

import math

import torch

from .grid import encode, neighbour
from .metric import Metric
from .principal import Components, row_chunks
from .reproducible import total

#: Weights considered: where the rows with large u_1 meet the columns with large v_1, in the layer's own proportions.
_CANDIDATES = 1 << 21
_PASSES = 3
#: A flip costs at least this share of the mean loss of a weight: free flips that achieve little are not worth making.
_FLOOR = 0.1


def principal_error(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, components: Components,
                    chunk: int) -> torch.Tensor:
    """u_1^T (s Q - W) v_1, signed, in the components' unit, float32 0-d; W [rows, n] is read `chunk` weights at a time.
    """
    v, u = components.first_right, components.first_left
    parts = [u[a:b] @ (codes[a:b].float().sub_(weight[a:b].float() / scale) @ v)
             for a, b in row_chunks(weight.shape, chunk)]
    return torch.stack(parts).sum() * (scale / components.unit)


def trim_principal(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, components: Components,
                   metric: Metric, error: torch.Tensor, room: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes float8_e4m3fn [rows, n], changed in place, with the objective near zero; few rows and columns change.

    `error` is the codes' `principal_error`. Also returns what that adds to the layer's loss, 0-d in units of scale^2;
    where it were more than `room` (tiny layers) nothing is changed.
    """
    rows, columns = (_largest(vector, weight.numel()) for vector in (components.first_left, components.first_right))
    columns, pieces = _in_pieces(columns, len(columns) // len(rows))
    values = codes.view(torch.uint8)[rows].view(codes.dtype).float()
    # Indexing copies: the candidates' values stay when the buffer of all values becomes that of all errors.
    before = values[:, columns]
    errors = values.sub_(weight[rows].float() / scale).mT[metric.order]
    del values
    # Where the columns are in the metric's order.
    at = metric.order.argsort()[columns]
    slope = metric.gradient(errors)[at].mT
    pull = torch.outer(components.first_left[rows], components.first_right[columns]) * (scale / components.unit)
    move = neighbour(before, pull * error < 0).sub_(before)
    gain = (pull * move).abs_()
    price = (move * (move * metric.diagonal[at] + 2 * slope)).clamp_(min=0)
    price += _FLOOR * (total(errors.square()) / errors.numel())
    rate = torch.where(gain > 0, price / gain, torch.inf)
    lines = len(rows) * pieces
    change = move * _flips(gain.view(lines, -1), rate.view(lines, -1), error).view_as(move)
    moved = torch.zeros_like(errors).index_copy_(0, at, change.mT)
    rise = 2 * total(change * slope) + metric.loss(moved)
    fits = rise <= room
    codes.view(torch.uint8)[rows[:, None], columns] = encode(before + change * fits).view(torch.uint8)
    return codes, rise * fits


def _largest(vector: torch.Tensor, weights: int) -> torch.Tensor:
    """Indices of the largest magnitudes, as many as leave _CANDIDATES of a layer of so many weights."""
    share = min(1.0, math.sqrt(_CANDIDATES / weights))
    return vector.abs().topk(max(1, int(len(vector) * share))).indices


def _in_pieces(columns: torch.Tensor, pieces: int) -> tuple[torch.Tensor, int]:
    """The columns [m], but for a rest, so that each of `pieces` equal parts of a row holds larger and smaller ones."""
    pieces = max(1, pieces)
    return columns[: len(columns) // pieces * pieces].view(-1, pieces).mT.flatten(), pieces


def _flips(gain: torch.Tensor, rate: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Which weights move, 1 or 0 [pieces, columns]; `rate` is overwritten.

    `gain` is what a move takes off the error, `rate` its price for that. No pass overshoots, so the direction stays; a
    weight moves once, and its move hardly changes what the others cost.
    """
    flips, left = torch.zeros_like(gain), error.abs()
    for step in range(_PASSES):
        column, flip = _cheapest(gain, rate, left) if step < _PASSES - 1 else _closest(gain, rate, left)
        left = left - total(gain.gather(1, column) * flip)
        flips.scatter_add_(1, column, flip.float())
        rate.masked_fill_(flips > 0, torch.inf)
    return flips


def _cheapest(gain: torch.Tensor, rate: torch.Tensor, left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The best flip of every piece, the best first, as many as do not overshoot what is `left` of the error.

    Columns and bool, both [pieces, 1].
    """
    lowest, column = rate.min(1, keepdim=True)
    order = lowest.argsort(dim=0, stable=True)
    best = gain.gather(1, column)
    fits = (best.gather(0, order).cumsum(0) <= left) & (lowest.gather(0, order) < torch.inf)
    return column, torch.empty_like(fits).scatter_(0, order, fits)


def _closest(gain: torch.Tensor, rate: torch.Tensor, left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The one flip that comes closest to what is left, if it helps at all; as `_cheapest`."""
    misses, column = torch.where(rate < torch.inf, (gain - left).abs(), torch.inf).min(1, keepdim=True)
    at = misses.argmin(0, keepdim=True)
    return column, torch.zeros_like(misses, dtype=torch.bool).scatter_(0, at, misses.gather(0, at) < left)
