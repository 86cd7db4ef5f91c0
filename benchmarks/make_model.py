"""Write a synthetic bf16 checkpoint with the keys and proportions of Flux or Chroma.

    python -m benchmarks.make_model big.safetensors --size 17
    python -m benchmarks.make_model small.safetensors --size 0.2 --hidden 512 --layout flux

Blocks are added, two single ones for each double one as in the real models, until the size (GB of 1e9 bytes) is
reached; --depth 19 38 gives the real depth. Values are random: normal with outliers, from a pool that is reused with
other offsets, strengths and row scales, so writing is as fast as the disk.
"""

import argparse
import json
import math
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .synthetic import generator

LAYOUTS = ("chroma", "flux")
POOL_ITEMS = 2**24
Shapes = dict[str, tuple[int, ...]]
#: A tensor's name, its shape, a pool of normal values and a generator, to its values in pieces of whole rows (bf16).
Values = Callable[[str, tuple[int, ...], torch.Tensor, torch.Generator], Iterator[torch.Tensor]]


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _attention_norms(name: str) -> Shapes:
    return {f"{name}.{kind}_norm.scale": (128,) for kind in ("query", "key")}


def double_block(index: int, hidden: int, layout: str) -> Shapes:
    shapes: Shapes = {}
    for stream in ("img", "txt"):
        name = f"double_blocks.{index}.{stream}"
        shapes |= _linear(f"{name}_attn.qkv", 3 * hidden, hidden) | _attention_norms(f"{name}_attn.norm")
        shapes |= _linear(f"{name}_attn.proj", hidden, hidden)
        shapes |= _linear(f"{name}_mlp.0", 4 * hidden, hidden) | _linear(f"{name}_mlp.2", hidden, 4 * hidden)
        if layout == "flux":
            shapes |= _linear(f"{name}_mod.lin", 6 * hidden, hidden)
    return shapes


def single_block(index: int, hidden: int, layout: str) -> Shapes:
    name = f"single_blocks.{index}"
    shapes = _linear(f"{name}.linear1", 7 * hidden, hidden) | _linear(f"{name}.linear2", hidden, 5 * hidden)
    shapes |= _attention_norms(f"{name}.norm")
    if layout == "flux":
        shapes |= _linear(f"{name}.modulation.lin", 3 * hidden, hidden)
    return shapes


def outer(hidden: int, layout: str) -> Shapes:
    """Everything outside the blocks."""
    shapes = _linear("img_in", hidden, 64) | _linear("txt_in", hidden, 4096)
    shapes |= _linear("final_layer.linear", 64, hidden)
    if layout == "flux":
        for name, width in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
            shapes |= _linear(f"{name}.in_layer", hidden, width) | _linear(f"{name}.out_layer", hidden, hidden)
        return shapes | _linear("final_layer.adaLN_modulation.1", 2 * hidden, hidden)
    guide, name = hidden * 5 // 3, "distilled_guidance_layer"
    shapes |= _linear(f"{name}.in_proj", guide, 64) | _linear(f"{name}.out_proj", hidden, guide)
    for i in range(5):
        shapes |= _linear(f"{name}.layers.{i}.in_layer", guide, guide)
        shapes |= _linear(f"{name}.layers.{i}.out_layer", guide, guide)
        shapes[f"{name}.norms.{i}.scale"] = (guide,)
    return shapes


def nbytes(shapes: Shapes) -> int:
    return 2 * sum(math.prod(shape) for shape in shapes.values())


def depth_for(size: float, hidden: int, layout: str) -> tuple[int, int]:
    """Numbers of double and single blocks that come closest to `size` bytes, at least one of each."""
    double = nbytes(double_block(0, hidden, layout))
    single = nbytes(single_block(0, hidden, layout))
    left = size - nbytes(outer(hidden, layout))
    doubles = max(1, int(left / (double + 2 * single)))
    return doubles, max(1, round((left - doubles * double) / single))


def model_shapes(layout: str, hidden: int, doubles: int, singles: int) -> Shapes:
    shapes = outer(hidden, layout)
    for i in range(doubles):
        shapes |= double_block(i, hidden, layout)
    for i in range(singles):
        shapes |= single_block(i, hidden, layout)
    return shapes


def header_bytes(shapes: Shapes) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        table[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _pool(random: torch.Generator) -> torch.Tensor:
    """Standard normal bf16 values, one in 10 000 of them six times as large."""
    pool = torch.randn(POOL_ITEMS, generator=random)
    pool[torch.randint(POOL_ITEMS, (POOL_ITEMS // 10_000,), generator=random)] *= 6
    return pool.to(torch.bfloat16)


def _values(name: str, shape: tuple[int, ...], pool: torch.Tensor, random: torch.Generator) -> Iterator[torch.Tensor]:
    """A tensor's values in pieces of whole rows (bf16)."""
    if len(shape) == 1:
        strength, middle = (0.05, 1.0) if name.endswith(".scale") else (0.02, 0.0)
        yield pool[:shape[0]] * strength + middle
        return
    rows, columns = shape
    step = max(1, POOL_ITEMS // 2 // columns)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        at = int(torch.randint(POOL_ITEMS - count * columns + 1, (1,), generator=random))
        strength = (0.6 + 0.8 * torch.rand(count, 1, generator=random)) * columns**-0.5
        yield pool[at:at + count * columns].view(count, columns) * strength.to(torch.bfloat16)


def write_model(path: Path, shapes: Shapes, seed: int = 0, values: Values | None = None) -> int:
    """Write the checkpoint and synchronise it to disk; returns its size in bytes. `values` draws a tensor's."""
    random = generator(seed, "cpu")
    pool = _pool(random)
    with open(path, "wb") as file:
        file.write(header_bytes(shapes))
        for name, shape in shapes.items():
            for piece in (values or _values)(name, shape, pool, random):
                file.write(memoryview(piece.contiguous().view(torch.uint8).numpy()).cast("B"))
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--size", type=float, default=2, help="size to aim at, GB (default 2)")
    parser.add_argument("--layout", choices=LAYOUTS, default="chroma", help="key layout (default chroma)")
    parser.add_argument("--hidden", type=int, default=3072, help="model width (default 3072, the real one)")
    parser.add_argument("--depth", type=int, nargs=2, metavar=("DOUBLE", "SINGLE"), help="blocks, instead of --size")
    parser.add_argument("--seed", type=int, default=0, help="seed of the values (default 0)")
    args = parser.parse_args()
    doubles, singles = args.depth or depth_for(args.size * 1e9, args.hidden, args.layout)
    begin = time.perf_counter()
    size = write_model(args.output, model_shapes(args.layout, args.hidden, doubles, singles), args.seed)
    seconds = time.perf_counter() - begin
    print(f"{args.output.name}: {size / 1e9:.3f} GB, {args.layout}, hidden {args.hidden}, {doubles} double and "
          f"{singles} single blocks, {seconds:.1f} s")


if __name__ == "__main__":
    main()
