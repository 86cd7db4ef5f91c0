"""Charts of a report in HTML and SVG: bars stretch with the page, words keep their size and stand beside them."""

from collections.abc import Sequence

from ..run.report import LayerReport
from .markup import Markup, element, join
from .overview import Section, Slot, ticks

#: Layers from which on bars have no room for a gap, and the inner bar none for a margin.
_DENSE, _NARROW = 160, 60
#: Block numbers that fit across the chart of a wide and of a narrow page.
_WIDE_LABELS, _NARROW_LABELS = 30, 11


def legend(kept: int) -> Markup:
    """What the chart's colours mean."""
    return element("ul", element("li", "plain FP8 rounding", class_="plain"), element("li", "this file", class_="result"),
                   element("li", f"kept in high precision ({kept})", class_="mark"), class_="legend")


def section_chart(section: Section, top: float, worst: Sequence[LayerReport], width: float) -> Markup:
    """The bars of the blocks of one name. The axis ends at `top`, the `worst` layers are numbered; `width` is the share
    of the page that it takes where several fit beside each other."""
    slots, count = section.slots, sum(slot.quantized is not None for slot in section.slots)
    title = element("h3", element("code", section.name) if section.name else "outside of blocks", " ",
                    element("small", _counted(section, count, len(slots) - count)))
    area = element("div", _axis(top), _svg(section, top), _ranks(slots, top, worst), class_="area")
    return element("section", title, area, _numbers(section), class_="plot", style=f"flex-grow: {width:.3f}")


def _counted(section: Section, quantized: int, kept: int) -> str:
    blocks = f"{len(section.blocks)} blocks, " if section.name and len(section.blocks) > 1 else ""
    return f"{blocks}{quantized} layers in FP8" + (f", {kept} kept" if kept else "")


def _axis(top: float) -> Markup:
    return join(*(element("span", f"{100 * tick:.3g} %", class_="tick", style=f"bottom: {_percent(tick, top)}")
                  for tick in ticks(top)))


def _svg(section: Section, top: float) -> Markup:
    """One unit across for each layer and 100 up; stretched to the size of its place."""
    slots = section.slots
    bars = [_slot(slot, index, len(slots), top) for index, slot in enumerate(slots)]
    return element("svg", *_bands(section), *bars, viewBox=f"0 0 {len(slots)} 100", preserveAspectRatio="none",
                   role="img", **{"aria-label": f"Errors of {len(slots)} layers; the table below has them in numbers."})


def _bands(section: Section) -> list[Markup]:
    """Every other block on a shaded ground."""
    found, at = [], 0
    for index, block in enumerate(section.blocks):
        if index % 2:
            found.append(element("rect", class_="band", x=at, y=0, width=len(block.slots), height=100))
        at += len(block.slots)
    return found


def _slot(slot: Slot, index: int, count: int, top: float) -> Markup:
    gap = 0.0 if count > _DENSE else 0.1
    inset = gap if count > _NARROW else gap + 0.15
    layer = slot.quantized
    if layer is None:
        return element("g", element("title", f"{slot.name}: kept in high precision"),
                       _rect("mark", index, gap, 4.0))
    said = f"{slot.name}: {percent(layer.error)}, plain rounding {percent(layer.nearest_error)}"
    return element("g", element("title", said), _rect("plain", index, gap, 100 * layer.nearest_error / top),
                   _rect("result", index, inset, 100 * layer.error / top))


def _rect(kind: str, index: int, gap: float, height: float) -> Markup:
    return element("rect", class_=kind, x=f"{index + gap:g}", y=f"{100 - height:.2f}", width=f"{1 - 2 * gap:g}",
                   height=f"{height:.2f}")


def _ranks(slots: Sequence[Slot], top: float, worst: Sequence[LayerReport]) -> Markup:
    """The numbers of the worst layers above their bars."""
    ranks = {layer.name: rank for rank, layer in enumerate(worst, 1)}
    return join(*(element("b", str(ranks[slot.name]), class_="rank", style=(
        f"left: {_percent(index + 0.5, len(slots))}; bottom: {_percent(slot.height, top)}"))
        for index, slot in enumerate(slots) if slot.quantized and slot.name in ranks))


def _numbers(section: Section) -> Markup:
    """Block numbers below their bars: as many as fit on a wide page, fewer of them on a narrow one."""
    if not section.name:
        return element("div", class_="numbers")
    every = -(-len(section.blocks) // _WIDE_LABELS)
    rarely = every * -(-len(section.blocks) // (every * _NARROW_LABELS))
    count, labels, at = len(section.slots), [], 0
    for index, block in enumerate(section.blocks):
        if index % every == 0:
            labels.append(element("span", str(block.number), class_="" if index % rarely == 0 else "wide",
                                  style=f"left: {_percent(at + len(block.slots) / 2, count)}"))
        at += len(block.slots)
    return element("div", *labels, class_="numbers")


def pair_bar(layer: LayerReport, top: float) -> Markup:
    """A lying bar: this file's error in front of plain rounding's."""
    return element("div", element("i", class_="plain", style=f"width: {_percent(layer.nearest_error, top)}"),
                   element("i", class_="result", style=f"width: {_percent(layer.error, top)}"), class_="pair")


def percent(share: float) -> str:
    """A share with three digits."""
    return f"{100 * share:.3g} %"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}%"
