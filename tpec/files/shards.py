"""Models of several files: an index is known by what it holds, shards without one by their own names."""

import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from ..errors import TpecError
from .header import MAX_HEADER_BYTES, DoubledKey, strict_json
from .naming import DIFFUSION_FOLDERS, ShardName, is_bare_name, is_default_output, is_model_name, shard_name
from .replace import disk_fault, is_file, is_folder, mode_of

#: What makes a folder that of a diffusers pipeline.
PIPELINE = "model_index.json"
#: The largest index; that of a model with a hundred thousand tensors has a tenth of it.
_MAX_INDEX_BYTES = 64 << 20


def is_index(path: Path) -> bool:
    """Whether `path` is text (JSON) where a safetensors file would begin with the length of its header.

    Raises TpecError where the disk does not say what it is.
    """
    if path.name.lower().endswith(".json"):
        return True
    if not is_file(path):  # to open a pipe may wait for ever
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError:
        return False  # the sentence for that comes from who reads the header
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    return text and (len(head) < 8 or struct.unpack("<Q", head[:8])[0] > MAX_HEADER_BYTES)


def shard_map(path: Path) -> dict[str, str]:
    """An index's shard file name by tensor name. Raises TpecError for anything else."""
    try:
        weight_map = strict_json(_text(path))["weight_map"]
    except OSError as error:
        raise TpecError(disk_fault(error, path, "read")) from None
    except DoubledKey as error:
        raise TpecError(f"{path.name} names {error}: the file is damaged, download it again.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        kind = "neither a safetensors file nor" if is_model_name(path.name) else "not"
        raise TpecError(f"{path.name} is {kind} an index of shards (no 'weight_map'): choose the model's "
                        "own file or index.") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise TpecError(f"{path.name} lists no tensors: download it again.")
    for tensor, name in weight_map.items():
        if not _is_plain(name):
            raise TpecError(f"{path.name} names a shard that is not a plain .safetensors file name, for '{tensor}': "
                            "use an index that names files of its own folder.")
    return weight_map


def _text(path: Path) -> bytes:
    """An index's bytes without the mark that Windows' editors put before them. Raises OSError, or TpecError."""
    mode = mode_of(path)
    if mode and not stat.S_ISREG(mode):
        raise TpecError(f"{path} is no file on a disk: name the index itself.")
    with open(path, "rb") as file:
        text = file.read(_MAX_INDEX_BYTES + 1)
    if len(text) > _MAX_INDEX_BYTES:
        raise TpecError(f"{path.name} is too large for an index of shards ({_MAX_INDEX_BYTES >> 20} MiB at most): "
                        "choose the model's own file or index.")
    return text.removeprefix(b"\xef\xbb\xbf")


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and is_bare_name(name) and is_model_name(name)


def indexes(folder: Path) -> dict[str, set[str]]:
    """The shards' names by index name, for every readable index in the folder. Raises OSError."""
    found = {}
    for name in _file_names(folder):
        if not is_model_name(name) and (".json" in name.lower() or "index" in name.lower()):
            shards = _listed_shards(folder / name)
            if shards:
                found[name] = shards
    return found


def _listed_shards(path: Path) -> set[str]:
    """The files that an index names, none for any other file."""
    try:
        if os.path.getsize(path) > _MAX_INDEX_BYTES or b'"weight_map"' not in path.read_bytes():
            return set()
        return set(shard_map(path).values())
    except (OSError, TpecError):
        return set()


def _file_names(folder: Path) -> list[str]:
    """Files in the folder but hidden ones (such as macOS leaves beside each)."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))


def model_in(folder: Path) -> Path:
    """The index or file of the only model in a folder; shards are one model. Raises TpecError for none or several.

    In the folder of a whole diffusers pipeline, which holds no model itself, that of its diffusion model.
    """
    try:
        names = _file_names(folder)
        found = sorted({*indexes(folder), *(name for name in names if name.endswith(".safetensors.index.json"))})
    except OSError as error:
        raise TpecError(f"The folder {disk_fault(error, folder, 'read')}") from None
    if not found:
        found = _models(name for name in names if is_model_name(name))
    if PIPELINE in names and all(map(is_default_output, found)):
        parts = [folder / part for part in DIFFUSION_FOLDERS if is_folder(folder / part)]
        if parts:
            return model_in(parts[0])
    if not found:
        raise TpecError(f"The folder {folder} holds neither an index of shards (such as model.safetensors.index.json) "
                        "nor a .safetensors or .sft file: choose the model's own.")
    if len(found) > 1:
        raise TpecError(f"The folder {folder} holds several models ({', '.join(found[:4])}): name one of them.")
    return folder / found[0]


def _models(names: Iterable[str]) -> list[str]:
    """One name for each model: the first of those that are shards of the same.

    Results of earlier runs, which lie beside their source unless told otherwise, are none while there is another.
    """
    models: dict[object, str] = {}
    for name in names:
        shard = shard_name(name)
        models.setdefault((shard.stem, shard.total, shard.ending) if shard else name, name)
    return [name for name in models.values() if not is_default_output(name)] or list(models.values())


def index_beside(shard: Path) -> Path | None:
    """The index in the shard's folder that lists it. Raises TpecError when several do."""
    try:
        found = [name for name, shards in indexes(shard.parent).items() if shard.name in shards]
    except OSError:
        return None
    if len(found) > 1:
        raise TpecError(f"{shard.name} belongs to several indexes ({', '.join(found[:4])}): name one of them.")
    return shard.with_name(found[0]) if found else None


def siblings(path: Path, shard: ShardName) -> list[str]:
    """The names of all shards of a model that has no index. Raises TpecError that names those that are not there."""
    names = [shard.sibling(number) for number in range(1, shard.total + 1)]
    missing = [name for name in names if not is_file(path.with_name(name))]
    if missing:
        shown = ", ".join(missing[:6]) + (", ..." if len(missing) > 6 else "")
        raise TpecError(f"{path.name} is one of {shard.total} shards of a model, which is not complete without "
                        f"{shown}: download what is missing into the same folder.")
    return names
