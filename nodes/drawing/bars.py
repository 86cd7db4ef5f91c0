"""The report as a picture: a bar per layer, grouped by block, this file in front of plain rounding."""

from collections.abc import Sequence

import torch

from ...tpec.page.overview import WORST, Section, Slot, sections, shortened, size, ticks, top_of
from ...tpec.page.theme import THEMES
from ...tpec.run.report import LayerReport, Report
from .plot import Canvas

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 1280, 84, 1256, 186, 480


def bar_picture(report: Report, theme: str = "dark") -> torch.Tensor:
    """[1, height, 1280, 3] in 0 .. 1; `theme` names the colours."""
    parts = sections(report)
    slots = [slot for part in parts for slot in part.slots]
    worst = report.worst(WORST)
    canvas = Canvas(_WIDTH, _BOTTOM + 96 + 26 * ((len(worst) + 1) // 2), THEMES[theme])
    _headings(canvas, report)
    top = top_of(report)
    _scale(canvas, top)
    step = (_RIGHT - _LEFT) / max(1, len(slots))
    for index, slot in enumerate(slots):
        _bar(canvas, slot, _LEFT + index * step, step, top)
    _blocks(canvas, parts, step)
    _names(canvas, slots, worst, step, top)
    return canvas.image()


def _headings(canvas: Canvas, report: Report) -> None:
    theme = canvas.theme
    canvas.text(28, 38, report.headline(), size=27)
    before, after = report.source_nbytes, report.output_nbytes
    sizes = f"{report.source}: {size(before)} before, {size(after)} after ({100 * after / before:.0f} %)"
    canvas.text(28, 78, sizes, theme.quiet, 17)
    at = 28.0
    for colour, words in ((theme.plain, "plain FP8 rounding"), (theme.result, "this file"),
                          (theme.mark, f"kept in high precision ({len(report.kept_layers)})")):
        canvas.box(at, 109, at + 16, 125, colour)
        at += 24 + canvas.text(at + 24, 117, words, theme.quiet, 16) + 30
    canvas.text(28, _TOP - 32, "error of a layer, % of its weights (each as much as it matters to the result)",
                theme.quiet, 14)


def _y(share: float) -> float:
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _scale(canvas: Canvas, top: float) -> None:
    for tick in ticks(top):
        y = _y(tick / top)
        canvas.line([(_LEFT, y), (_RIGHT, y)], canvas.theme.grid)
        canvas.text(_LEFT - 10, y, f"{100 * tick:g} %", canvas.theme.quiet, 14, "rm")


def _bar(canvas: Canvas, slot: Slot, x: float, step: float, top: float) -> None:
    theme, gap = canvas.theme, 0.12 * step if step >= 4 else 0.0
    if slot.quantized is None:
        canvas.box(x + gap, _BOTTOM - 10, x + step - gap, _BOTTOM, theme.mark)
        return
    canvas.box(x + gap, _y(slot.quantized.nearest_error / top), x + step - gap, _BOTTOM, theme.plain)
    inset = gap + (0.16 * step if step >= 8 else 0.0)
    canvas.box(x + inset, _y(slot.quantized.error / top), x + step - inset, _BOTTOM, theme.result)


def _blocks(canvas: Canvas, parts: Sequence[Section], step: float) -> None:
    """Block numbers below their bars where they fit, the blocks' common name below those."""
    theme, right = canvas.theme, float(_LEFT)
    for part in parts:
        left, free = right, 0.0
        for block in part.blocks:
            x, wide = right, len(block.slots) * step
            right += wide
            canvas.line([(x, _BOTTOM), (x, _BOTTOM + 6)], theme.quiet)
            if block.number >= 0 and x + wide / 2 - 10 >= free:
                canvas.text(x + wide / 2, _BOTTOM + 17, str(block.number), theme.quiet, 13, "mm")
                free = x + wide / 2 + 14
        words = part.name or "other"
        if canvas.length(words, 14) <= right - left:
            canvas.text((left + right) / 2, _BOTTOM + 40, words, theme.quiet, 14, "mm")


def _names(canvas: Canvas, slots: Sequence[Slot], worst: Sequence[LayerReport], step: float, top: float) -> None:
    """Number the layers with the largest errors, and name them below."""
    at = {slot.layer: index for index, slot in enumerate(slots)}
    canvas.text(28, _BOTTOM + 76, "largest errors", canvas.theme.quiet, 14)
    for index, layer in enumerate(worst):
        x = _LEFT + (at[layer] + 0.5) * step
        canvas.text(x, _y(Slot(layer).height / top) - 10, str(index + 1), canvas.theme.mark, 15, "mm")
        left, y = (28, 656)[index % 2], _BOTTOM + 102 + 26 * (index // 2)
        words = f"{100 * layer.error:.2f} % (plain {100 * layer.nearest_error:.2f} %)"
        left += canvas.text(left, y, f"{index + 1}", canvas.theme.mark, 16) + 10
        left += canvas.text(left, y, shortened(layer.name, 44), size=16) + 12
        canvas.text(left, y, words, canvas.theme.quiet, 16)
