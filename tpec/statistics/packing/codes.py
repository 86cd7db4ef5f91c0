"""Numbers in few bits: blocks of 64 neighbours share a scale, and each is a whole number of steps of it.

Of normal values 8 bits leave an error of about 0.8 % of their size, 6 bits one of 3 %.
"""

from typing import NamedTuple

import torch

#: Values that share a scale.
BLOCK = 64
#: Bits of a code.
FINE, COARSE = 8, 6
#: The codes' safetensors dtype by bits.
DTYPES = {FINE: "I8", COARSE: "U8"}


class Codes(NamedTuple):
    """codes [blocks, 64] int8, or [blocks, 48] uint8 (four codes of 6 bits in three bytes); scales [blocks] bfloat16.
    """

    codes: torch.Tensor
    scales: torch.Tensor


def codes_shape(count: int, bits: int) -> tuple[int, int]:
    """The shape of the codes of `count` values; there is one scale for each of the first size."""
    return -(-count // BLOCK), BLOCK * bits // 8


def encode(values: torch.Tensor, bits: int) -> Codes:
    """Codes of values [...] float32, counted row by row; the last block is filled up with zeros."""
    flat = values.reshape(-1)
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    largest = 2 ** (bits - 1) - 1
    scales = (blocks.abs().amax(1) / largest).bfloat16()
    # A block of zeros, or of what bfloat16 has no scale for, is zeros.
    steps = blocks / scales.float()[:, None]
    steps = torch.nan_to_num(steps, nan=0.0).round_().clamp_(-largest, largest)
    codes = steps.to(torch.int8)
    return Codes(codes if bits == FINE else _packed(codes), scales)


def decode(codes: Codes, count: int) -> torch.Tensor:
    """The first `count` values, flat, float32, on the codes' device."""
    steps = codes.codes if codes.codes.dtype == torch.int8 else _unpacked(codes.codes)
    return (steps.float() * codes.scales.float()[:, None]).view(-1)[:count]


def _packed(steps: torch.Tensor) -> torch.Tensor:
    """Four codes of -32 .. 31 in three bytes: each of the first three holds one and two bits of the fourth."""
    four = (steps.to(torch.int16) + 32).view(-1, BLOCK // 4, 4)
    shifts = torch.tensor([0, 2, 4], dtype=torch.int16, device=steps.device)
    parts = (four[..., 3:] >> shifts) & 3
    return (four[..., :3] | parts << 6).to(torch.uint8).reshape(-1, BLOCK * COARSE // 8)


def _unpacked(codes: torch.Tensor) -> torch.Tensor:
    three = codes.view(-1, BLOCK // 4, 3).to(torch.int16)
    shifts = torch.tensor([0, 2, 4], dtype=torch.int16, device=codes.device)
    last = ((three >> 6) << shifts).sum(-1, keepdim=True, dtype=torch.int16)
    return (torch.cat([three & 63, last], -1) - 32).view(-1, BLOCK)
