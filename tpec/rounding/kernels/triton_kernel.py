"""The inner step in Triton's language; importing this needs Triton, which compiles it.

It is no Python, so pyright leaves it out (pyproject.toml).
"""

import triton
import triton.language as tl


@triton.jit
def round_block(targets, base, coupling, values, columns, rows, SUB: tl.constexpr, ROWS: tl.constexpr):
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
        for j in range(0, tl.minimum(SUB, columns - begin)):
            at = begin + j
            origin = tl.load(base + at * rows + row, mask=inside, other=0.0)
            weight = tl.load(coupling + at * columns + column, mask=(sub > j) & (column < columns), other=0.0)
            x = tl.sum(tl.where(sub[:, None] == j, tile, 0.0), axis=0)
            # Not minimum and maximum, which drop NaN: it must reach the checks of the result.
            x = tl.where(x > 448.0, 448.0, tl.where(x < -448.0, -448.0, x))
            # Same arithmetic as grid.round_to_grid: add and subtract 1.5 * 2^23 spacings.
            bits = x.to(tl.int32, bitcast=True) & 0x7F800000
            bits = tl.maximum(bits, 121 << 23) - (3 << 23)
            magic = bits.to(tl.float32, bitcast=True) * 12582912.0
            value = (x + magic) - magic
            change = value - origin
            tl.store(values + at * rows + row, value, mask=inside)
            tl.store(targets + at * rows + row, change, mask=inside)
            tile -= weight[:, None] * change[None, :]
        tl.debug_barrier()
