"""Quantize one Linear weight: scale, rounding, and what it cost."""

from dataclasses import dataclass

import torch

from .coupling import RowCoupling
from .errors import TpecError
from .grid import FP8, decode, encode
from .metric import Metric
from .principal import Components, row_chunks
from .rounding import Tick, feedback, improve, nearest, no_tick
from .scale import absmax, absmax_scale, sample_rows, search_scale
from .steady import total
from .trim import principal_error, trim_principal

#: Weights held in float32 at a time, by device type: few launches on a GPU, little memory on a CPU.
CHUNK_ITEMS = {"cuda": 1 << 26}
CHUNK_ITEMS_ELSEWHERE = 1 << 23

FACTS = ("weight_norm2", "error2", "nearest_error2", "loss", "nearest_loss", "saturated",
         "principal_before", "principal_after", "sweeps")


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
    """Error feedback and `sweeps` of coordinate descent on `metric`; never worse on it than round to nearest.

    W [out, in] of any float dtype is rounded `items` weights at a time. With `components` the published objective of
    their first pair is driven to zero at the end; with `coupling` rows are rounded together and the loss counts so.
    """
    device, (rows, columns) = weight.device, weight.shape
    base = absmax_scale(largest)
    picked = sample_rows(rows, columns).to(device)
    order = metric.order
    scale = search_scale(weight[picked].float().mT[order], metric.diagonal, base)
    codes = torch.empty(weight.shape, dtype=FP8, device=device)
    fallback = torch.empty(weight.shape, dtype=FP8, device=device)
    facts = torch.zeros(len(FACTS), device=device)
    back = order.argsort()
    for begin, end in row_chunks(rows, columns, items, coupling.run if coupling else 1):
        plain = weight[begin:end].float().mT[order]
        part = _round_chunk(plain, metric, scale, base, sweeps, tick, coupling, begin)
        codes[begin:end] = encode(part.values[back].mT)
        fallback[begin:end] = encode(part.nearest[back].mT)
        facts[:6] += part.facts
        del part
    facts[8] = sweeps
    better = facts[3] < facts[4]
    codes = torch.where(better, codes.view(torch.uint8), fallback.view(torch.uint8)).view(FP8)
    scale = torch.where(better, scale, base)
    facts = torch.where(better, facts, _as_nearest(facts))
    if components is not None:
        sigma = components.first_value
        facts[6] = principal_error(weight, fallback, base, components, items).abs() / sigma
        unit = (scale / base).square()
        codes, rise = trim_principal(weight, codes, scale, components, metric, (facts[4] - facts[3]) / unit, items)
        facts[3] += rise * unit
        facts[7] = principal_error(weight, codes, scale, components, items).abs() / sigma
    return Quantized(codes, scale, facts)


@dataclass(frozen=True)
class _Chunk:
    values: torch.Tensor
    nearest: torch.Tensor
    facts: torch.Tensor


def _round_chunk(plain: torch.Tensor, metric: Metric, scale: torch.Tensor, base: torch.Tensor, sweeps: int,
                 tick: Tick, coupling: RowCoupling | None, begin: int) -> _Chunk:
    """Round [n, rows] weights, rows from `begin` on; facts are in units of `base` so that both scales compare."""
    def cost(errors: torch.Tensor) -> torch.Tensor:
        return metric.loss(errors, coupling.weigh(errors, begin) if coupling else None)

    unit = (scale / base).square()
    scaled = plain / base
    near = nearest(scaled)
    near_errors = near - scaled
    near_loss, near2, norm2 = cost(near_errors), total(near_errors.square()), total(scaled.square())
    del near_errors
    scaled = plain / scale
    saturated = (scaled.abs() > 448.0).sum()
    if coupling is not None:
        values, errors = coupling.round(scaled, begin, metric, sweeps, tick)
    else:
        values, errors = feedback(scaled, metric, tick)
        improve(values, errors, metric, sweeps, tick)
    loss, error2 = cost(errors) * unit, total(errors.square()) * unit
    facts = torch.stack([norm2, error2, near2, loss, near_loss, saturated.float()])
    return _Chunk(values, near, facts)


def _as_nearest(facts: torch.Tensor) -> torch.Tensor:
    facts = facts.clone()
    facts[1], facts[3], facts[5] = facts[2], facts[4], 0.0
    return facts


def corrected_bias(weight: torch.Tensor, quantized: Quantized, bias: torch.Tensor, mean: torch.Tensor,
                   items: int) -> torch.Tensor:
    """The bias [out] less (Q - W) E[x], so that the layer's mean output stays; `mean` is E[x] [in], float32."""
    shift = [(decode(quantized.codes[a:b], quantized.scale) - weight[a:b].float()) @ mean
             for a, b in row_chunks(*weight.shape, items)]
    return (bias.float() - torch.cat(shift)).to(bias.dtype)
