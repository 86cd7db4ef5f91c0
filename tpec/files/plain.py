"""A plain safetensors file of tensors that are made one after another (the result of a run is written by `partial`)."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from .dtypes import TORCH_DTYPES
from .header import make_header

_CODES = {dtype: code for code, dtype in TORCH_DTYPES.items()}


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors in this order; dtypes are those of `dtypes.TORCH_DTYPES`. Raises OSError."""
    shapes = {name: (_CODES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_stream(path, shapes, tensors.values(), metadata)


def write_stream(path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], tensors: Iterable[torch.Tensor],
                 metadata: Mapping[str, str]) -> None:
    """Write tensors as `tensors` yields them; `shapes` says their dtype codes and shapes in that order. Raises OSError.
    """
    header, _ = make_header(shapes, metadata)
    with open(path, "wb") as file:
        file.write(header)
        for tensor in tensors:
            file.write(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
