"""The report as a picture: a bar per layer, grouped by block, this file in front of plain rounding."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from ...tpec.run.report import LayerReport, Report
from .plot import THEMES, Canvas

WORST = 5
_BLOCK = re.compile(r"(.*?)\.(\d+)(?:\.|$)")
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 1280, 84, 1256, 186, 480


@dataclass(frozen=True)
class _Slot:
    """One place across: a quantized layer, or one that was kept (`layer` None)."""

    name: str
    layer: LayerReport | None

    @property
    def block(self) -> tuple[str, int]:
        """The name before the first number and that number; ('', -1) outside of blocks."""
        found = _BLOCK.match(self.name)
        return (found[1], int(found[2])) if found else ("", -1)


def bar_picture(report: Report, kept: Sequence[str], theme: str = "dark") -> torch.Tensor:
    """[1, height, 1280, 3] in 0 .. 1. `kept` names the layers that stayed in high precision, `theme` the colours."""
    slots = _in_order([_Slot(layer.name, layer) for layer in report.layers] + [_Slot(name, None) for name in kept])
    worst = report.worst(WORST)
    canvas = Canvas(_WIDTH, _BOTTOM + 96 + 26 * ((len(worst) + 1) // 2), THEMES[theme])
    _headings(canvas, report, len(kept))
    top = max((max(layer.error, layer.nearest_error) for layer in report.layers), default=0.0) or 1.0
    _scale(canvas, top)
    step = (_RIGHT - _LEFT) / max(1, len(slots))
    for index, slot in enumerate(slots):
        _bar(canvas, slot, _LEFT + index * step, step, top)
    _blocks(canvas, slots, step)
    _names(canvas, slots, worst, step, top)
    return canvas.image()


def _in_order(slots: list[_Slot]) -> list[_Slot]:
    """Blocks by number, in the order in which their names first appear; what is in no block at the end."""
    sections = {name: index for index, name in enumerate(dict.fromkeys(slot.block[0] for slot in slots))}
    return sorted(slots, key=lambda slot: (slot.block[1] < 0, sections[slot.block[0]], slot.block[1], slot.name))


def _headings(canvas: Canvas, report: Report, kept: int) -> None:
    theme = canvas.theme
    canvas.text(28, 38, report.headline(), size=27)
    before, after = report.source_nbytes / 1e9, report.output_nbytes / 1e9
    sizes = f"{report.source}: {before:.2f} GB before, {after:.2f} GB after ({100 * after / before:.0f} %)"
    canvas.text(28, 78, sizes, theme.quiet, 17)
    at = 28.0
    for colour, words in ((theme.plain, "plain FP8 rounding"), (theme.result, "this file"),
                          (theme.mark, f"kept in high precision ({kept})")):
        canvas.box(at, 109, at + 16, 125, colour)
        at += 24 + canvas.text(at + 24, 117, words, theme.quiet, 16) + 30
    canvas.text(28, _TOP - 32, "error of a layer, % of its weights (each as much as it matters to the result)",
                theme.quiet, 14)


def _y(share: float) -> float:
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _scale(canvas: Canvas, top: float) -> None:
    step = next(unit for unit in (digit * 10.0**power for power in range(-9, 4) for digit in (1, 2, 5))
                if top / unit <= 6)
    for index in range(int(top / step) + 1):
        y = _y(index * step / top)
        canvas.line([(_LEFT, y), (_RIGHT, y)], canvas.theme.grid)
        canvas.text(_LEFT - 10, y, f"{100 * index * step:g} %", canvas.theme.quiet, 14, "rm")


def _bar(canvas: Canvas, slot: _Slot, x: float, step: float, top: float) -> None:
    theme, gap = canvas.theme, 0.12 * step if step >= 4 else 0.0
    if slot.layer is None:
        canvas.box(x + gap, _BOTTOM - 10, x + step - gap, _BOTTOM, theme.mark)
        return
    canvas.box(x + gap, _y(slot.layer.nearest_error / top), x + step - gap, _BOTTOM, theme.plain)
    inset = gap + (0.16 * step if step >= 8 else 0.0)
    canvas.box(x + inset, _y(slot.layer.error / top), x + step - inset, _BOTTOM, theme.result)


def _blocks(canvas: Canvas, slots: Sequence[_Slot], step: float) -> None:
    """Block numbers below their bars where they fit, the blocks' common name below those."""
    theme, index = canvas.theme, 0
    for section, members in groupby(slots, key=lambda slot: slot.block[0]):
        begin, free = index, 0.0
        for (_, number), group in groupby(members, key=lambda slot: slot.block):
            x, wide = _LEFT + index * step, len(list(group)) * step
            index += round(wide / step)
            canvas.line([(x, _BOTTOM), (x, _BOTTOM + 6)], theme.quiet)
            if number >= 0 and x + wide / 2 - 10 >= free:
                canvas.text(x + wide / 2, _BOTTOM + 17, str(number), theme.quiet, 13, "mm")
                free = x + wide / 2 + 14
        left, right = _LEFT + begin * step, _LEFT + index * step
        words = section or "other"
        if canvas.length(words, 14) <= right - left:
            canvas.text((left + right) / 2, _BOTTOM + 40, words, theme.quiet, 14, "mm")


def _names(canvas: Canvas, slots: Sequence[_Slot], worst: Sequence[LayerReport], step: float, top: float) -> None:
    """Number the layers with the largest errors, and name them below."""
    at = {slot.layer: index for index, slot in enumerate(slots) if slot.layer}
    canvas.text(28, _BOTTOM + 76, "largest errors", canvas.theme.quiet, 14)
    for index, layer in enumerate(worst):
        x = _LEFT + (at[layer] + 0.5) * step
        canvas.text(x, _y(max(layer.error, layer.nearest_error) / top) - 10, str(index + 1), canvas.theme.mark, 15,
                    "mm")
        left, y = (28, 656)[index % 2], _BOTTOM + 102 + 26 * (index // 2)
        words = f"{100 * layer.error:.2f} % (plain {100 * layer.nearest_error:.2f} %)"
        left += canvas.text(left, y, f"{index + 1}", canvas.theme.mark, 16) + 10
        left += canvas.text(left, y, _short(layer.name, 44), size=16) + 12
        canvas.text(left, y, words, canvas.theme.quiet, 16)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 2]}...{name[-(most // 2 - 1):]}"
