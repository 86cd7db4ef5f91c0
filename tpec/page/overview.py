"""A report's layers as a chart shows them: a place for each, quantized or kept, grouped by block."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ..run.report import KeptLayer, LayerReport, Report

#: So many of the layers with the largest errors are named.
WORST = 5
_BLOCK = re.compile(r"(.*?)\.(\d{1,9})(?:\.|$)")


@dataclass(frozen=True)
class Slot:
    """One place across: a layer that was quantized, or one that was kept."""

    layer: LayerReport | KeptLayer

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def quantized(self) -> LayerReport | None:
        return self.layer if isinstance(self.layer, LayerReport) else None

    @property
    def height(self) -> float:
        """The larger of the layer's errors, its own and that of plain rounding; 0 for one that was kept."""
        return max(self.quantized.error, self.quantized.nearest_error) if self.quantized else 0.0

    @property
    def block(self) -> tuple[str, int]:
        """The name before the first number and that number; ('', -1) outside of blocks."""
        found = _BLOCK.match(self.name)
        return (found[1], int(found[2])) if found else ("", -1)


@dataclass(frozen=True)
class Block:
    """The layers of one numbered block; number -1 for those outside of blocks."""

    section: str
    number: int
    slots: tuple[Slot, ...]

    @property
    def title(self) -> str:
        return f"{self.section}.{self.number}" if self.number >= 0 else "outside of blocks"


@dataclass(frozen=True)
class Section:
    """All blocks of one name; '' for what is in no block."""

    name: str
    blocks: tuple[Block, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(slot for block in self.blocks for slot in block.slots)

    @property
    def quantized(self) -> int:
        """How many of the layers were quantized."""
        return sum(slot.quantized is not None for slot in self.slots)


def sections(report: Report) -> tuple[Section, ...]:
    """Blocks by number, in the order in which their names first appear; what is in no block at the end.

    A number alone makes no block: where none of a name's layers were quantized, or there is only one, they are in none.
    """
    slots = [Slot(layer) for layer in (*report.layers, *report.kept_layers)]
    members = Counter(slot.block[0] for slot in slots)
    worked_on = {slot.block[0] for slot in slots if slot.quantized}
    order = {name: index for index, name in enumerate(name for name in members if members[name] > 1
                                                      and name in worked_on and name)}

    def place(slot: Slot) -> tuple[int, int]:
        name, number = slot.block
        return (order[name], number) if name in order else (len(order), -1)

    names = [*order, ""]
    slots.sort(key=lambda slot: (place(slot), slot.name))
    blocks = [Block(names[at], number, tuple(group)) for (at, number), group in groupby(slots, key=place)]
    return tuple(Section(name, tuple(group)) for name, group in groupby(blocks, key=lambda block: block.section))


def top_of(report: Report) -> float:
    """The largest error of any layer, which a chart's axis reaches up to; never 0."""
    return max((Slot(layer).height for layer in report.layers), default=0.0) or 1.0


def ticks(top: float) -> list[float]:
    """At most seven round shares from 0 on, the last not above `top`."""
    step = next(unit for unit in (digit * 10.0**power for power in range(-300, 300) for digit in (1, 2, 5))
                if top / unit <= 6)
    return [index * step for index in range(int(top / step) + 1)]


def size(nbytes: int) -> str:
    """In GB, or in MB or kB where that is more readable."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if nbytes >= unit), (1e3, "kB"))
    return f"{nbytes / unit:.3g} {name}" if nbytes < 100 * unit else f"{nbytes / unit:.0f} {name}"


def shortened(name: str, most: int) -> str:
    """A name of at most `most` characters, with dots in place of its middle."""
    return name if len(name) <= most else f"{name[:most // 2 - 2]}...{name[-(most // 2 - 1):]}"


def metrics(layers: Sequence[LayerReport]) -> dict[str, int]:
    """How many layers were rounded for what, in a user's words."""
    return Counter(METRICS.get(layer.metric, layer.metric) for layer in layers)


#: What `LayerReport.metric` means.
METRICS = {"nearest": "plain rounding", "weight": "by the weights alone", "activation": "calibrated",
           "gradient": "calibrated, with sensitivity"}
