"""Read and validate the header of one safetensors file before any tensor is touched.

Format: 8 bytes little-endian header length, a JSON object, then the data; offsets are relative to the data's start.
"""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import TpecError
from .dtypes import byte_count

#: The limit of the reference implementation.
MAX_HEADER_BYTES = 100_000_000
#: The data begins at a multiple of so many bytes.
_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies.

    dtype: the safetensors code ("BF16"). start: bytes from the file's beginning. nbytes: its size in bytes. file: the
    number of its file among those of the model.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    file: int = 0

    @property
    def items(self) -> int:
        """Number of elements, 1 for a scalar."""
        items = 1
        for size in self.shape:
            items *= size
        return items


def make_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]],
                metadata: Mapping[str, str]) -> tuple[bytes, dict[str, TensorInfo]]:
    """The first bytes of a file with these tensors (dtype code, shape), in this order, and where each will lie.

    Raises ValueError for a dtype code that is not known.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    spans: dict[str, tuple[int, int]] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = byte_count(dtype, shape)
        if size is None:
            raise ValueError(f"dtype {dtype} is not known")
        spans[name] = at, at + size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    start = 8 + len(text)
    infos = {name: TensorInfo(name, *tensors[name], start + first, end - first)
             for name, (first, end) in spans.items()}
    return struct.pack("<Q", len(text)) + text, infos


def read_header(path: Path, file_index: int = 0) -> tuple[dict[str, TensorInfo], dict[str, str], bytes]:
    """Tensors by name in the order of the data, metadata, and the JSON's bytes.

    `file_index` becomes the tensors' `file`. Raises TpecError for anything malformed, also where data is missing,
    overlaps or is left over.
    """
    raw, data_start, file_size = _raw_header(path)
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise TpecError(f"{path.name} has a header that is not valid JSON ({error}): "
                        "the file is damaged, download it again.") from None
    if not isinstance(header, dict):
        raise TpecError(f"{path.name} has a header that is not a JSON object: the file is damaged.")
    metadata = _metadata(path, header.pop("__metadata__", {}))
    infos = [_tensor_info(path, name, entry, data_start, file_index) for name, entry in header.items()]
    infos.sort(key=lambda info: (info.start, info.nbytes))
    _check_layout(path, infos, data_start, file_size)
    return {info.name: info for info in infos}, metadata, raw


def _raw_header(path: Path) -> tuple[bytes, int, int]:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(8)
            _refuse_other_formats(path, head, size)
            (length,) = struct.unpack("<Q", head)
            if length > MAX_HEADER_BYTES:
                raise TpecError(f"{path.name} claims a header of {length} bytes: it is not a safetensors file, "
                                "or it is damaged.")
            if 8 + length > size:
                raise TpecError(f"{path.name} ends inside its header ({size} bytes on disk, {8 + length} needed): "
                                "the download is incomplete.")
            return file.read(length), 8 + length, size
    except IsADirectoryError:
        raise TpecError(f"{path} is a folder, not a safetensors file.") from None
    except FileNotFoundError:
        raise TpecError(f"There is no file {path}.") from None
    except OSError as error:
        raise TpecError(f"{path} cannot be read: {error.strerror}.") from None


def _refuse_other_formats(path: Path, head: bytes, size: int) -> None:
    if size == 0:
        raise TpecError(f"{path.name} is empty.")
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        raise TpecError(f"{path.name} is a pickled PyTorch checkpoint, not safetensors: convert it first "
                        "(for example with ComfyUI's ModelSave node).")
    if head.startswith(b"version "):
        raise TpecError(f"{path.name} is a Git LFS pointer, not the model itself: run `git lfs pull`.")
    if head.startswith(b"GGUF"):
        raise TpecError(f"{path.name} is a GGUF file, which is quantized already: use the original safetensors file.")
    if size < 8:
        raise TpecError(f"{path.name} has only {size} bytes: it is not a safetensors file.")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _metadata(path: Path, value: object) -> dict[str, str]:
    if value is None:  # the reference implementation takes it for none, too
        return {}
    if not isinstance(value, dict):
        raise TpecError(f"{path.name} has metadata that is not a table of strings, which no reader takes: load its "
                        "tensors and save them again with safetensors.")
    wrong = next((key for key, text in value.items() if not isinstance(text, str)), None)
    if wrong is not None:
        raise TpecError(f"{path.name} has metadata that is not a table of strings ('{wrong}' is none): save the file "
                        "again with safetensors, with this value as text or without it.")
    return value


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _tensor_info(path: Path, name: str, entry: object, data_start: int, file_index: int) -> TensorInfo:
    damaged = f"{path.name} has a malformed header entry for tensor '{name}'"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise TpecError(f"{damaged}: dtype, shape or data_offsets is missing.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise TpecError(f"{damaged}: its dtype is not a name.")
    if not isinstance(shape, list) or not all(_natural(size) for size in shape):
        raise TpecError(f"{damaged}: its shape is not a list of sizes.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_natural(at) for at in offsets):
        raise TpecError(f"{damaged}: its data_offsets are not two positions.")
    start, end = offsets
    expected = byte_count(dtype, tuple(shape))
    if end < start or (expected is not None and end - start != expected):
        raise TpecError(f"{damaged}: {end - start} bytes are given where {dtype} {shape} needs {expected}.")
    return TensorInfo(name, dtype, tuple(shape), data_start + start, end - start, file_index)


def _check_layout(path: Path, infos: list[TensorInfo], data_start: int, file_size: int) -> None:
    at = data_start
    for info in infos:
        if info.start != at:
            kind = "overlaps its neighbour" if info.start < at else "leaves a hole before it"
            raise TpecError(f"{path.name} is damaged: tensor '{info.name}' {kind}.")
        at += info.nbytes
    if at > file_size:
        raise TpecError(f"{path.name} is cut short: {file_size} bytes on disk, its header needs {at}; "
                        "the download is incomplete.")
    if at < file_size:
        raise TpecError(f"{path.name} has {file_size - at} bytes after its last tensor: the file is damaged.")
