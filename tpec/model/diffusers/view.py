"""A Source over another one: its tensors are rows of the other's tensors, one after another, under other names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...files.dtypes import TORCH_DTYPES
from ...files.header import TensorInfo
from ...files.source import Source, TensorReader


@dataclass(frozen=True)
class Rows:
    """Bytes `start` to `start + nbytes` of the tensor `info` of the source below: whole rows, that is."""

    info: TensorInfo
    start: int
    nbytes: int


@dataclass(frozen=True)
class View:
    """`base` rearranged: `rows` says by name what each tensor is made of, `tensors` describes them as a header would.

    note: a sentence for the summary and the report.
    """

    base: Source
    tensors: Mapping[str, TensorInfo]
    rows: Mapping[str, tuple[Rows, ...]]
    note: str

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def files(self) -> tuple[Path, ...]:
        return self.base.files

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.base.metadata

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def origin(self) -> Mapping[str, object]:
        return self.base.origin

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.base.notes, self.note)

    def identity(self) -> dict[str, object]:
        return {**self.base.identity(), "rearranged": self.note}

    def reader(self) -> "ViewReader":
        return ViewReader(self)


def make_view(base: Source, pieces: Mapping[str, Iterable[Rows]], note: str) -> View:
    """A View of `pieces` by name: first axes add up, the other axes and the dtype of a tensor's pieces are equal."""
    rows = {name: tuple(parts) for name, parts in pieces.items()}
    infos: dict[str, TensorInfo] = {}
    at = 0
    for name, parts in rows.items():
        first = parts[0].info
        nbytes = sum(part.nbytes for part in parts)
        row = first.nbytes // first.shape[0] if first.shape and first.shape[0] else 0
        shape = (nbytes // row, *first.shape[1:]) if row else first.shape
        infos[name] = replace(first, name=name, shape=shape, start=at, nbytes=nbytes, file=0)
        at += nbytes
    return View(base, infos, rows, note)


class ViewReader:
    """Reads what a View's tensors are made of through a reader of the source below."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._base: TensorReader = view.base.reader()

    def close(self) -> None:
        self._base.close()

    def read_into(self, info: TensorInfo, buffer: memoryview, offset: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` on."""
        view, done = buffer.cast("B"), 0
        for part in self._view.rows[info.name]:
            skip = min(offset, part.nbytes)
            offset -= skip
            count = min(part.nbytes - skip, len(view) - done)
            if count:
                self._base.read_into(part.info, view[done:done + count], part.start + skip)
                done += count

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its own dtype on the CPU."""
        info = self._view.tensors[name]
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        if info.nbytes:
            self.read_into(info, raw.numpy().data)
        return raw.view(TORCH_DTYPES[info.dtype]).reshape(info.shape)

    def will_need(self, info: TensorInfo) -> None:
        """Ask for all that the tensor is made of."""
        for part in self._parts(info):
            self._base.will_need(part)

    def drop_cache(self, info: TensorInfo) -> None:
        """Let go of all that the tensor is made of."""
        for part in self._parts(info):
            self._base.drop_cache(part)

    def _parts(self, info: TensorInfo) -> Iterable[TensorInfo]:
        return {part.info.name: part.info for part in self._view.rows[info.name]}.values()
