"""The per-tensor scale: weight = scale * FP8 value, one float32 per layer."""

import torch

from .grid import FP8_MAX, round_to_grid

#: The grid's last binade: with absmax / one of these as scale the largest weight lies exactly on the grid, and nothing
#: saturates. Beyond an octave the grid repeats itself.
TOPS = (448.0, 416.0, 384.0, 352.0, 320.0, 288.0, 256.0, 240.0)
#: Weights looked at per candidate.
SAMPLE_WEIGHTS = 1 << 20


def absmax(weight: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of a weight of any float dtype, float32 0-d; NaN or infinite when the weight is not finite."""
    low, high = torch.aminmax(weight)
    return torch.maximum(low.float().abs(), high.float().abs())


def absmax_scale(largest: torch.Tensor) -> torch.Tensor:
    """The scale that maps the largest magnitude to 448; 1 for an all-zero weight, never subnormal."""
    smallest = torch.finfo(torch.float32).tiny
    return torch.where(largest > 0, (largest / FP8_MAX).clamp(min=smallest), torch.ones_like(largest))


def sample_rows(rows: int, columns: int, device: torch.device | None = None) -> torch.Tensor:
    """Evenly spread row indices [m] whose weights number about SAMPLE_WEIGHTS."""
    count = max(1, min(rows, SAMPLE_WEIGHTS // max(columns, 1)))
    return torch.arange(count, device=device) * rows // count


def search_scale(sample: torch.Tensor, importance: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """The scale, float32 0-d, of least squared rounding error of some rows of a weight.

    `sample` [n, m] holds them transposed, float32: n inputs by m rows; errors of input j count `importance` [n] j
    times. `base` is the absmax scale, 0-d; candidates are base * 448 / TOPS.
    """
    scales = torch.stack([base * (FP8_MAX / top) for top in TOPS])
    scaled = sample / scales[:, None, None]
    error2 = round_to_grid(scaled).sub_(scaled).square_().sum(2)
    losses = (error2 @ importance) * (scales / base).square()
    return scales.gather(0, losses.argmin(0, keepdim=True))[0]
