"""Two models' pictures and their difference, side by side."""

import math
from collections.abc import Sequence

import torch

from ...tpec.errors import TpecError
from .distance import parts_of
from .plot import THEMES, Canvas

#: One row: its name and the pictures of A and B, [height, width, 3] in 0 .. 1.
Row = tuple[str, torch.Tensor, torch.Tensor]

AMPLIFIED = 10
_MOST_ROWS = 16
_HEAD, _GAP, _LEAST = 44, 12, 320


def decode(vae, latent: torch.Tensor) -> list[torch.Tensor]:
    """The pictures of a latent, frames of a video among them, each [height, width, 3] in 0 .. 1 on the CPU."""
    images = vae.decode(parts_of(latent)[0])
    if images.dim() not in (4, 5) or images.shape[-1] < 3:
        raise TpecError("The VAE makes no pictures from these latents: leave the input vae empty.")
    frames = images.reshape(-1, *images.shape[-3:])[..., :3]
    return list(frames.float().cpu().clamp(0, 1))


def pixel_psnr(value: torch.Tensor, reference: torch.Tensor) -> float:
    """In dB against the full range of pixels; infinite when both are equal."""
    noise = (value - reference).square().mean().item()
    return math.inf if noise == 0 else -10 * math.log10(noise)


def side_by_side(rows: Sequence[Row], pixels: Sequence[float], theme: str) -> torch.Tensor:
    """A, B and their amplified difference with names and PSNR above: [count, height, width, 3] in 0 .. 1.

    Of more rows than 16, evenly spaced ones are shown.
    """
    every = max(1, math.ceil(len(rows) / _MOST_ROWS))
    return torch.cat([_one(row, decibels, theme) for row, decibels in list(zip(rows, pixels, strict=True))[::every]])


def _one(row: Row, decibels: float, theme: str) -> torch.Tensor:
    name, a, b = row
    panels = [_enlarged(picture) for picture in (a, b, (AMPLIFIED * (b - a)).abs().clamp(0, 1))]
    height, width = panels[0].shape[:2]
    canvas = Canvas(3 * width + 2 * _GAP, _HEAD + height, THEMES[theme])
    for index, words in enumerate((f"A, {name}", f"B: {decibels:.1f} dB", f"difference x {AMPLIFIED}")):
        canvas.text(index * (width + _GAP) + 8, _HEAD / 2, words, size=18)
    picture = canvas.image()
    for index, panel in enumerate(panels):
        left = index * (width + _GAP)
        picture[0, _HEAD:, left : left + width] = panel
    return picture


def _enlarged(picture: torch.Tensor) -> torch.Tensor:
    """Small pictures with larger pixels, so that the words above fit."""
    times = max(1, math.ceil(_LEAST / picture.shape[1]))
    return picture.repeat_interleave(times, 0).repeat_interleave(times, 1)
