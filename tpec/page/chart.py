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
    return element("ul", element("li", "plain FP8 rounding", class_="plain"),
                   element("li", "this file", class_="result"),
                   element("li", f"kept in high precision ({kept})", class_="mark"), class_="legend")


def section_chart(section: Section, top: float, worst: Sequence[LayerReport]) -> Markup:
    """The bars of the blocks of one name. The axis ends at `top`, and the `worst` layers are numbered."""
    title = element("h3", element("code", section.name) if section.name else "outside of blocks", " ",
                    element("small", _counted(section)))
    # Layers that were only kept need no axis.
    measured = [_axis(top), _svg(section, top), _ranks(section.slots, top, worst)]
    inside = measured if section.quantized else [_kept(section)]
    return element("section", title, element("div", *inside, class_="area"), _numbers(section),
                   class_="plot" if section.quantized else "plot bare", style=f"flex-grow: {len(section.slots)}")


def _counted(section: Section) -> str:
    kept = len(section.slots) - section.quantized
    blocks = len(section.blocks) if section.name else 0
    counts = ((blocks, "blocks"), (section.quantized, "layers in FP8"), (kept, "kept"))
    return ", ".join(f"{count} {words}" for count, words in counts if count)


def _axis(top: float) -> Markup:
    return join(*(element("span", f"{100 * tick:.3g} %", class_="tick", style=f"bottom: {_percent(tick, top)}")
                  for tick in ticks(top)))


def _svg(section: Section, top: float) -> Markup:
    """One unit across for each layer and 100 up; stretched to the size of its place."""
    slots = section.slots
    bars = [_slot(slot, index, len(slots), top) for index, slot in enumerate(slots)]
    said = f"Errors of {len(slots)} layers; the table below has them in numbers."
    return _stretched(said, len(slots), 100, *_bands(section), *bars)


def _kept(section: Section) -> Markup:
    slots = section.slots
    marks = (_kept_mark(slot, index, len(slots), 1.0, 1.0) for index, slot in enumerate(slots))
    return _stretched(f"{len(slots)} layers that were kept.", len(slots), 1, *marks)


def _stretched(said: str, width: int, height: int, *children: Markup) -> Markup:
    return element("svg", *children, viewBox=f"0 0 {width} {height}", preserveAspectRatio="none", role="img",
                   **{"aria-label": said})


def _bands(section: Section) -> list[Markup]:
    """Every other block on a shaded ground."""
    found, at = [], 0
    for index, block in enumerate(section.blocks):
        if index % 2:
            found.append(element("rect", class_="band", x=at, y=0, width=len(block.slots), height=100))
        at += len(block.slots)
    return found


def _slot(slot: Slot, index: int, count: int, top: float) -> Markup:
    layer = slot.quantized
    if layer is None:
        return _kept_mark(slot, index, count, 4.0, 100.0)
    gap = _gap(count)
    inset = gap if count > _NARROW else gap + 0.15
    said = f"{slot.name}: {percent(layer.error)}, plain rounding {percent(layer.nearest_error)}"
    return element("g", element("title", said), _rect("plain", index, gap, 100 * layer.nearest_error / top),
                   _rect("result", index, inset, 100 * layer.error / top))


def _gap(count: int) -> float:
    return 0.0 if count > _DENSE else 0.1


def _kept_mark(slot: Slot, index: int, count: int, height: float, bottom: float) -> Markup:
    return element("g", element("title", f"{slot.name}: kept in high precision"),
                   _rect("mark", index, _gap(count), height, bottom))


def _rect(kind: str, index: int, gap: float, height: float, bottom: float = 100.0) -> Markup:
    return element("rect", class_=kind, x=f"{index + gap:g}", y=f"{bottom - height:.2f}", width=f"{1 - 2 * gap:g}",
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
