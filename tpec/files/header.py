"""Read and validate the header of one safetensors file before any tensor is touched.

Format: 8 bytes little-endian header length, a JSON object, then the data; offsets are relative to the data's start.
"""

import json
import os
import stat
import struct
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import TpecError
from .dtypes import LARGEST, byte_count
from .replace import disk_fault

#: The limit of the reference implementation.
MAX_HEADER_BYTES = 100_000_000
#: The data begins at a multiple of so many bytes.
_ALIGNMENT = 8
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})
#: Levels of JSON that the reference implementation takes.
_DEEPEST = 127


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies. `dtype` is the safetensors code ("BF16"); `start` is an absolute offset in file `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int
    file: int = 0

    @property
    def items(self) -> int:
        items = 1
        for size in self.shape:
            items *= size
        return items


class Header(NamedTuple):
    """What a file says of itself.

    tensors: by name, in the order of the data. metadata: its `__metadata__`. raw: the header's bytes. state: size
    (bytes) and mtime (ns) of the file just before they were read.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    raw: bytes
    state: tuple[int, int]


def size_and_time(handle: int) -> tuple[int, int]:
    """Size (bytes) and mtime (ns) of an open file. Raises OSError."""
    found = os.fstat(handle)
    return found.st_size, found.st_mtime_ns


def make_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]],
                metadata: Mapping[str, str]) -> tuple[bytes, dict[str, TensorInfo]]:
    """The first bytes of a file with these tensors (dtype code, shape), in this order, and where each will lie."""
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


def read_header(path: Path, file_index: int = 0) -> Header:
    """The header of a file, which is number `file_index` of its model. Raises TpecError for anything malformed.

    What the reference implementation refuses is refused. Beyond that are refused: a key that appears twice, which the
    format forbids (the reference takes the last), and an entry or dtype in a form that the format does not know.
    """
    raw, data_start, state = _raw_header(path)
    try:
        header = strict_json(raw)
    except DoubledKey as error:
        raise TpecError(f"{path.name} has a header that names {error}: the file is damaged, download it "
                        "again.") from None
    except (ValueError, RecursionError) as error:
        raise TpecError(f"{path.name} has a header that is not valid JSON ({error}): "
                        "the file is damaged, download it again.") from None
    if not isinstance(header, dict):
        raise TpecError(f"{path.name} has a header that is not a JSON object: the file is damaged, download it "
                        "again.")
    metadata = _metadata(path, header.pop("__metadata__", {}))
    infos = [_tensor_info(path, name, entry, data_start, file_index) for name, entry in header.items()]
    infos.sort(key=lambda info: (info.start, info.nbytes))
    _check_layout(path, infos, data_start, state[0])
    return Header({info.name: info for info in infos}, metadata, raw, state)


def _raw_header(path: Path) -> tuple[bytes, int, tuple[int, int]]:
    """The header's bytes, where the data begins, and the file's size and time."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise TpecError(f"{path} is no file on a disk: save the model as one.")  # to open a pipe may wait for ever
        with open(path, "rb") as file:
            state = size, _ = size_and_time(file.fileno())
            head = file.read(8)
            length = int.from_bytes(head, "little")
            # Only then: other formats' first bytes are header lengths as well, 80 02 that of 640 bytes.
            if size < 8 + length:
                _refuse_other_formats(path, head, size)
            if length > MAX_HEADER_BYTES:
                raise TpecError(f"{path.name} claims a header of {length} bytes: it is not a safetensors file, "
                                "or it is damaged: download it again.")
            if 8 + length > size:
                raise TpecError(f"{path.name} ends inside its header ({size} bytes on disk, {8 + length} needed): "
                                "the download is incomplete, repeat it.")
            return file.read(length), 8 + length, state
    except IsADirectoryError:
        raise TpecError(f"{path} is a folder, not a safetensors file: name a file in it.") from None
    except FileNotFoundError:
        raise TpecError(f"There is no file {path}: check its name.") from None
    except OSError as error:
        raise TpecError(disk_fault(error, path, "read")) from None


def _refuse_other_formats(path: Path, head: bytes, size: int) -> None:
    if size == 0:
        raise TpecError(f"{path.name} is empty: download it again.")
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")):
        raise TpecError(f"{path.name} is a pickled PyTorch checkpoint, not safetensors: convert it first "
                        "(for example with ComfyUI's ModelSave node).")
    if head.startswith(b"version "):
        raise TpecError(f"{path.name} is a Git LFS pointer, not the model itself: run `git lfs pull`.")
    if head.startswith(b"GGUF"):
        raise TpecError(f"{path.name} is a GGUF file, which is quantized already: use the original safetensors file.")
    if size < 8:
        raise TpecError(f"{path.name} has only {size} bytes: it is not a safetensors file, download it again.")


class DoubledKey(ValueError):
    """A JSON object has one key twice; the message names it."""


def strict_json(raw: bytes) -> Any:
    """JSON as its standard (RFC 8259) has it: UTF-8 without a mark, no key twice, no NaN, no half of a character.

    Raises ValueError or RecursionError. -0 is read as -1, as it is no size and no position.
    """
    integer = _integer if b"-0" in raw else None
    value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number, parse_int=integer)
    if b"\\ud" in raw or b"\\uD" in raw:
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # fails for the halves
    return value


def _integer(text: str) -> int:
    return -1 if text == "-0" else int(text)


def _no_number(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise DoubledKey(f"'{max(counts, key=counts.__getitem__)[:200]}' twice")
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
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _tensor_info(path: Path, name: str, entry: object, data_start: int, file_index: int) -> TensorInfo:
    if not isinstance(entry, dict) or not _FIELDS <= entry.keys():
        raise _malformed(path, name, "dtype, shape or data_offsets is missing")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise _malformed(path, name, "its dtype is not a name")
    if not isinstance(shape, list) or not all(_natural(size) for size in shape):
        raise _malformed(path, name, "its shape is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_natural(at) for at in offsets):
        raise _malformed(path, name, "its data_offsets are not two positions")
    if not all(_plain(entry[key], _DEEPEST - 2) for key in entry.keys() - _FIELDS):
        raise _malformed(path, name, "it holds something that no reader takes")
    _check_size(path, name, dtype, shape, offsets)
    return TensorInfo(name, dtype, tuple(shape), data_start + offsets[0], offsets[1] - offsets[0], file_index)


def _check_size(path: Path, name: str, dtype: str, shape: list[int], offsets: list[int]) -> None:
    """Raises TpecError unless the tensor's bytes are as many as its dtype and shape need."""
    try:
        expected = byte_count(dtype, shape)
    except (OverflowError, ValueError) as error:
        raise _malformed(path, name, f"{dtype} {_shown(shape)} is not possible ({error})") from None
    if expected is None:
        raise TpecError(f"Tensor '{name}' of {path.name} has dtype {dtype}, which is not known here: "
                        "update this program, or use a bf16 or fp16 file.")
    start, end = offsets
    if end - start != expected:
        raise _malformed(path, name, f"{end - start} bytes are given where {dtype} {_shown(shape)} needs {expected}")


def _malformed(path: Path, name: str, why: str) -> TpecError:
    return TpecError(f"{path.name} has a malformed header entry for tensor '{name}': {why}; the file is damaged, "
                     "download it again.")


def _shown(shape: list[int]) -> str:
    return str(shape) if len(shape) <= 8 else f"[{', '.join(map(str, shape[:8]))}, ... {len(shape)} sizes]"


def _plain(value: object, levels: int) -> bool:
    """Whether JSON beyond the format's own fields is such that strict parsers take it: finite, not too deep."""
    if isinstance(value, (dict, list)):
        inner = value.values() if isinstance(value, dict) else value
        return levels > 0 and all(_plain(item, levels - 1) for item in inner)
    return not isinstance(value, (int, float)) or abs(value) <= sys.float_info.max


def _check_layout(path: Path, infos: list[TensorInfo], data_start: int, file_size: int) -> None:
    at = data_start
    for info in infos:
        if info.start != at:
            kind = "overlaps its neighbour" if info.start < at else "leaves a hole before it"
            raise TpecError(f"{path.name} is damaged (tensor '{info.name}' {kind}): download it again.")
        at += info.nbytes
    if at > file_size:
        raise TpecError(f"{path.name} is cut short: {file_size} bytes on disk, its header needs {at}; "
                        "the download is incomplete, repeat it.")
    if at < file_size:
        raise TpecError(f"{path.name} has {file_size - at} bytes after its last tensor: the file is damaged, download "
                        "it again.")
