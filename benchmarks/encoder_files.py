"""Synthetic text encoders of full size, with the names and shapes that ComfyUI builds (tests/data/encoders.txt).

    python -m benchmarks.encoder_files t5xxl.safetensors --encoder t5-xxl

Weights are normal with outliers, as strong as trainings begin with, so that activations stay in range; what is written
to the residual stream has a few loud channels, and norms differ by channel, so that what layers read is uneven, as it
is in real models. Nothing was trained: how large errors are in a real encoder this cannot say.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import inventory
import torch

from .make_model import POOL_ITEMS, Shapes, write_model
from .synthetic import generator

#: T5 does not divide by the root of a head's width (64), so its queries are smaller by that.
_T5_QUERY, _T5_HEAD = "SelfAttention.q.", 64
#: Layers that write to the residual stream.
_WRITERS = ("SelfAttention.o.", "DenseReluDense.wo.", "o_proj.", "down_proj.")
_EMBEDDINGS = ("shared.", "embed_tokens.")


def encoder_names() -> list[str]:
    return list(inventory.read(inventory.DATA / "encoders.txt"))


def encoder_shapes(encoder: str) -> Shapes:
    """Names and shapes of an encoder's file."""
    tensors = inventory.read(inventory.DATA / "encoders.txt")[encoder].tensors
    return {name: shape for name, (shape, _) in tensors.items()}


def loudness(width: int) -> torch.Tensor:
    """[width] strengths of the residual stream's channels, the same for all layers: mean square 1, one in 200 loud."""
    random = generator(width, "cpu")
    loud = torch.randn(width, generator=random).mul_(0.5).exp_()
    loud[torch.randint(width, (max(1, width // 200),), generator=random)] *= 6
    return loud / loud.square().mean().sqrt()


def values(name: str, shape: tuple[int, ...], pool: torch.Tensor, random: torch.Generator) -> Iterator[torch.Tensor]:
    """A tensor's values in pieces of whole rows (bf16)."""
    if len(shape) < 2:
        count = math.prod(shape)
        drawn = torch.randn(count, generator=random)
        is_norm = "norm" in name and name.endswith("weight")
        yield (drawn.mul_(0.3).exp_() if is_norm else drawn.mul_(0.02)).to(torch.bfloat16)
        return
    rows, columns = shape[0], math.prod(shape[1:])
    strength = columns**-0.5 / (math.sqrt(_T5_HEAD) if _T5_QUERY in name else 1)
    by_row, by_column = torch.full((rows, 1), strength), None
    if any(part in name for part in _WRITERS):
        by_row *= loudness(rows)[:, None]
    if any(part in name for part in _EMBEDDINGS):
        by_row, by_column = torch.ones(rows, 1), loudness(columns).to(torch.bfloat16)
    step = max(1, POOL_ITEMS // 2 // columns)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        at = int(torch.randint(POOL_ITEMS - count * columns + 1, (1,), generator=random))
        piece = pool[at:at + count * columns].view(count, columns) * by_row[first:first + count].to(torch.bfloat16)
        yield piece if by_column is None else piece * by_column


def write_encoder(path: Path, encoder: str) -> int:
    """Write the file; returns its size in bytes."""
    return write_model(path, encoder_shapes(encoder), values=values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the file to write")
    parser.add_argument("--encoder", default="t5-xxl", choices=encoder_names())
    args = parser.parse_args()
    begun = time.perf_counter()
    size = write_encoder(args.output, args.encoder)
    print(f"{args.output.name}: {size / 1e9:.3f} GB, {args.encoder}, {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main()
