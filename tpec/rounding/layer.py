"""Quantize one Linear weight: scale, rounding, and what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..errors import TpecError
from .feedback import Tick, feedback, improve, nearest, no_tick
from .grid import FP8, FP8_MAX, decode, encode
from .metric import Metric
from .principal import Components, row_chunks
from .reproducible import total
from .rows import RowCoupling
from .scale import absmax, absmax_scale, sample_rows, search_scale
from .trim import principal_error, trim_principal

#: Weights held in float32 at a time, by device type: few launches on a GPU, little memory on a CPU.
_CHUNK = {"cuda": 1 << 26}
_CHUNK_ELSEWHERE = 1 << 23
#: Fewer zeros than this share of a layer's codes are none to speak of: half of what the report names.
_FEW_ZEROS = 0.01


class Facts(NamedTuple):
    """What rounding a weight cost; float32 0-d tensors on its device, or on the host once they came over.

    weight_norm2, error2 and nearest_error2 are |W|^2, |Q - W|^2 and the same of round to nearest; loss and nearest_loss
    are tr(E M E^T) of both: all in units of the square of the absmax scale. saturated counts weights beyond +-448 of
    the scale, sweeps those of coordinate descent that were made. principal_before and principal_after are
    u_1^T E v_1 of round to nearest and of the result: of a whole layer |.| / sigma_1, of a chunk of rows signed and in
    the components' unit; zero without components, whose few moves error2 and saturated do not count.
    vanished counts weights that became zero, once `with_vanished` counted them.
    """

    weight_norm2: torch.Tensor
    error2: torch.Tensor
    nearest_error2: torch.Tensor
    loss: torch.Tensor
    nearest_loss: torch.Tensor
    saturated: torch.Tensor
    principal_before: torch.Tensor
    principal_after: torch.Tensor
    sweeps: torch.Tensor
    vanished: torch.Tensor

    def stack(self) -> torch.Tensor:
        """All in one tensor [len(Facts._fields)], for one way to the host."""
        return torch.stack(tuple(self))

    @classmethod
    def of(cls, stacked: torch.Tensor) -> "Facts":
        """What `stack` was made of, as views."""
        return cls(*stacked.unbind())


@dataclass(frozen=True)
class Quantized:
    """codes [out, in] float8_e4m3fn, scale float32 0-d, and what that cost; all on the weight's device."""

    codes: torch.Tensor
    scale: torch.Tensor
    facts: Facts


@dataclass(frozen=True)
class Rounding:
    """How a weight is rounded: by error feedback on `metric`, then at most `sweeps` of coordinate descent.

    With `components` (of the weight that the metric was made for) the published objective of their first pair is driven
    to zero at the end. With `coupling` rows are rounded together, and the loss counts so.
    """

    metric: Metric
    sweeps: int
    components: Components | None = None
    coupling: RowCoupling | None = None


def chunk_size(device: torch.device) -> int:
    """How many weights are rounded at a time on a device."""
    return _CHUNK.get(device.type, _CHUNK_ELSEWHERE)


def check_finite(name: str, weight: torch.Tensor) -> torch.Tensor:
    """The largest magnitude; raises TpecError naming the tensor when a value is NaN or infinite in float32."""
    largest = absmax(weight)
    if not torch.isfinite(largest):
        raise TpecError(f"Tensor '{name}' holds NaN or infinite values: the model is broken there, use an intact file.")
    return largest


def quantize_nearest(weight: torch.Tensor, largest: torch.Tensor, chunk: int, tick: Tick = no_tick) -> Quantized:
    """Round W [out, in] of any float dtype to nearest with the absmax scale, `chunk` weights at a time.

    `largest` is max |W|, float32 0-d.
    """
    scale = absmax_scale(largest)
    codes = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    zero = torch.zeros((), device=weight.device)
    norm2, error2 = zero, zero
    for begin, end in row_chunks(weight.shape, chunk):
        scaled = weight[begin:end].float() / scale
        values = nearest(scaled)
        codes[begin:end] = encode(values)
        norm2, error2 = norm2 + total(scaled.square()), error2 + total((values - scaled).square())
        tick()
    return Quantized(codes, scale, Facts(norm2, error2, error2, error2, error2, zero, zero, zero, zero, zero))


