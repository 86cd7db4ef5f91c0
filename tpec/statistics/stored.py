"""Statistics that stay in their calibration file until a layer needs them, so that memory does not grow with the model.

What the file holds of a matrix goes to the device that wants it, and becomes the matrix there.
"""

import math
import threading
from collections.abc import Iterator
from functools import partial

import torch

from ..errors import TpecError
from ..files.checkpoint import Checkpoint, Reader
from .gradients import GradientsOnDemand
from .inputs import Form, Gram, InputsOnDemand, Moment, Summary, gram_form, summary_form
from .packing import earlier
from .packing.forms import Shapes, input_shapes, output_shapes, unpack_inputs, unpack_outputs

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
        """The tensor on `device`, as the file has it. Raises TpecError when it holds anything but finite numbers."""
        with self._lock:
            found = self._reader.tensor(name)
        found = found.to(device)
        if found.is_floating_point() and not found.isfinite().all():
            raise self.damaged(f"'{name}' is not finite")
        return found

    def check(self, group: str, shapes: Shapes) -> None:
        """Raises KeyError or ValueError unless the file has these tensors of a group, by part."""
        for part, expected in shapes.items():
            info = self.checkpoint.tensors[f"{group}.{part}"]
            if (info.dtype, info.shape) != expected:
                raise ValueError(f"'{info.name}' is of the wrong form")

    def damaged(self, why: object) -> TpecError:
        return TpecError(f"{self.checkpoint.name} is damaged ({why}): collect the calibration anew.")

    def __del__(self) -> None:
        reader = getattr(self, "_reader", None)
        if reader is not None:
            reader.close()


def stored_inputs(file: StoredFile, name: str, absmax: float, tokens: int, rank: int | None) -> InputsOnDemand:
    """The statistics of group `name` of an open file, its mean read now and the rest on access.

    `rank` is that of a summary and 0 for a whole matrix; None in a file of version 1.
    Raises KeyError or ValueError when the file's header has not what a calibration has.
    """
    if tokens < 1 or not math.isfinite(absmax):
        raise ValueError(f"'{name}' is not finite")
    if rank is None:
        form = earlier.input_form(file.checkpoint.tensors, name)
        return InputsOnDemand(file.tensor(f"{name}.mean"), absmax, tokens, form, partial(_earlier, file, name, form))
    width = file.checkpoint.tensors[f"{name}.mean"].items
    if not 0 <= rank <= width:
        raise ValueError(f"'{name}' is of no rank")
    shapes = input_shapes(width, rank)
    file.check(name, shapes)
    form = summary_form(width, rank + 1) if rank else gram_form(width)
    return InputsOnDemand(file.tensor(f"{name}.mean"), absmax, tokens, form,
                          partial(_moment, file, name, shapes, rank), partial(_as_they_are, file, name, shapes))


def stored_gradients(file: StoredFile, name: str, rows: int, tokens: int) -> GradientsOnDemand:
    """The gradients' statistics of layer `name` of an open file, read on access.

    Raises KeyError or ValueError when the file's header has not what a calibration has.
    """
    if rows < 1 or tokens < 1:
        raise ValueError(f"'{name}' has no outputs")
    known = file.checkpoint.tensors
    if f"{name}.output_gram" in known:
        info = known[f"{name}.output_gram"]
        runs = earlier.output_runs(info, name, rows)
        return GradientsOnDemand(rows, tokens, runs, partial(_unfolded, file, info.name, -(-rows // runs)))
    sizes = known[f"{name}.output_pivots"].shape
    if not sizes or not 1 <= sizes[0] <= rows:
        raise ValueError(f"'{name}' has no outputs")
    shapes = output_shapes(rows, sizes[0])
    file.check(name, shapes)
    return GradientsOnDemand(rows, tokens, sizes[0], partial(_outputs, file, name, shapes),
                             partial(_as_they_are, file, name, shapes))


def _parts(file: StoredFile, name: str, shapes: Shapes, device: torch.device) -> dict[str, torch.Tensor]:
    return {part: file.tensor(f"{name}.{part}", device) for part in shapes}


def _as_they_are(file: StoredFile, name: str, shapes: Shapes) -> Iterator[torch.Tensor]:
    return (file.tensor(f"{name}.{part}") for part in shapes)


def _moment(file: StoredFile, name: str, shapes: Shapes, rank: int, device: torch.device) -> Moment:
    return unpack_inputs(_parts(file, name, shapes, device), rank)


def _outputs(file: StoredFile, name: str, shapes: Shapes, device: torch.device) -> torch.Tensor:
    return unpack_outputs(_parts(file, name, shapes, device))


def _earlier(file: StoredFile, name: str, form: Form, device: torch.device) -> Moment:
    if "gram" in form:
        return Gram(_unfolded(file, f"{name}.gram", form["gram"][0], device))
    return Summary(*(file.tensor(f"{name}.{part}", device) for part in Summary._fields))


def _unfolded(file: StoredFile, name: str, size: int, device: torch.device) -> torch.Tensor:
    return earlier.unfolded(file.tensor(name, device), size)
