"""Quantize one Linear weight: scale, rounding, and what it cost."""

from dataclasses import dataclass

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
CHUNK_ITEMS = {"cuda": 1 << 26}
CHUNK_ITEMS_ELSEWHERE = 1 << 23

FACTS = ("weight_norm2", "error2", "nearest_error2", "loss", "nearest_loss", "saturated",
         "principal_before", "principal_after", "sweeps", "vanished")


@dataclass(frozen=True)
class Quantized:
    """codes [out, in] float8_e4m3fn, scale float32 0-d, facts float32 [len(FACTS)], all on the weight's device."""

    codes: torch.Tensor
    scale: torch.Tensor
    facts: torch.Tensor


def chunk_items(device: torch.device) -> int:
    """How many weights are rounded at a time on a device."""
    return CHUNK_ITEMS.get(device.type, CHUNK_ITEMS_ELSEWHERE)


def check_finite(name: str, weight: torch.Tensor) -> torch.Tensor:
    """The largest magnitude; raises TpecError naming the tensor when a value is NaN or infinite in float32."""
    largest = absmax(weight)
    if not torch.isfinite(largest):
        raise TpecError(f"Tensor '{name}' holds NaN or infinite values: the model is broken there, use an intact file.")
    return largest


def quantize_nearest(weight: torch.Tensor, largest: torch.Tensor, items: int, tick: Tick = no_tick) -> Quantized:
    """Round W [out, in] of any float dtype to nearest with the absmax scale, `items` weights at a time."""
    scale = absmax_scale(largest)
    codes = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    facts = torch.zeros(len(FACTS), device=weight.device)
    for begin, end in row_chunks(*weight.shape, items):
        scaled = weight[begin:end].float() / scale
        values = nearest(scaled)
        codes[begin:end] = encode(values)
        error2 = total((values - scaled).square())
        facts[:5] += torch.stack([total(scaled.square()), error2, error2, error2, error2])
        tick()
    return Quantized(codes, scale, facts)


def quantize_tpec(weight: torch.Tensor, largest: torch.Tensor, metric: Metric, sweeps: int,
                  components: Components | None, items: int, tick: Tick = no_tick,
                  coupling: RowCoupling | None = None) -> Quantized:
    """Error feedback and at most `sweeps` of coordinate descent on `metric`; never worse on it than round to nearest.

    W [out, in] of any float dtype is rounded `items` weights at a time. With `components` the published objective of
    their first pair is driven to zero at the end; with `coupling` rows are rounded together and the loss counts so.
    """
    device, (rows, columns) = weight.device, weight.shape
    base = absmax_scale(largest)
    order = metric.order
    sample = weight[sample_rows(rows, columns, device)].mT[order].float()
    scale = search_scale(sample, metric.diagonal, base)
    del sample
    codes = torch.empty(weight.shape, dtype=FP8, device=device)
    fallback = torch.empty(weight.shape, dtype=FP8, device=device)
    facts, made = torch.zeros(len(FACTS), device=device), 0
    back = order.argsort()
    for begin, end in row_chunks(rows, columns, items, coupling.run if coupling else 1):
        part = _round_chunk(weight[begin:end], metric, scale, base, sweeps, tick, coupling, components, begin)
        codes[begin:end] = _in_file_order(part.values, back)
        fallback[begin:end] = _in_file_order(part.nearest, back)
        facts[:8] += part.facts
        made = max(made, part.sweeps)
        del part
    better = facts[3] < facts[4]
    codes = torch.where(better, codes.view(torch.uint8), fallback.view(torch.uint8)).view(FP8)
    scale = torch.where(better, scale, base)
    facts = torch.where(better, facts, _as_nearest(facts))
    facts[8].fill_(made)
    if components is not None:
        unit = (scale / base).square()
        codes, rise = trim_principal(weight, codes, scale, components, metric, facts[7], (facts[4] - facts[3]) / unit)
        facts[3] += rise * unit
        facts[7] = principal_error(weight, codes, scale, components, items)
        facts[6:8] = facts[6:8].abs() / components.first_value
    return Quantized(codes, scale, facts)


@dataclass(frozen=True)
class _Chunk:
    """Codes [n, rows] in the metric's order, and the first facts; the principal errors among them are signed."""

    values: torch.Tensor
    nearest: torch.Tensor
    facts: torch.Tensor
    sweeps: int


def _round_chunk(weight: torch.Tensor, metric: Metric, scale: torch.Tensor, base: torch.Tensor, sweeps: int, tick: Tick,
                 coupling: RowCoupling | None, components: Components | None, begin: int) -> _Chunk:
    """Round rows of a weight, those from `begin` on; facts are in units of `base` so that both scales compare."""
    def measure(errors: torch.Tensor, unit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        loss = metric.loss(errors, coupling.weigh(errors, begin) if coupling else None)
        relative = (unit / base).square()
        along = unit * _along(errors, components, metric.order, begin) if components else torch.zeros_like(loss)
        return loss * relative, total(errors.square()) * relative, along

    plain = weight.mT[metric.order].float()
    scaled = plain / base
    norm2 = total(scaled.square())
    near = nearest(scaled)
    near_codes = encode(near)
    near_loss, near2, near_along = measure(near.sub_(scaled), base)
    del near
    scaled = plain.div_(scale)
    saturated = (scaled.abs() > FP8_MAX).sum()
    if coupling is not None:
        values, errors, made = coupling.round(scaled, begin, metric, sweeps, tick)
    else:
        values, errors = feedback(scaled, metric, tick)
        made = improve(values, errors, metric, sweeps, tick)
    loss, error2, along = measure(errors, scale)
    facts = torch.stack([norm2, error2, near2, loss, near_loss, saturated.float(), near_along, along])
    return _Chunk(encode(values), near_codes, facts, made)


def _as_nearest(facts: torch.Tensor) -> torch.Tensor:
    facts = facts.clone()
    facts[1], facts[3], facts[7] = facts[2], facts[4], facts[6]
    facts[5].zero_()
    return facts


def _along(errors: torch.Tensor, components: Components, order: torch.Tensor, begin: int) -> torch.Tensor:
    """u_1^T E v_1 of errors [n, rows], in the components' unit where the errors are in units of 1."""
    rows = components.first_left[begin: begin + errors.shape[1]]
    return (components.first_right[order] @ errors) @ rows / components.unit


def count_vanished(weight: torch.Tensor, quantized: Quantized, items: int) -> None:
    """Note in the facts how many weights that are not zero became zero, `items` of them at a time.

    A few weights that are far too large make the scale so coarse that the others vanish, and no norm of the whole shows
    it.
    """
    for begin, end in row_chunks(*weight.shape, items):
        lost = (quantized.codes[begin:end].view(torch.uint8) & 0x7F).eq_(0).logical_and_(weight[begin:end])
        quantized.facts[FACTS.index("vanished")] += lost.sum()


def _in_file_order(codes: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    return codes.view(torch.uint8)[back].mT.view(FP8)


def corrected_bias(weight: torch.Tensor, quantized: Quantized, bias: torch.Tensor, mean: torch.Tensor,
                   items: int) -> torch.Tensor:
    """The bias [out] less (Q - W) E[x], so that the layer's mean output stays; `mean` is E[x] [in], float32."""
    shift = [(decode(quantized.codes[a:b], quantized.scale) - weight[a:b].float()) @ mean
             for a, b in row_chunks(*weight.shape, items)]
    return (bias.float() - torch.cat(shift)).to(bias.dtype)
