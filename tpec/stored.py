"""Statistics that stay in their calibration file until a layer needs them, so that memory does not grow with the model.

Of a symmetric matrix the file holds the upper triangle, row by row; it is unfolded on the device that wants it.
"""

import math
import threading
from collections.abc import Mapping

import torch

from .calibration import InputStats
from .checkpoint import Checkpoint, Reader
from .errors import TpecError
from .header import TensorInfo
from .outputs import OutputStats, run_shape

_CPU = torch.device("cpu")
_PLAIN = ("mean", "vectors", "values", "rest")


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


class StoredStats(InputStats):
    """As InputStats; every look at a large part reads it from the file."""

    def __init__(self, file: StoredFile, name: str, absmax: float, tokens: int) -> None:
        known = file.checkpoint.tensors
        _check_parts(known, name)
        if tokens < 1 or not math.isfinite(absmax):
            raise ValueError(f"'{name}' is not finite")
        for field, value in (("absmax", absmax), ("tokens", tokens), ("_file", file), ("_name", name),
                             ("mean", file.tensor(f"{name}.mean"))):
            # The base class is a frozen dataclass.
            object.__setattr__(self, field, value)

    @property
    def gram(self) -> torch.Tensor | None:
        return self._gram(_CPU)

    @property
    def vectors(self) -> torch.Tensor | None:
        return self._part("vectors")

    @property
    def values(self) -> torch.Tensor | None:
        return self._part("values")

    @property
    def rest(self) -> torch.Tensor | None:
        return self._part("rest")

    @property
    def nbytes(self) -> int:
        infos = self._file.checkpoint.tensors
        small = sum(infos[f"{self._name}.{part}"].nbytes for part in _PLAIN if f"{self._name}.{part}" in infos)
        return small + (4 * self.width**2 if f"{self._name}.gram" in infos else 0)

    def second_moment(self, device: torch.device | None = None) -> torch.Tensor:
        gram = self._gram(device or _CPU)
        return gram if gram is not None else super().second_moment(device)

    def whole(self) -> InputStats:
        """The same, in memory."""
        return InputStats(self.mean, self.absmax, self.tokens, self.gram, self.vectors, self.values, self.rest)

    def _gram(self, device: torch.device) -> torch.Tensor | None:
        packed = self._part("gram", device)
        return None if packed is None else _unfolded(packed, self.width)

    def _part(self, part: str, device: torch.device = _CPU) -> torch.Tensor | None:
        name = f"{self._name}.{part}"
        return self._file.tensor(name, device) if name in self._file.checkpoint.tensors else None


class StoredOutputs(OutputStats):
    """As OutputStats; every look at `gram` reads it from the file."""

    def __init__(self, file: StoredFile, name: str, rows: int, tokens: int) -> None:
        if rows < 1 or tokens < 1:
            raise ValueError(f"'{name}' has no outputs")
        runs, size = run_shape(rows)
        info = file.checkpoint.tensors[f"{name}.output_gram"]
        if (info.dtype, info.shape) != ("F32", (runs, size * (size + 1) // 2)):
            raise ValueError(f"the outputs of '{name}' are of the wrong form")
        for field, value in (("rows", rows), ("tokens", tokens), ("_file", file), ("_tensor", info.name)):
            object.__setattr__(self, field, value)

    @property
    def gram(self) -> torch.Tensor:
        return self.on(_CPU)

    @property
    def nbytes(self) -> int:
        runs, size = run_shape(self.rows)
        return 4 * runs * size * size

    def on(self, device: torch.device) -> torch.Tensor:
        return _unfolded(self._file.tensor(self._tensor, device), run_shape(self.rows)[1])

    def whole(self) -> OutputStats:
        """The same, in memory."""
        return OutputStats(self.gram, self.rows, self.tokens)


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


def _check_parts(known: Mapping[str, TensorInfo], name: str) -> None:
    """Raises KeyError or ValueError when a group's tensors are not what a calibration has."""
    width = known[f"{name}.mean"].items
    found = {part: known[f"{name}.{part}"] for part in ("gram", *_PLAIN) if f"{name}.{part}" in known}
    k = found["values"].items if "values" in found else 0
    expected = {"mean": (width,), "gram": (width * (width + 1) // 2,)} if "gram" in found else {
        "mean": (width,), "vectors": (width, k), "values": (k,), "rest": (width,)}
    if {part: (info.dtype, info.shape) for part, info in found.items()} != {
            part: ("F32", shape) for part, shape in expected.items()}:
        raise ValueError(f"'{name}' has parts of the wrong form")
