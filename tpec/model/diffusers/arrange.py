"""Recognise a diffusers layout by its tensors' names and make the view that has ComfyUI's."""

from collections.abc import Iterator, Mapping

from ...errors import TpecError
from ...files.header import TensorInfo
from ...files.source import Source
from ..families import foreign
from ..quantized import refuse_quantized
from . import unet
from .layout import Place
from .transformers import TRANSFORMERS
from .view import Rows, View, make_view

#: The models that are known in diffusers layout, by title.
LAYOUTS = (unet.TITLE, *(layout.title for layout in TRANSFORMERS))
_Piece = tuple[Place, TensorInfo]


def in_comfyui_layout(source: Source) -> Source:
    """`source` as it is, or a view of it if its tensors have the names of a known diffusers layout.

    Adapters and ControlNets are left as they are, to be refused by what they are. Raises TpecError for a quantized
    model, for a tensor that ComfyUI's layout has no place for, and for a model that lacks one.
    """
    found = None if isinstance(source, View) else _places(source.tensors)
    if found is None or foreign(source.tensors):
        return source
    title, places = found
    refuse_quantized(source, source.tensors, "it")
    lost = next((name for name, place in places.items() if place is None), None)
    if lost is not None:
        raise TpecError(f"{source.name} looks like a {title} in diffusers layout, but it holds '{lost}', which has no "
                        "place in ComfyUI's layout: use the model's file in ComfyUI's layout.")
    targets: dict[str, list[_Piece]] = {}
    for name, info in source.tensors.items():
        place = places[name]
        if place is not None:
            targets.setdefault(place.target, []).append((place, info))
    rows = {target: tuple(_rows(source.name, target, pieces)) for target, pieces in targets.items()}
    return make_view(source, rows, f"{title} in diffusers layout, read and written in ComfyUI's")


def _places(tensors: Mapping[str, TensorInfo]) -> tuple[str, dict[str, Place | None]] | None:
    for layout in TRANSFORMERS:
        if layout.fits(tensors):
            return layout.title, layout.places(tensors)
    return (unet.TITLE, unet.places(tensors)) if unet.fits(tensors) else None


def _rows(model: str, target: str, pieces: list[_Piece]) -> Iterator[Rows]:
    """What `target` is made of, in order, after checking that it all fits together."""
    pieces = sorted(pieces, key=lambda piece: piece[0].position)
    first_place, first = pieces[0]
    if [place.position for place, _ in pieces] != list(range(first_place.count)):
        raise TpecError(f"{model} is only a part of a model in diffusers layout: of what becomes {target} it holds "
                        f"{', '.join(info.name for _, info in pieces)} and not the rest. If the model was split into "
                        "several files, name its index (*.index.json) or the folder with all of them.")
    for place, info in pieces:
        if (info.dtype, info.shape[1:]) != (first.dtype, first.shape[1:]):
            raise TpecError(f"In {model} '{first.name}' ({first.dtype}) and '{info.name}' ({info.dtype}), which "
                            "become one tensor, have different dtypes or widths: convert the model to one dtype.")
        if place.swapped:
            if info.shape[0] % 2:
                raise TpecError(f"In {model} '{info.name}' has {info.shape[0]} rows, which is no scale and shift: the "
                                "file is damaged, download it again.")
            half = info.nbytes // 2
            yield Rows(info, half, half)
            yield Rows(info, 0, half)
        else:
            yield Rows(info, 0, info.nbytes)
