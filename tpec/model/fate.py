"""One Linear's fate: what the table of families says, and whether the installed ComfyUI agrees."""

import re
from collections.abc import Iterable

from ..settings import Settings
from .families import GENERIC, KEEP, QUANTIZE, Action, Family
from .structure import Structure

_NUMBERED = re.compile(r"\.\d+(?=\.)")


class Agreement:
    """Holds the table's Linears against those of the installed ComfyUI and remembers where they differ."""

    def __init__(self, family: Family, structure: Structure | None) -> None:
        self._family, self._structure = family, structure
        self._generic = family.name == GENERIC.name
        self._rows = _numbered_rows(structure.linears) if structure and self._generic else frozenset()
        self._unbuilt: list[str] = []
        self._unknown: list[str] = []

    def linear(self, module: str) -> bool:
        """Whether every source that there is calls `module` a Linear."""
        known = self._generic or self._family.is_linear(module)
        return known and (self._structure is None or module in self._structure.linears)

    def in_block(self, module: str) -> bool:
        """Whether `module` lies in a numbered block; of a model that only ComfyUI knows, these become FP8."""
        return _row(module) in self._rows if self._generic else self._family.in_block(module)

    def objection(self, module: str) -> str:
        """Why a module stays although one of the sources calls it a Linear, or '' if neither does."""
        built = self._structure is not None and module in self._structure.linears
        if self._family.is_linear(module):
            self._unbuilt.append(module)
            return "this ComfyUI has no Linear of that name, so it would ignore its scale"
        if built and not self._generic:
            self._unknown.append(module)
            return "a Linear of this ComfyUI that the table of families does not know"
        return ""

    def notes(self) -> tuple[str, ...]:
        """Sentences for the plan's summary."""
        notes = []
        if self._generic and self._structure is not None:
            notes.append(f"{self._structure.name} is not in the table of families: Linears inside numbered blocks "
                         "become FP8, all else stays as it is")
        elif self._structure is not None and self._structure.name not in self._family.classes:
            notes.append(f"ComfyUI takes this model for {self._structure.name}, the table of families for "
                         f"{self._family.title}: only layers that both call Linears become FP8")
        if self._unbuilt:
            notes.append(f"{len(self._unbuilt)} layers stay because this ComfyUI has no Linear of their name "
                         f"(the first is {self._unbuilt[0]})")
        if self._unknown:
            notes.append(f"{len(self._unknown)} Linears stay because the table of families does not know them "
                         f"(the first is {self._unknown[0]})")
        return tuple(notes)


def fate(module: str, family: Family, settings: Settings, included: bool,
         agreement: Agreement) -> tuple[Action, str]:
    """Action and reason for a 2-D floating-point weight; `included` says that the user named it."""
    kept = family.kept(module, settings)
    if not agreement.linear(module):
        reason = agreement.objection(module) if kept is None or included else kept.reason
        wish = "named by include, but " if included else ""
        return KEEP, wish + (reason or f"not a Linear that ComfyUI scales in {family.title}")
    if included:
        return QUANTIZE, "included by you"
    if kept is not None:
        return KEEP, kept.reason
    if agreement.in_block(module):
        return QUANTIZE, f"Linear of {'an encoder' if family.kind == 'text_encoders' else 'a transformer'} block"
    if family.name == GENERIC.name:
        return KEEP, "outside the numbered blocks"
    return QUANTIZE, "Linear outside the blocks"


def _row(module: str) -> str:
    """The module's name with block numbers as '#', so that equal layers of all blocks are one."""
    return _NUMBERED.sub(".#", module)


def _numbered_rows(linears: Iterable[str]) -> frozenset[str]:
    """The rows of at least two equal Linears in differently numbered blocks."""
    counts: dict[str, int] = {}
    for module in linears:
        counts[_row(module)] = counts.get(_row(module), 0) + 1
    return frozenset(row for row, count in counts.items() if count > 1 and "#" in row)
