"""The inner step as one Triton kernel per block: every thread owns one row of the weight and walks its columns."""

import functools

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # Windows and some builds come without Triton; the torch path does the same.
    triton = None

_ROWS = 32


@functools.cache
def available() -> bool:
    """Whether Triton is installed and can compile for this machine's device."""
    if triton is None:
        return False
    try:
        device = torch.device("cuda", torch.cuda.current_device())
        probe = torch.zeros(2, 4, device=device)
        round_block_triton(probe.clone(), probe, torch.zeros(2, 2, device=device))
    except Exception:  # noqa: BLE001 - compilers fail in many ways (no C compiler, old card); all mean: use torch
        return False
    return True


if triton is not None:

    @triton.jit
    def _round_block(targets, base, coupling, values, columns, rows,
                     BLOCK: tl.constexpr, ROWS: tl.constexpr):
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, BLOCK)
        inside = row < rows
        tile = tl.load(targets + column[:, None] * rows + row[None, :],
                       mask=(column[:, None] < columns) & inside[None, :], other=0.0)
        for j in range(columns):
            x = tl.sum(tl.where(column[:, None] == j, tile, 0.0), axis=0)
            x = tl.minimum(tl.maximum(x, -448.0), 448.0)
            # Same arithmetic as grid.round_to_grid: add and subtract 1.5 * 2^23 spacings.
            bits = x.to(tl.int32, bitcast=True) & 0x7F800000
            bits = tl.maximum(bits, 121 << 23) - (3 << 23)
            magic = bits.to(tl.float32, bitcast=True) * 12582912.0
            value = (x + magic) - magic
            tl.store(values + j * rows + row, value, mask=inside)
            change = value - tl.load(base + j * rows + row, mask=inside, other=0.0)
            weight = tl.load(coupling + j * columns + column, mask=(column > j) & (column < columns), other=0.0)
            tile -= weight[:, None] * change[None, :]


def round_block_triton(targets: torch.Tensor, base: torch.Tensor, coupling: torch.Tensor) -> torch.Tensor:
    """As round_block_torch; all tensors float32 and contiguous on one CUDA device."""
    columns, rows = targets.shape
    values = torch.empty_like(targets)
    grid = (triton.cdiv(rows, _ROWS),)
    with torch.cuda.device(targets.device):
        _round_block[grid](targets, base.contiguous(), coupling.contiguous(), values, columns, rows,
                           BLOCK=max(16, triton.next_power_of_2(columns)), ROWS=_ROWS, num_warps=1)
    return values
