"""Drawing ComfyUI images with Pillow, which ComfyUI brings along: a small canvas in two themes, and line plots."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ...tpec.page.theme import THEMES, Theme

Point = tuple[float, float]
_SMOOTH = 2  # drawn so many times larger, then scaled down: Pillow's lines have hard edges


class Canvas:
    """A picture that is drawn in units of its final pixels."""

    def __init__(self, width: int, height: int, theme: Theme) -> None:
        self.width, self.height, self.theme = width, height, theme
        self._picture = Image.new("RGB", (width * _SMOOTH, height * _SMOOTH), theme.paper)
        self._draw = ImageDraw.Draw(self._picture)
        self._fonts: dict[int, ImageFont.FreeTypeFont | ImageFont.ImageFont] = {}

    def _font(self, size: int):
        if size not in self._fonts:
            self._fonts[size] = ImageFont.load_default(size * _SMOOTH)
        return self._fonts[size]

    def text(self, x: float, y: float, words: str, colour: str = "", size: int = 15, anchor: str = "lm") -> float:
        """Write `words` at a point, `anchor` in Pillow's letters; returns their width."""
        font = self._font(size)
        self._draw.text((x * _SMOOTH, y * _SMOOTH), words, colour or self.theme.ink, font, anchor=anchor)
        return self.length(words, size)

    def length(self, words: str, size: int = 15) -> float:
        return self._draw.textlength(words, self._font(size)) / _SMOOTH

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        """A filled rectangle; at least a pixel of the final picture wide and high."""
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        self._draw.rectangle((left * _SMOOTH, top * _SMOOTH, right * _SMOOTH - 1, bottom * _SMOOTH - 1), colour)

    def line(self, points: Sequence[Point], colour: str, width: float = 1) -> None:
        scaled = [(x * _SMOOTH, y * _SMOOTH) for x, y in points]
        self._draw.line(scaled, colour, round(width * _SMOOTH), joint="curve")

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        self._draw.ellipse([_SMOOTH * value for value in (x - radius, y - radius, x + radius, y + radius)], colour)

    def image(self) -> torch.Tensor:
        """[1, height, width, 3] float32 in 0 .. 1."""
        small = self._picture.resize((self.width, self.height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(small).astype(np.float32) / 255)[None]


def line_plot(title: str, series: Mapping[str, Sequence[float]], across: str, up: str,
              theme: Literal["dark", "light"] = "dark") -> torch.Tensor:
    """Shares > 0 on a logarithmic axis of percents against their position from 1 on. [1, 480, 960, 3] in 0 .. 1.

    `across` names the positions, `up` the values.
    """
    canvas = Canvas(960, 480, THEMES[theme])
    area = _Area(canvas, _ticks(series), max((len(values) for values in series.values()), default=1))
    canvas.text(28, 32, title, size=20)
    area.axes(across, up)
    at = 28.0
    for index, (name, values) in enumerate(series.items()):
        colour = (canvas.theme.result, canvas.theme.quiet, canvas.theme.mark)[index % 3]
        canvas.dot(at + 5, 64, 5, colour)
        at += 16 + canvas.text(at + 16, 64, name, canvas.theme.quiet, 15) + 24
        area.curve(values, colour)
    return canvas.image()


def _ticks(series: Mapping[str, Sequence[float]]) -> list[float]:
    """The steps of 1, 2, 5, 10 ... around all positive values."""
    seen = [value for values in series.values() for value in values if value > 0 and math.isfinite(value)] or [1.0]
    steps = [digit * 10.0**power for power in range(-12, 7) for digit in (1, 2, 5)]
    first = max((index for index, step in enumerate(steps) if step <= min(seen)), default=0)
    last = min((index for index, step in enumerate(steps) if step >= max(seen)), default=len(steps) - 1)
    return steps[first : max(last, first + 1) + 1]


@dataclass(frozen=True)
class _Area:
    """Where the curves of a line plot go: values between the outer ticks, `count` positions."""

    canvas: Canvas
    ticks: list[float]
    count: int
    left: float = 90
    right: float = 930
    top: float = 114
    bottom: float = 412

    def _x(self, index: int) -> float:
        return self.left + 16 + (self.right - self.left - 32) * index / max(1, self.count - 1)

    def _y(self, value: float) -> float:
        low, high = math.log(self.ticks[0]), math.log(self.ticks[-1])
        part = (math.log(value) - low) / (high - low) if value > 0 else 0.0
        return self.bottom - min(max(part, 0.0), 1.0) * (self.bottom - self.top)

    def axes(self, across: str, up: str) -> None:
        canvas, quiet = self.canvas, self.canvas.theme.quiet
        canvas.text(28, self.top - 20, up, quiet, 13)
        for tick in self.ticks:
            canvas.line([(self.left, self._y(tick)), (self.right, self._y(tick))], canvas.theme.grid)
            canvas.text(self.left - 10, self._y(tick), f"{100 * tick:g} %", quiet, 14, "rm")
        every = max(1, -(-self.count // 20))
        for index in range(0, self.count, every):
            canvas.text(self._x(index), self.bottom + 18, str(index + 1), quiet, 14, "mm")
        canvas.text((self.left + self.right) / 2, self.bottom + 46, across, quiet, 14, "mm")

    def curve(self, values: Sequence[float], colour: str) -> None:
        points = [(self._x(index), self._y(value)) for index, value in enumerate(values)]
        if len(points) > 1:
            self.canvas.line(points, colour, 2.5)
        if len(points) <= 60:
            for x, y in points:
                self.canvas.dot(x, y, 3.5, colour)