def quantize_tpec(weight: torch.Tensor, largest: torch.Tensor, rounding: Rounding, chunk: int,
                  tick: Tick = no_tick) -> Quantized:
    """Round W [out, in] of any float dtype as `rounding` says; never worse on its metric than round to nearest.

    `largest` is max |W|, float32 0-d. About `chunk` weights are held in float32 at a time. `tick` may raise to stop.
    """
    base = absmax_scale(largest)
    scale = _best_scale(weight, rounding.metric, base)
    codes, near_codes, facts = _round_rows(weight, rounding, scale, base, chunk, tick)
    better = facts.loss < facts.nearest_loss
    codes = torch.where(better, codes.view(torch.uint8), near_codes.view(torch.uint8)).view(FP8)
    scale = torch.where(better, scale, base)
    facts = facts._replace(error2=torch.where(better, facts.error2, facts.nearest_error2),
                           loss=torch.where(better, facts.loss, facts.nearest_loss),
                           saturated=facts.saturated * better,
                           principal_after=torch.where(better, facts.principal_after, facts.principal_before))
    return _trimmed(weight, Quantized(codes, scale, facts), base, rounding, chunk)


def _best_scale(weight: torch.Tensor, metric: Metric, base: torch.Tensor) -> torch.Tensor:
    rows = sample_rows(weight.shape[0], weight.shape[1], weight.device)
    return search_scale(weight[rows].mT[metric.order].float(), metric.diagonal, base)


def _trimmed(weight: torch.Tensor, found: Quantized, base: torch.Tensor, rounding: Rounding, chunk: int) -> Quantized:
    """With the published objective driven to zero, for no more loss than was won against round to nearest.

    The codes of `found` are changed in place. Without components there is no such objective.
    """
    components, scale, facts = rounding.components, found.scale, found.facts
    if components is None:
        return found
    unit = (scale / base).square()
    room = (facts.nearest_loss - facts.loss) / unit
    codes, rise = trim_principal(weight, found.codes, scale, components, rounding.metric, facts.principal_after, room)
    after = principal_error(weight, codes, scale, components, chunk)
    sigma = components.first_value
    return Quantized(codes, scale, facts._replace(loss=facts.loss + rise * unit,
                                                  principal_before=facts.principal_before.abs() / sigma,
                                                  principal_after=after.abs() / sigma))


def _round_rows(weight: torch.Tensor, rounding: Rounding, scale: torch.Tensor, base: torch.Tensor, chunk: int,
                tick: Tick) -> tuple[torch.Tensor, torch.Tensor, Facts]:
    """Codes [out, in] with `scale`, those of round to nearest with `base`, and the facts of all rows together."""
    codes = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    near_codes = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    back, parts = rounding.metric.order.argsort(), []
    for begin, end in row_chunks(weight.shape, chunk, rounding.coupling.run if rounding.coupling else 1):
        part = _round_chunk(weight[begin:end], rounding, scale, base, begin, tick)
        codes[begin:end] = _in_file_order(part.codes, back)
        near_codes[begin:end] = _in_file_order(part.nearest, back)
        parts.append(part.facts)
        del part
    return codes, near_codes, _joined(parts)


def _joined(parts: Sequence[Facts]) -> Facts:
    """The facts of all chunks of rows: sums, and the most sweeps that any of them took."""
    if len(parts) == 1:
        return parts[0]
    summed = parts[0].stack()
    for part in parts[1:]:
        summed += part.stack()
    return Facts.of(summed)._replace(sweeps=torch.stack([part.sweeps for part in parts]).max())


class _Chunk(NamedTuple):
    """Rows that are rounded: codes [n, rows] in the metric's order, those of round to nearest, facts of a chunk."""

    codes: torch.Tensor
    nearest: torch.Tensor
    facts: Facts


