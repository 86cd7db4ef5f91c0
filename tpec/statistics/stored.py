"""Statistics that stay in their calibration file until a layer needs them, so that memory does not grow with the model.

Of a symmetric matrix the file holds the upper triangle, row by row; it is unfolded on the device that wants it.
"""

import math
import threading
from collections.abc import Mapping
from functools import partial

import torch

from ..errors import TpecError
from ..files.checkpoint import Checkpoint, Reader
from ..files.header import TensorInfo
from .gradients import GradientsOnDemand
from .inputs import PARTS, Form, Gram, InputsOnDemand, Moment, Summary, gram_form, summary_form

_CPU = torch.device("cpu")


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


def stored_inputs(file: StoredFile, name: str, absmax: float, tokens: int) -> InputsOnDemand:
    """The statistics of group `name` of an open file, its mean read now and the rest on access.

    Raises KeyError or ValueError when the file's header has not what a calibration has.
    """
    form = _form(file.checkpoint.tensors, name)
    if tokens < 1 or not math.isfinite(absmax):
        raise ValueError(f"'{name}' is not finite")
    mean = file.tensor(f"{name}.mean")
    return InputsOnDemand(mean, absmax, tokens, form, partial(_moment, file, name, form))


def stored_gradients(file: StoredFile, name: str, rows: int, tokens: int) -> GradientsOnDemand:
    """The gradients' statistics of layer `name` of an open file, read on access.

    Raises KeyError or ValueError when the file's header has not what a calibration has.
    """
    info = file.checkpoint.tensors[f"{name}.output_gram"]
    if rows < 1 or tokens < 1 or not info.shape or not 1 <= info.shape[0] <= rows:
        raise ValueError(f"'{name}' has no outputs")
    runs = info.shape[0]
    size = -(-rows // runs)
    if (info.dtype, info.shape) != ("F32", (runs, triangle(size))):
        raise ValueError(f"the outputs of '{name}' are of the wrong form")
    return GradientsOnDemand(rows, tokens, runs, partial(_unfolded_tensor, file, info.name, size))


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


def _moment(file: StoredFile, name: str, form: Form, device: torch.device) -> Moment:
    """The large parts on `device`, which also checks them."""
    if "gram" in form:
        return Gram(_unfolded_tensor(file, f"{name}.gram", form["gram"][0], device))
    return Summary(*(file.tensor(f"{name}.{part}", device) for part in Summary._fields))


def _form(known: Mapping[str, TensorInfo], name: str) -> Form:
    """The shapes of a group's parts. Raises KeyError or ValueError when they are not what a calibration has."""
    width = known[f"{name}.mean"].items
    found = {part: known[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in known}
    if "gram" in found:
        form = gram_form(width)
    else:
        form = summary_form(width, found["values"].items if "values" in found else 0)
    expected = {part: (triangle(width),) if part == "gram" else shape for part, shape in form.items()}
    if {part: (info.dtype, info.shape) for part, info in found.items()} != {
            part: ("F32", shape) for part, shape in expected.items()}:
        raise ValueError(f"'{name}' has parts of the wrong form")
    return form
