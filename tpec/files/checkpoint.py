"""A model on disk, described but not loaded: one safetensors file, or the shards that belong together."""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from types import MappingProxyType

import torch

from ..errors import TpecError
from .dtypes import TORCH_DTYPES
from .header import TensorInfo, read_header, size_and_time
from .naming import shard_name
from .replace import disk_errors, is_file, is_folder
from .shards import index_beside, is_index, model_in, shard_map, siblings


@dataclass(frozen=True)
class Checkpoint:
    """A model whose headers were validated; no tensor has been read.

    path: the file or the index, of shards without an index the first. files: what holds the data; `TensorInfo.file`
    counts in them. tensors: by name, in the order of the data. metadata: the header's `__metadata__`, of shards all
    together. digest: SHA-256 of the headers' bytes, hexadecimal. notes: sentences for the report. states: size (bytes)
    and mtime (ns) of each file just before its header was read; empty for a model that was no file.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    digest: str
    notes: tuple[str, ...] = ()
    states: tuple[tuple[int, int], ...] = ()

    @property
    def name(self) -> str:
        """The file's name without folders, for messages and recipes."""
        return self.path.name

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data, headers not counted."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def origin(self) -> Mapping[str, object]:
        """Nothing to tell: the file's name says where the weights are from."""
        return {}

    def reader(self) -> "Reader":
        """Open the files. Raises TpecError when one is gone or cannot be read."""
        return Reader(self)

    def identity(self) -> dict[str, object]:
        """What a resumed run compares: header digest, and size (bytes) and mtime (ns) of every file.

        Raises TpecError when a file is gone.
        """
        stats = [_state(path) for path in self.files]
        return {"header": self.digest, "size": [s.st_size for s in stats], "mtime_ns": [s.st_mtime_ns for s in stats]}


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Validate the header of a safetensors file, an index of shards whatever its name, or a folder holding one model.

    A shard stands for its whole model. Raises TpecError when nothing is there, the disk fails, a header is malformed,
    data is missing or too long, or shards do not fit together.
    """
    path = Path(path)
    if is_folder(path):
        found = model_in(path)
        if found.parent != path:
            note = f"of the pipeline its {found.parent.name} was taken"
            return replace(open_checkpoint(found), notes=(note,))
        path = found
    shard = shard_name(path.name) if is_file(path) else None
    if shard:
        path = index_beside(path) or path
    if is_index(path):
        return _open_index(path)
    if shard:
        names = siblings(path, shard)
        return _open_files(path.with_name(names[0]), names)
    return _open_files(path, [path.name])


def _open_index(path: Path) -> Checkpoint:
    shards = shard_map(path)
    names = sorted(set(shards.values()))
    missing = [name for name in names if not is_file(path.parent / name)]
    if missing:
        raise TpecError(f"{path.name} needs {len(missing)} file(s) that are not beside it ({', '.join(missing[:6])}): "
                        "download them into the same folder.")
    checkpoint = _open_files(path, names)
    lost = sorted(shards.keys() - checkpoint.tensors.keys())
    if lost:
        raise TpecError(f"{path.name} lists tensor '{lost[0]}' in {shards[lost[0]]}, which does not hold it: they do "
                        "not belong together, download the model again.")
    return checkpoint


def _open_files(path: Path, names: Sequence[str]) -> Checkpoint:
    """The model that the files of these names beside `path` make together."""
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    digest, states = hashlib.sha256(), []
    for index, name in enumerate(names):
        header = read_header(path.parent / name, index)
        doubled = sorted(tensors.keys() & header.tensors.keys())
        if doubled:
            raise TpecError(f"Tensor '{doubled[0]}' is in two shards of {path.name}: they do not belong together, "
                            "download the model again.")
        tensors |= header.tensors
        metadata |= header.metadata
        digest.update(header.raw)
        states.append(header.state)
    if not tensors:
        raise TpecError(f"{path.name} holds no tensors: choose the model's own file.")
    files = tuple(path.parent / name for name in names)
    return Checkpoint(path, files, MappingProxyType(tensors), MappingProxyType(metadata), digest.hexdigest(),
                      states=tuple(states))


class Reader:
    """Plain positional reads from a checkpoint's files; no mapping is held, so Windows needs no page file for it.

    A file that is changed after its header was read would give weights of two models: that is noticed at the next read.
    One that is moved or replaced under its name meanwhile is read on as it was.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Opens every file of the checkpoint. Raises TpecError when one is gone, changed or cannot be read."""
        self._checkpoint = checkpoint
        with contextlib.ExitStack() as stack:
            self._files = [stack.enter_context(_opened(path)) for path in checkpoint.files]
            for at in range(len(self._files)):
                with self._errors(at):
                    self._check(at)
            stack.pop_all()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; reading ends."""
        for file in self._files:
            with contextlib.suppress(OSError):  # nothing was written
                file.close()

    def read_into(self, info: TensorInfo, buffer: memoryview, offset: int = 0) -> None:
        """Fill `buffer` (any contiguous memory) with the tensor's bytes from `offset` (in bytes) on.

        Raises TpecError when the file has changed since its header was read, or the disk fails.
        """
        file = self._files[info.file]
        view = buffer.cast("B")
        with self._errors(info.file):
            file.seek(info.start + offset)
            done = 0
            while done < len(view):
                count = file.readinto(view[done:])
                if not count:
                    raise TpecError(f"{self._checkpoint.files[info.file].name} became shorter while it was read "
                                    f"(tensor '{info.name}'): wait until nobody writes to it, and run again.")
                done += count
            self._check(info.file)

    def will_need(self, info: TensorInfo) -> None:
        """Let the system fetch these bytes meanwhile (Linux; elsewhere nothing happens)."""
        self._advise(info, "POSIX_FADV_WILLNEED")

    def drop_cache(self, info: TensorInfo) -> None:
        """Tell the system that these bytes will not be read again (Linux; elsewhere nothing happens)."""
        self._advise(info, "POSIX_FADV_DONTNEED")

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor in its own dtype and shape, on the CPU.

        Raises TpecError for a dtype that this PyTorch has not, and as `read_into` does.
        """
        info = self._checkpoint.tensors[name]
        if info.dtype not in TORCH_DTYPES:
            raise TpecError(f"Tensor '{name}' has dtype {info.dtype}, which this PyTorch cannot hold: update "
                            "PyTorch, or use a bf16 or fp16 file.")
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        if info.nbytes:
            self.read_into(info, raw.numpy().data)
        return raw.view(TORCH_DTYPES[info.dtype]).reshape(info.shape)

    def _advise(self, info: TensorInfo, advice: str) -> None:
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._files[info.file].fileno(), info.start, info.nbytes, getattr(os, advice))

    def _check(self, at: int) -> None:
        """Raises TpecError when file `at` is not as it was before its header was read, and OSError."""
        states = self._checkpoint.states
        if states and size_and_time(self._files[at].fileno()) != states[at]:
            raise TpecError(f"{self._checkpoint.files[at].name} was changed while it was read: wait until nobody "
                            "writes to it, and run again.")

    def _errors(self, at: int) -> contextlib.AbstractContextManager[None]:
        return disk_errors(self._checkpoint.files[at], "read")


def _state(path: Path) -> os.stat_result:
    with disk_errors(path, "read any more"):
        return os.stat(path)


def _opened(path: Path) -> FileIO:
    with disk_errors(path, "read any more"):
        return open(path, "rb", buffering=0)
