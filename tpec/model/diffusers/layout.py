"""The words of the tables: where each tensor of a diffusers layout belongs in ComfyUI's."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

#: The first number of a name, that of its block.
_BLOCK = re.compile(r"([^.]+)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Place:
    """A tensor's place in ComfyUI's layout: the `position`-th of `count` pieces of `target`, one below the other.

    `swapped`: the upper and the lower half change places (diffusers has scale before shift).
    """

    target: str
    position: int = 0
    count: int = 1
    swapped: bool = False


@dataclass(frozen=True)
class Layout:
    """A diffusers layout as data.

    needs: tensors that tell it. modules: ComfyUI's modules with a weight, a bias or both, and the modules of the
    diffusers model that they are made of, in the order of their rows. tensors: other tensors, likewise. `#` is the
    block's number. swapped: ComfyUI's modules whose halves change places; swapped_in_last: only in the last block.
    """

    title: str
    needs: tuple[str, ...]
    modules: Mapping[str, tuple[str, ...]]
    tensors: Mapping[str, str]
    swapped: tuple[str, ...] = ()
    swapped_in_last: str = ""

    def fits(self, names: Collection[str]) -> bool:
        return all(need in names for need in self.needs)

    @cached_property
    def _places(self) -> dict[str, Place]:
        """By the tensor's name in diffusers, with `#` for the block's number."""
        places = {theirs: Place(ours) for ours, theirs in self.tensors.items()}
        for ours, parts in self.modules.items():
            for at, theirs in enumerate(parts):
                for end in ("weight", "bias"):
                    places[f"{theirs}.{end}"] = Place(f"{ours}.{end}", at, len(parts), ours in self.swapped)
        return places

    def places(self, names: Collection[str]) -> dict[str, Place | None]:
        """Every tensor's place, None where there is none."""
        blocks = [int(match[2]) for match in map(_BLOCK.fullmatch, names) if match]
        last = max(blocks, default=0)
        return {name: self._place(name, last) for name in names}

    def _place(self, name: str, last: int) -> Place | None:
        if name in self._places:
            return self._places[name]
        match = _BLOCK.fullmatch(name)
        place = self._places.get(f"{match[1]}.#.{match[3]}") if match else None
        if match is None or place is None:
            return None
        swapped = bool(self.swapped_in_last) and int(match[2]) == last and (
            place.target.rpartition(".")[0] == self.swapped_in_last)
        return Place(place.target.replace("#", match[2]), place.position, place.count, place.swapped or swapped)


def within(ours: str, theirs: str, modules: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Modules of a block, {ours: theirs}, under the block's names; several of theirs are separated by blanks."""
    return {f"{ours}.{name}": tuple(f"{theirs}.{part}" for part in parts.split()) for name, parts in modules.items()}
