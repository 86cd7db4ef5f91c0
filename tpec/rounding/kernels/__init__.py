"""The sequential inner step: round one block of columns, each aware of the errors of those before it."""

from collections.abc import Callable

import torch

from ..grid import round_to_grid

#: (targets [b, rows], base [b, rows], coupling [b, b], values [b, rows]) -> None
BlockRounder = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


def round_block_torch(targets: torch.Tensor, base: torch.Tensor, coupling: torch.Tensor, values: torch.Tensor) -> None:
    """values_j = grid(targets_j - sum_{i<j} coupling_ij (values_i - base_i)); only coupling above the diagonal counts.

    `targets` is overwritten with values - base. `values` may be `base` itself.
    """
    last = len(targets) - 1
    for j, target in enumerate(targets):
        value = round_to_grid(target)
        torch.sub(value, base[j], out=target)
        values[j] = value
        if j < last:
            targets[j + 1:].addr_(coupling[j, j + 1:], target, alpha=-1)


#: Columns rounded by one call; the rest of the work is matrix products.
BLOCK = 64
#: One Triton launch walks many columns, so that a layer takes few launches.
TRITON_BLOCK = 256


def block_size(device: torch.device) -> int:
    """Columns per call of the device's block rounder; the result does not depend on it but for rounding ties."""
    return BLOCK if block_rounder(device) is round_block_torch else TRITON_BLOCK


def block_rounder(device: torch.device) -> BlockRounder:
    """The fastest implementation for a device; all agree within rounding ties."""
    if device.type == "cuda":
        from .triton_block import available, round_block_triton

        if available():
            return round_block_triton
    return round_block_torch
