"""What a calibration file keeps of a second moment, and how it is made again.

Inputs up to the width limit: the Cholesky factor of their covariance, 8 bits. Wider inputs: the leading columns of a
factor of it, 6 bits, and the diagonal of what they leave. Gradients: Cholesky factors by runs, 6 bits. Means, pivots
and diagonals are float32.
"""

from collections.abc import Iterator, Mapping

import torch

from ..gradients import GradientsOnDemand, GradientStats
from ..inputs import Gram, InputsOnDemand, InputStats, Moment, summary_of
from .codes import COARSE, DTYPES, FINE, Codes, codes_shape, decode, encode
from .factors import Triangle, pack_triangle, triangle, unpack_triangle, without

#: dtype codes and shapes of a group's tensors by part, in the order of the file.
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
#: The tensors of a group by part.
Parts = Mapping[str, torch.Tensor]
_CPU = torch.device("cpu")


def rank_of(stats: InputStats) -> int:
    """Columns that a file keeps of a summary beside the mean, 0 where the whole matrix is kept."""
    return max(1, stats.form["values"][0] - 1) if "values" in stats.form else 0


def input_shapes(width: int, rank: int) -> Shapes:
    """Of inputs of so many values; `rank` of a summary, 0 where the whole matrix is kept."""
    if rank:
        return {"mean": ("F32", (width,)), "rest": ("F32", (width,)), **_coded("", width * rank, COARSE)}
    return {"mean": ("F32", (width,)), "pivots": ("F32", (width,)), **_coded("", triangle(width), FINE)}


def output_shapes(rows: int, runs: int) -> Shapes:
    """Of the gradients at `rows` outputs in so many runs."""
    size = -(-rows // runs)
    return {"output_pivots": ("F32", (runs, size)), **_coded("output_", runs * triangle(size), COARSE)}


def _coded(prefix: str, count: int, bits: int) -> Shapes:
    shape = codes_shape(count, bits)
    return {f"{prefix}codes": (DTYPES[bits], shape), f"{prefix}scales": ("BF16", shape[:1])}


def pack_inputs(stats: InputStats, device: torch.device = _CPU) -> Iterator[torch.Tensor]:
    """The tensors of `input_shapes`, in that order, computed on `device`; those of another file as they are."""
    if isinstance(stats, InputsOnDemand) and stats.packed is not None:
        yield from stats.packed()
        return
    yield stats.mean
    moment, mean = stats.moment_on(device), stats.mean.to(device)
    if isinstance(moment, Gram):
        covariance = moment.gram.clone().addr_(mean, mean, alpha=-1)
        pivots, below = pack_triangle(covariance, FINE)
        yield from (pivots, *below)
        return
    rank = rank_of(stats)
    # Where the mean was not one of the columns, the least of them makes room for it.
    factor = without(moment.factor(), mean)[:, :rank]
    factor = torch.nn.functional.pad(factor, (0, rank - factor.shape[1]))
    codes = encode(factor, COARSE)
    kept = decode(codes, factor.numel()).view(factor.shape)
    yield (moment.diagonal() - mean.square() - kept.square().sum(1)).clamp(min=0)
    yield from codes


def unpack_inputs(parts: Parts, rank: int) -> Moment:
    """The moment of a group's tensors, on their device."""
    mean, codes = parts["mean"], Codes(parts["codes"], parts["scales"])
    if rank:
        factor = decode(codes, len(mean) * rank).view(len(mean), rank)
        return summary_of(factor, parts["rest"], mean)
    return Gram(unpack_triangle(Triangle(parts["pivots"], codes)).addr_(mean, mean))


def pack_outputs(stats: GradientStats, device: torch.device = _CPU) -> Iterator[torch.Tensor]:
    """The tensors of `output_shapes`, in that order, computed on `device`; those of another file as they are."""
    if isinstance(stats, GradientsOnDemand) and stats.packed is not None:
        yield from stats.packed()
        return
    pivots, below = pack_triangle(stats.second_moment(device), COARSE)
    yield from (pivots, *below)


def unpack_outputs(parts: Parts) -> torch.Tensor:
    """S [runs, m, m] of a layer's tensors, on their device."""
    return unpack_triangle(Triangle(parts["output_pivots"], Codes(parts["output_codes"], parts["output_scales"])))