def _round_chunk(weight: torch.Tensor, rounding: Rounding, scale: torch.Tensor, base: torch.Tensor, begin: int,
                 tick: Tick) -> _Chunk:
    """Round rows of a weight, those from `begin` on; the facts are in units of `base` so that both scales compare."""
    metric, sweeps = rounding.metric, rounding.sweeps
    plain = weight.mT[metric.order].float()
    scaled = plain / base
    norm2 = total(scaled.square())
    values = nearest(scaled)
    near_codes = encode(values)
    # Here and below buffers change their meaning in place: a chunk is held in float32 as few times as may be.
    near = _cost(values.sub_(scaled), rounding, begin)
    del values
    scaled = plain.div_(scale)
    saturated = (scaled.abs() > FP8_MAX).sum().float()
    if rounding.coupling is not None:
        values, errors, done = rounding.coupling.round(scaled, begin, metric, sweeps, tick)
    else:
        values, errors = feedback(scaled, metric, tick)
        done = improve(values, errors, metric, sweeps, tick)
    cost, unit = _cost(errors, rounding, begin), (scale / base).square()
    facts = Facts(norm2, cost.error2 * unit, near.error2, cost.loss * unit, near.loss, saturated, base * near.along,
                  scale * cost.along, torch.full_like(norm2, done), torch.zeros_like(norm2))
    return _Chunk(encode(values), near_codes, facts)


class _Cost(NamedTuple):
    """Of errors in units of a scale: tr(E M E^T), |E|^2 in units of its square, u_1^T E v_1 in units of it."""

    loss: torch.Tensor
    error2: torch.Tensor
    along: torch.Tensor


def _cost(errors: torch.Tensor, rounding: Rounding, begin: int) -> _Cost:
    """What errors [n, rows] cost, of the rows from `begin` on."""
    coupling, components = rounding.coupling, rounding.components
    loss = rounding.metric.loss(errors, coupling.weigh(errors, begin) if coupling else None)
    along = _along(errors, components, rounding.metric.order, begin) if components else torch.zeros_like(loss)
    return _Cost(loss, total(errors.square()), along)


def _along(errors: torch.Tensor, components: Components, order: torch.Tensor, begin: int) -> torch.Tensor:
    """u_1^T E v_1 of errors [n, rows], in the components' unit where the errors are in units of 1."""
    rows = components.first_left[begin: begin + errors.shape[1]]
    return (components.first_right[order] @ errors) @ rows / components.unit


def _in_file_order(codes: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    return codes.view(torch.uint8)[back].mT.view(FP8)


def with_vanished(weight: torch.Tensor, found: Quantized) -> Quantized:
    """`found` with the number of weights that became zero though they were not, 0 where hardly any code is zero.

    A few weights that are far too large make the scale so coarse that the others vanish, and no norm of the whole shows
    it. Codes are counted first, which takes a fraction of what counting weights does on a CPU.
    """
    kept = torch.count_nonzero(found.codes.view(torch.uint8))
    if weight.device.type == "cpu" and kept >= (1 - _FEW_ZEROS) * weight.numel():
        return found
    lost = (torch.count_nonzero(weight) - kept).clamp_(min=0).float()
    return Quantized(found.codes, found.scale, found.facts._replace(vanished=lost))


def corrected_bias(weight: torch.Tensor, quantized: Quantized, bias: torch.Tensor, mean: torch.Tensor,
                   chunk: int) -> torch.Tensor:
    """The bias [out] less (s Q - W) E[x], in its dtype, so that the layer's mean output stays.

    `mean` is E[x] [in], float32; W is read `chunk` weights at a time.
    """
    shift = [(decode(quantized.codes[a:b], quantized.scale) - weight[a:b].float()) @ mean
             for a, b in row_chunks(weight.shape, chunk)]
    return (bias.float() - torch.cat(shift)).to(bias.dtype)
