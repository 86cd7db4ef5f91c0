"""Calibration files of version 1: float32 matrices, of symmetric ones the upper triangle, row by row."""

from collections.abc import Mapping

import torch

from ...files.header import TensorInfo
from ..inputs import PARTS, Form, gram_form, summary_form

#: dtype code and shape of what version 1 calls by these names.
Shape = tuple[str, tuple[int, ...]]


def triangle(size: int) -> int:
    """Items of the upper triangle of a [size, size] matrix."""
    return size * (size + 1) // 2


def unfolded(triangle: torch.Tensor, size: int) -> torch.Tensor:
    """Symmetric [..., size, size] from its upper triangle [..., size (size + 1) / 2]."""
    full = triangle.new_zeros(*triangle.shape[:-1], size, size)
    row, column = torch.triu_indices(size, size, device=triangle.device)
    full[..., row, column] = triangle
    return full + full.triu(1).mT


def input_form(known: Mapping[str, TensorInfo], name: str) -> Form:
    """The shapes of a group's parts, unfolded. Raises KeyError or ValueError when they are not what a file has."""
    width = known[f"{name}.mean"].items
    found = {part: known[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in known}
    if "gram" in found:
        form = gram_form(width)
    else:
        form = summary_form(width, found["values"].items if "values" in found else 0)
    expected: dict[str, Shape] = {part: ("F32", (triangle(width),) if part == "gram" else shape)
                                  for part, shape in form.items()}
    if {part: (info.dtype, info.shape) for part, info in found.items()} != expected:
        raise ValueError(f"'{name}' has parts of the wrong form")
    return form


def output_runs(info: TensorInfo, name: str, rows: int) -> int:
    """In how many runs a layer's gradients are kept. Raises ValueError when they are not what a file has."""
    if not info.shape or not 1 <= info.shape[0] <= rows:
        raise ValueError(f"'{name}' has no outputs")
    runs = info.shape[0]
    if (info.dtype, info.shape) != ("F32", (runs, triangle(-(-rows // runs)))):
        raise ValueError(f"the outputs of '{name}' are of the wrong form")
    return runs
