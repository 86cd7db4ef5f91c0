"""The inner step as one Triton kernel: a program owns some rows of the weight and walks a block of columns."""

import functools
import threading
from typing import Any

import torch

#: The first of several threads compiles, the others find the result.
_COMPILING = threading.Lock()
#: Rows per program and columns per sub-block, the fastest of those tried on an H200.
_ROWS = 16
_SUB = 32


@functools.cache
def available() -> bool:
    """Whether Triton is installed and can compile for this machine's device."""
    if _kernel() is None:
        return False
    with _COMPILING:
        return _compiles()


def _compiles() -> bool:
    try:
        device = torch.device("cuda", torch.cuda.current_device())
        probe = torch.zeros(2, 4, device=device)
        round_block_triton(probe.clone(), probe, torch.zeros(2, 2, device=device), probe)
    except Exception:  # noqa: BLE001 - compilers fail in many ways (no C compiler, old card); all mean: use torch
        return False
    return True


@functools.cache
def _kernel() -> Any:
    """The kernel, to be called as Triton's are, or None: Windows and some builds come without Triton."""
    try:
        from .triton_kernel import round_block
    except ImportError:
        return None
    return round_block


def round_block_triton(targets: torch.Tensor, base: torch.Tensor, coupling: torch.Tensor, values: torch.Tensor) -> None:
    """As round_block_torch; all tensors float32 on one CUDA device, `targets` and `values` contiguous."""
    columns, rows = targets.shape
    grid = (-(-rows // _ROWS),)
    with torch.cuda.device(targets.device):
        _kernel()[grid](targets, base.contiguous(), coupling.contiguous(), values, columns, rows,
                        SUB=_SUB, ROWS=_ROWS, num_warps=1)
