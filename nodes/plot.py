"""Line plots as ComfyUI images, drawn with Pillow, which ComfyUI brings along."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT = 960, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 20, 70, 50
_COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115))
_INK, _GRID, _PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)


def line_plot(title: str, series: Mapping[str, Sequence[float]], across: str) -> torch.Tensor:
    """Values > 0 on a logarithmic axis against their position; `across` names the positions. [1, 480, 960, 3] 0..1."""
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(15)
    draw.text((_LEFT, 12), title, _INK, font)
    low, high = _decades(series)
    _grid(draw, font, low, high)
    draw.text((_WIDTH / 2, _HEIGHT - 26), across, _INK, font, anchor="mm")
    at = _LEFT
    for colour, (name, values) in zip(_COLOURS, series.items(), strict=False):
        draw.text((at, 40), name, colour, font)
        at += draw.textlength(name, font) + 30
        _line(draw, colour, values, low, high)
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None]


def _decades(series: Mapping[str, Sequence[float]]) -> tuple[int, int]:
    """The powers of ten around all positive values."""
    seen = [value for values in series.values() for value in values if value > 0 and math.isfinite(value)]
    if not seen:
        return -3, 0
    low = math.floor(math.log10(min(seen)))
    return low, max(low + 1, math.ceil(math.log10(max(seen))))


def _height(value: float, low: int, high: int) -> float:
    part = (math.log10(value) - low) / (high - low) if value > 0 else 0.0
    return _HEIGHT - _BOTTOM - min(max(part, 0.0), 1.0) * (_HEIGHT - _TOP - _BOTTOM)


def _grid(draw: ImageDraw.ImageDraw, font, low: int, high: int) -> None:
    for power in range(low, high + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**power
            if value > 10.0**high:
                break
            y = _height(value, low, high)
            draw.line((_LEFT, y, _WIDTH - _RIGHT, y), _GRID)
            draw.text((_LEFT - 8, y), f"{value:g}", _INK, font, anchor="rm")


def _line(draw: ImageDraw.ImageDraw, colour: tuple[int, ...], values: Sequence[float], low: int, high: int) -> None:
    span = _WIDTH - _LEFT - _RIGHT - 20
    points = [(_LEFT + 10 + span * index / max(1, len(values) - 1), _height(value, low, high))
              for index, value in enumerate(values)]
    if len(points) > 1:
        draw.line(points, colour, 2)
    if len(points) <= 60:
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
