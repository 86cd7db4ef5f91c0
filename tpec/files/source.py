"""Where tensors come from: a file, or a model in memory whose tensors are computed when they are read.

A Plan holds a Source and each lane reads through a TensorReader of its own. `checkpoint.Checkpoint` with
`checkpoint.Reader` is the pair for files, `ComputedModel` with `ComputedReader` the one for models in memory.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch

from ..errors import TpecError
from .dtypes import TORCH_DTYPES
from .header import TensorInfo

_CODES = {dtype: code for code, dtype in TORCH_DTYPES.items()}
_NOTHING: Mapping[str, object] = MappingProxyType({})


class TensorReader(Protocol):
    """Serves the bytes of a Source's tensors, to one thread at a time."""

    def read_into(self, info: TensorInfo, buffer: memoryview, offset: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` on. Raises TpecError."""

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its own dtype on the CPU, not to be written to. Raises TpecError."""
        ...

    def will_need(self, info: TensorInfo) -> None:
        """A hint that the tensor will be read soon."""

    def drop_cache(self, info: TensorInfo) -> None:
        """A hint that the tensor will not be read again."""

    def close(self) -> None:
        """Let go of everything that was held for reading."""


class Source(Protocol):
    """A model to quantize, described but not loaded.

    name: what the user calls it, a file's name without folders. files: those that must not be overwritten meanwhile.
    tensors: by name, in the order in which they are best read. metadata: the header metadata that the result inherits.
    nbytes: bytes of tensor data. origin: plain data about a model that was no file, for the
    result's recipe, without paths. notes: sentences for the report.
    """

    @property
    def name(self) -> str: ...

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def origin(self) -> Mapping[str, object]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def identity(self) -> dict[str, object]:
        """Plain data that is another as soon as the weights are. Raises OSError or TpecError when they are gone."""
        ...

    def reader(self) -> TensorReader:
        """Open the weights. Raises OSError or TpecError when they are gone."""
        ...


@dataclass(frozen=True)
class ComputedModel:
    """A model in memory, described as a file is.

    open: gives a context; what that yields computes a tensor by name. key: a text that is another as soon as a weight
    is. The other fields are those of `Source`. The tensors computed must have the dtypes and shapes that
    `tensors` states (`describe_tensors`), on any device; they are computed once each as a rule, one at a time and lane,
    from any thread.
    """

    name: str
    tensors: Mapping[str, TensorInfo]
    key: str
    open: Callable[[], AbstractContextManager[Callable[[str], torch.Tensor]]]
    origin: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return sum(info.nbytes for info in self.tensors.values())

    def identity(self) -> dict[str, object]:
        """Plain data that is another as soon as the weights are."""
        return {"model": self.key}

    def reader(self) -> "ComputedReader":
        """Enter the model's context; `close` leaves it."""
        return ComputedReader(self)


def describe_tensors(model: str, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> dict[str, TensorInfo]:
    """Dtype and shape of each tensor by name, as a file's header would state them; `model` is named in messages.

    Raises TpecError for a dtype that safetensors files have no code for.
    """
    infos: dict[str, TensorInfo] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        if dtype not in _CODES:
            raise TpecError(f"Tensor '{name}' of {model} has dtype {dtype}, which model files cannot hold: use a bf16, "
                            "fp16 or fp32 model.")
        nbytes = dtype.itemsize * torch.Size(shape).numel()
        infos[name] = TensorInfo(name, _CODES[dtype], tuple(shape), at, nbytes)
        at += nbytes
    return infos


class ComputedReader:
    """Computes a tensor when it is first asked for and holds it, one at a time, until the next or `drop_cache`."""

    def __init__(self, model: ComputedModel) -> None:
        self._model = model
        self._context = ExitStack()
        self._compute = self._context.enter_context(model.open())
        self._held: tuple[str, torch.Tensor] | None = None

    def close(self) -> None:
        """Let go of the held tensor and leave the model's context."""
        self._held = None
        self._context.close()

    def read_into(self, info: TensorInfo, buffer: memoryview, offset: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` (in bytes) on.

        Raises TpecError when the model computes another dtype or shape than it stated.
        """
        view = buffer.cast("B")
        view[:] = self._bytes(info).numpy().data[offset: offset + len(view)]

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its own dtype on the CPU, which may be the model's own memory."""
        return self._checked(self._model.tensors[name]).detach().cpu()

    def will_need(self, info: TensorInfo) -> None:
        """Nothing can be done ahead without a second tensor in memory."""

    def drop_cache(self, info: TensorInfo) -> None:
        """Let go of the tensor if it is the one held."""
        if self._held is not None and self._held[0] == info.name:
            self._held = None

    def _bytes(self, info: TensorInfo) -> torch.Tensor:
        """The tensor as uint8 [nbytes] on the CPU, in the memory of the model itself where that is possible."""
        if self._held is None or self._held[0] != info.name:
            self._held = None  # before the next is computed, so that there are never two
            tensor = self._checked(info).detach().cpu()
            self._held = info.name, tensor.contiguous().reshape(-1).view(torch.uint8)
        return self._held[1]

    def _checked(self, info: TensorInfo) -> torch.Tensor:
        tensor = self._compute(info.name)
        if _CODES.get(tensor.dtype) != info.dtype or tuple(tensor.shape) != info.shape:
            raise TpecError(f"Tensor '{info.name}' of {self._model.name} became {tensor.dtype} {list(tensor.shape)} "
                            f"instead of {info.dtype} {list(info.shape)}: the model was changed meanwhile, run again.")
        return tensor
