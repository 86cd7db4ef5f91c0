"""The inner step as one Triton kernel: a program owns some rows of the weight and walks a block of columns."""

import functools

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # Windows and some builds come without Triton; the torch path does the same.
    triton = None

_ROWS = 32
_SUB = 32


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
    def _round_block(targets, base, coupling, values, columns, rows, SUB: tl.constexpr, ROWS: tl.constexpr):
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        sub = tl.arange(0, SUB)
        inside = row < rows
        for begin in range(0, columns, SUB):
            column = begin + sub
            tile = tl.load(targets + column[:, None] * rows + row[None, :],
                           mask=(column[:, None] < columns) & inside[None, :], other=0.0)
            # Columns of earlier sub-blocks: `targets` holds their changes by now.
            for earlier in range(0, begin, SUB):
                before = earlier + sub
                weights = tl.load(coupling + before[:, None] * columns + column[None, :],
                                  mask=column[None, :] < columns, other=0.0)
                changes = tl.load(targets + before[:, None] * rows + row[None, :], mask=inside[None, :], other=0.0)
                tile -= tl.dot(tl.trans(weights), changes, input_precision="ieee")
            # Rows of these tiles are picked by masked sums, all in registers: no load waits on the step before it.
            bases = tl.load(base + column[:, None] * rows + row[None, :],
                            mask=(column[:, None] < columns) & inside[None, :], other=0.0)
            step = tl.arange(0, SUB)
            near = tl.load(coupling + (begin + step)[None, :] * columns + column[:, None],
                           mask=(sub[:, None] > step[None, :]) & (column[:, None] < columns), other=0.0)
            result = bases
            for j in range(0, SUB):
                picked = sub[:, None] == j
                x = tl.sum(tl.where(picked, tile, 0.0), axis=0)
                x = tl.minimum(tl.maximum(x, -448.0), 448.0)
                # Same arithmetic as grid.round_to_grid: add and subtract 1.5 * 2^23 spacings.
                bits = x.to(tl.int32, bitcast=True) & 0x7F800000
                bits = tl.maximum(bits, 121 << 23) - (3 << 23)
                magic = bits.to(tl.float32, bitcast=True) * 12582912.0
                value = (x + magic) - magic
                change = value - tl.sum(tl.where(picked, bases, 0.0), axis=0)
                weight = tl.sum(tl.where(step[None, :] == j, near, 0.0), axis=1)
                tile = tl.where(picked, change[None, :], tile - weight[:, None] * change[None, :])
                result = tl.where(picked, value[None, :], result)
            where = column[:, None] * rows + row[None, :]
            kept = (column[:, None] < columns) & inside[None, :]
            tl.store(values + where, result, mask=kept)
            tl.store(targets + where, tile, mask=kept)
            tl.debug_barrier()


def round_block_triton(targets: torch.Tensor, base: torch.Tensor, coupling: torch.Tensor) -> torch.Tensor:
    """As round_block_torch; all tensors float32 on one CUDA device, `targets` contiguous and overwritten."""
    columns, rows = targets.shape
    values = torch.empty_like(targets)
    grid = (triton.cdiv(rows, _ROWS),)
    with torch.cuda.device(targets.device):
        _round_block[grid](targets, base.contiguous(), coupling.contiguous(), values, columns, rows,
                           SUB=_SUB, ROWS=_ROWS, num_warps=1)
    return values
