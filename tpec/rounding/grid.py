"""The FP8 grid e4m3fn (OCP 8-bit floating point, revision 1.0): largest value 448, no infinities, smallest step 2^-9.

Values are carried as float32 "in units of the scale": weight = scale * grid value.
"""

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
#: Exponent of the smallest normal number; below it the spacing stays 2^(MIN_EXPONENT - MANTISSA_BITS).
MIN_EXPONENT = -6
MANTISSA_BITS = 3

# Adding and subtracting 1.5 * 2^23 * step rounds a float32 to a multiple of step, ties to even.
_ROUNDER = 1.5 * 2.0**23
_EXPONENT_MASK = 0x7F800000
_MIN_EXPONENT_BITS = (MIN_EXPONENT + 127) << 23
_MANTISSA_SHIFT = MANTISSA_BITS << 23


def spacing(x: torch.Tensor) -> torch.Tensor:
    """Distance between grid points in the binade of |x| (float32, any shape): a power of two, at least 2^-9."""
    bits = x.contiguous().view(torch.int32) & _EXPONENT_MASK
    return (bits.clamp_(min=_MIN_EXPONENT_BITS) - _MANTISSA_SHIFT).view(torch.float32)


def round_to_grid(x: torch.Tensor) -> torch.Tensor:
    """Nearest grid value, ties to even, saturating at +-448 (float32): a saturating cast to e4m3fn and back.

    Zero is always +0, whatever rounds to it.
    """
    x = x.clamp(-FP8_MAX, FP8_MAX)
    if x.is_cuda:
        # The casts move a third of the bytes; on a CPU they are slow.
        return x.to(FP8).float().add_(0.0)
    magic = spacing(x).mul_(_ROUNDER)
    return x.add_(magic).sub_(magic)


def encode(values: torch.Tensor) -> torch.Tensor:
    """Grid values (float32) to float8_e4m3fn, exactly; values beyond the grid saturate."""
    return values.clamp(-FP8_MAX, FP8_MAX).to(FP8)


def decode(codes: torch.Tensor, scale: float | torch.Tensor = 1.0) -> torch.Tensor:
    """float8_e4m3fn codes to float32 weights: code * scale, as ComfyUI dequantizes."""
    return codes.to(torch.float32) * scale


def neighbour(values: torch.Tensor, upwards: torch.Tensor) -> torch.Tensor:
    """The next grid value above (where `upwards`) or below each grid value; +-448 stays at the end of the grid."""
    step = spacing(values)
    # Leaving a power of two towards zero enters the binade below, whose spacing is half.
    towards_zero = upwards == (values < 0)
    binade_edge = values.abs() == step * 2**MANTISSA_BITS
    step = torch.where(towards_zero & binade_edge & (step > 2.0 ** (MIN_EXPONENT - MANTISSA_BITS)), step / 2, step)
    return torch.where(upwards, values + step, values - step).clamp_(-FP8_MAX, FP8_MAX)
