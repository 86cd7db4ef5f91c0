"""Line plots as ComfyUI images, drawn with Pillow, which ComfyUI brings along."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT = 960, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 20, 80, 60
_COLOURS = ((213, 94, 0), (0, 114, 178), (0, 158, 115))
_INK, _GRID, _PAPER = (40, 40, 40), (225, 225, 225), (255, 255, 255)


def line_plot(title: str, series: Mapping[str, Sequence[float]], across: str) -> torch.Tensor:
    """Values > 0 on a logarithmic axis against their position; `across` names the positions. [1, 480, 960, 3] 0..1."""
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(15)
    draw.text((_LEFT, 12), title, _INK, font)
    ticks = _ticks(series)
    _grid(draw, font, ticks)
    draw.text((_WIDTH / 2, _HEIGHT - 26), across, _INK, font, anchor="mm")
    at = _LEFT
    for colour, (name, values) in zip(_COLOURS, series.items(), strict=False):
        draw.text((at, 40), name, colour, font)
        at += draw.textlength(name, font) + 30
        _line(draw, colour, values, ticks)
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None]


def _ticks(series: Mapping[str, Sequence[float]]) -> list[float]:
    """The steps of 1, 2, 5, 10 ... around all positive values."""
    seen = [value for values in series.values() for value in values if value > 0 and math.isfinite(value)] or [1.0]
    steps = [digit * 10.0**power for power in range(-12, 7) for digit in (1, 2, 5)]
    first = max((index for index, step in enumerate(steps) if step <= min(seen)), default=0)
    last = min((index for index, step in enumerate(steps) if step >= max(seen)), default=len(steps) - 1)
    return steps[first : max(last, first + 1) + 1]


def _height(value: float, ticks: Sequence[float]) -> float:
    low, high = math.log(ticks[0]), math.log(ticks[-1])
    part = (math.log(value) - low) / (high - low) if value > 0 else 0.0
    return _HEIGHT - _BOTTOM - min(max(part, 0.0), 1.0) * (_HEIGHT - _TOP - _BOTTOM)


def _grid(draw: ImageDraw.ImageDraw, font, ticks: Sequence[float]) -> None:
    for tick in ticks:
        y = _height(tick, ticks)
        draw.line((_LEFT, y, _WIDTH - _RIGHT, y), _GRID)
        draw.text((_LEFT - 8, y), f"{tick:g}", _INK, font, anchor="rm")


def _line(draw: ImageDraw.ImageDraw, colour: tuple[int, ...], values: Sequence[float],
          ticks: Sequence[float]) -> None:
    span = _WIDTH - _LEFT - _RIGHT - 20
    points = [(_LEFT + 10 + span * index / max(1, len(values) - 1), _height(value, ticks))
              for index, value in enumerate(values)]
    if len(points) > 1:
        draw.line(points, colour, 2)
    if len(points) <= 60:
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
