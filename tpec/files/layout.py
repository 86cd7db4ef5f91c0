"""Where every tensor of the output lies, known to the byte before the first layer is computed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import TpecError
from .dtypes import ITEM_BYTES
from .header import MAX_HEADER_BYTES, TensorInfo, make_header


@dataclass(frozen=True)
class Layout:
    """Where everything lies.

    header: the file's first bytes. entries: every tensor by name, `start` from the file's beginning. constants: the
    bytes of those tensors that are known before the run. nbytes: the file's size. notes: sentences for the report.
    """

    header: bytes
    entries: Mapping[str, TensorInfo]
    constants: Mapping[str, bytes]
    nbytes: int
    notes: tuple[str, ...] = ()


def place(shapes: Mapping[str, tuple[str, tuple[int, ...]]], constants: Mapping[str, bytes],
           metadata: Mapping[str, str], foreign: Mapping[str, str]) -> Layout:
    """Lay out tensors, wide items first so that each is aligned to its item size.

    shapes: dtype code and shape by name. constants: the bytes of those that are known already. metadata: all that the
    header will hold. foreign: what of it came from the source.

    A header too large for any reader loses the largest entries of `foreign`, with a note.
    Raises TpecError when that does not help.
    """
    # Wide items first keeps every tensor aligned to its item size, as the reference writer does.
    names = sorted(shapes, key=lambda name: -ITEM_BYTES.get(shapes[name][0], 1))
    ordered = {name: shapes[name] for name in names}
    header, entries = make_header(ordered, metadata)
    left_out = _too_much(len(header) - 8 - MAX_HEADER_BYTES, metadata, foreign)
    notes = ()
    if left_out:
        header, entries = make_header(ordered, {key: metadata[key] for key in metadata.keys() - left_out})
        notes = ("The header would be too large for any reader, so this metadata of the source was left out: "
                 + ", ".join(left_out),)
    return Layout(header, entries, dict(constants), len(header) + sum(entry.nbytes for entry in entries.values()),
                  notes)


def _too_much(excess: int, metadata: Mapping[str, str], foreign: Mapping[str, str]) -> list[str]:
    """Keys of the source's metadata, largest first, without which the header is smaller by `excess` bytes."""
    sizes = {key: len(json.dumps({key: text})) - 2 for key, text in foreign.items() if metadata.get(key) == text}
    left_out = []
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if excess <= 0:
            break
        left_out.append(key)
        excess -= sizes[key]
    if excess > 0:
        raise TpecError(f"The result's header would be {excess} bytes over the {MAX_HEADER_BYTES} that safetensors "
                        "allows: quantize fewer layers (--exclude), or take another format.")
    return left_out
