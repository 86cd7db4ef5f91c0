"""A model on disk, described but not loaded: one safetensors file or a sharded one through its index.json."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from .dtypes import TORCH_DTYPES
from .errors import TpecError
from .header import TensorInfo, read_header

INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A validated header. `path` is what the user named, `files` hold the data, `digest` is the headers' SHA-256."""

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    digest: str

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def origin(self) -> Mapping[str, object]:
        """Nothing to tell: the file's name says where the weights are from."""
        return {}

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def reader(self) -> "Reader":
        return Reader(self)

    def identity(self) -> dict[str, object]:
        """What a resumed run compares: header digest, and size and mtime (ns) of every file."""
        stats = [os.stat(path) for path in self.files]
        return {"header": self.digest, "size": [s.st_size for s in stats], "mtime_ns": [s.st_mtime_ns for s in stats]}


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Validate the header of a .safetensors file, a *.safetensors.index.json, or a folder holding one of them."""
    path = _resolve(Path(path))
    if path.name.endswith(INDEX_SUFFIX):
        return _open_sharded(path)
    tensors, metadata, raw = read_header(path)
    if not tensors:
        raise TpecError(f"{path.name} holds no tensors.")
    return Checkpoint(path, (path,), MappingProxyType(tensors), MappingProxyType(metadata),
                      hashlib.sha256(raw).hexdigest())


def _resolve(path: Path) -> Path:
    if not os.path.isdir(path):  # False for a name that is too long, where Path.is_dir raises
        return path
    found = sorted(path.glob("*" + INDEX_SUFFIX)) or sorted(path.glob("*.safetensors"))
    if not found:
        raise TpecError(f"The folder {path} holds neither a *{INDEX_SUFFIX} nor a .safetensors file.")
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:4])
        raise TpecError(f"The folder {path} holds several models ({names}): name one of them.")
    return found[0]


def _open_sharded(path: Path) -> Checkpoint:
    shards = _shard_map(path)
    names = sorted(set(shards.values()))
    missing = [name for name in names if not os.path.isfile(path.parent / name)]
    if missing:
        raise TpecError(f"{path.name} needs {len(missing)} file(s) that are not beside it: {', '.join(missing[:6])}.")
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    digest = hashlib.sha256()
    for index, name in enumerate(names):
        infos, extra, raw = read_header(path.parent / name, index)
        doubled = sorted(tensors.keys() & infos.keys())
        if doubled:
            raise TpecError(f"Tensor '{doubled[0]}' is in two shards of {path.name}.")
        tensors |= infos
        metadata |= extra
        digest.update(raw)
    lost = sorted(shards.keys() - tensors.keys())
    if lost:
        raise TpecError(f"{path.name} lists tensor '{lost[0]}' in {shards[lost[0]]}, which does not hold it.")
    files = tuple(path.parent / name for name in names)
    return Checkpoint(path, files, MappingProxyType(tensors), MappingProxyType(metadata), digest.hexdigest())


def _shard_map(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
    except OSError as error:
        raise TpecError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise TpecError(f"{path.name} is not an index of shards (no 'weight_map').") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise TpecError(f"{path.name} lists no tensors.")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise TpecError(f"{path.name} names a shard that is not a plain .safetensors file name, for '{tensor}'.")
    return weight_map


class Reader:
    """Plain positional reads from a checkpoint's files; no mapping is held, so Windows needs no page file for it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files = [open(path, "rb", buffering=0) for path in checkpoint.files]

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files:
            file.close()

    def read_into(self, info: TensorInfo, buffer: memoryview, offset: int = 0) -> None:
        """Fill `buffer` with the tensor's bytes from `offset` on."""
        file = self._files[info.file]
        file.seek(info.start + offset)
        view = buffer.cast("B")
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise TpecError(f"{self._checkpoint.files[info.file].name} became shorter while it was read "
                                f"(tensor '{info.name}').")
            done += count

    def will_need(self, info: TensorInfo) -> None:
        """Let the system fetch these bytes meanwhile (Linux; elsewhere nothing happens)."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._files[info.file].fileno(), info.start, info.nbytes, os.POSIX_FADV_WILLNEED)

    def drop_cache(self, info: TensorInfo) -> None:
        """Tell the system that these bytes will not be read again (Linux; elsewhere nothing happens)."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._files[info.file].fileno(), info.start, info.nbytes, os.POSIX_FADV_DONTNEED)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its own dtype on the CPU."""
        info = self._checkpoint.tensors[name]
        if info.dtype not in TORCH_DTYPES:
            raise TpecError(f"Tensor '{name}' has dtype {info.dtype}, which this PyTorch cannot hold.")
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        if info.nbytes:
            self.read_into(info, memoryview(raw.numpy()))
        return raw.view(TORCH_DTYPES[info.dtype]).reshape(info.shape)
