"""Statistics that stay in their calibration file until a layer needs them, so that memory does not grow with the model.

Of a symmetric matrix the file holds the upper triangle, row by row; it is unfolded on the device that wants it.
"""

import math
import threading
from collections.abc import Mapping
from functools import partial

import torch

from .checkpoint import Checkpoint, Reader
from .errors import TpecError
from .header import TensorInfo
from .inputs import PARTS, InputStats, LazyStats
from .outputs import LazyOutputs, OutputStats, run_shape

_CPU = torch.device("cpu")

Form = Mapping[str, tuple[int, ...]]


class StoredFile:
    """An open calibration file; any thread may read from it. What replaces the file under its name is not seen.

    It is closed with the last of its statistics.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._lock = threading.Lock()
        self._reader = Reader(checkpoint)

    def tensor(self, name: str, device: torch.device = _CPU) -> torch.Tensor:
        """The tensor, float32 on `device`. Raises TpecError when it holds anything but finite numbers."""
        with self._lock:
            found = self._reader.tensor(name)
        found = found.to(device)
        if not found.isfinite().all():
            raise self.damaged(f"'{name}' is not finite")
        return found

    def damaged(self, why: object) -> TpecError:
        return TpecError(f"{self.checkpoint.name} is damaged ({why}): collect the calibration anew.")

    def __del__(self) -> None:
        reader = getattr(self, "_reader", None)
        if reader is not None:
            reader.close()


class StoredStats(LazyStats):
    """Statistics in an open file."""

    def __init__(self, file: StoredFile, name: str, absmax: float, tokens: int) -> None:
        form = _form(file.checkpoint.tensors, name)
        if tokens < 1 or not math.isfinite(absmax):
            raise ValueError(f"'{name}' is not finite")
        mean = file.tensor(f"{name}.mean")
        read = partial(_stats, file, name, mean, absmax, tokens, form)
        super().__init__(mean, absmax, tokens, form, partial(read, _CPU))
        object.__setattr__(self, "_read", read)

    def second_moment(self, device: torch.device | None = None) -> torch.Tensor:
        device = device or _CPU
        stats = self._read(device)
        return stats.gram if stats.gram is not None else stats.second_moment(device)


class StoredOutputs(LazyOutputs):
    """Statistics in an open file."""

    def __init__(self, file: StoredFile, name: str, rows: int, tokens: int) -> None:
        if rows < 1 or tokens < 1:
            raise ValueError(f"'{name}' has no outputs")
        runs, size = run_shape(rows)
        info = file.checkpoint.tensors[f"{name}.output_gram"]
        if (info.dtype, info.shape) != ("F32", (runs, triangle(size))):
            raise ValueError(f"the outputs of '{name}' are of the wrong form")
        read = partial(_unfolded_tensor, file, info.name, size)
        super().__init__(rows, tokens, lambda: OutputStats(read(_CPU), rows, tokens))
        object.__setattr__(self, "_read", read)

    def on(self, device: torch.device) -> torch.Tensor:
        return self._read(device)


def triangle(size: int) -> int:
    """Items of the upper triangle of a [size, size] matrix."""
    return size * (size + 1) // 2


def folded(matrix: torch.Tensor) -> torch.Tensor:
    """The upper triangle [..., n (n + 1) / 2] of a symmetric matrix [..., n, n]."""
    row, column = torch.triu_indices(*matrix.shape[-2:], device=matrix.device)
    return matrix[..., row, column]


def _unfolded(triangle: torch.Tensor, size: int) -> torch.Tensor:
    """Symmetric [..., size, size] from its upper triangle."""
    full = triangle.new_zeros(*triangle.shape[:-1], size, size)
    row, column = torch.triu_indices(size, size, device=triangle.device)
    full[..., row, column] = triangle
    return full + full.triu(1).mT


def _unfolded_tensor(file: StoredFile, name: str, size: int, device: torch.device) -> torch.Tensor:
    return _unfolded(file.tensor(name, device), size)


def _stats(file: StoredFile, name: str, mean: torch.Tensor, absmax: float, tokens: int, form: Form,
           device: torch.device) -> InputStats:
    """The whole statistics; their large parts on `device`, which also checks them."""
    parts = {part: file.tensor(f"{name}.{part}", device) for part in form if part not in ("mean", "gram")}
    if "gram" in form:
        parts["gram"] = _unfolded_tensor(file, f"{name}.gram", len(mean), device)
    return InputStats(mean, absmax, tokens, **parts)


def _form(known: Mapping[str, TensorInfo], name: str) -> Form:
    """The shapes of a group's parts. Raises KeyError or ValueError when they are not what a calibration has."""
    width = known[f"{name}.mean"].items
    found = {part: known[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in known}
    k = found["values"].items if "values" in found else 0
    form = {"mean": (width,), "gram": (width, width)} if "gram" in found else {
        "mean": (width,), "vectors": (width, k), "values": (k,), "rest": (width,)}
    expected = form | ({"gram": (triangle(width),)} if "gram" in form else {})
    if {part: (info.dtype, info.shape) for part, info in found.items()} != {
            part: ("F32", shape) for part, shape in expected.items()}:
        raise ValueError(f"'{name}' has parts of the wrong form")
    return form
