"""The templates' thumbnails, from what `before_after` drew: what each is for, at a glance and at the size of a card.

    python -m benchmarks.thumbnails --drawn DIR/tinyflux_16x20.safetensors

Writes example_workflows/*.jpg. The front end shows them about 260 pixels wide with its own badge in the upper left
corner, so words are large and begin below it. Needs Pillow, which ComfyUI's own Python has.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from .before_after import AMPLIFIED, as_image, decibels, mean, spread
from .common import ROOT
from .pack import of_pack

_plot = of_pack("nodes.drawing.plot")
SIDE, LEFT, RIGHT = 560, 44, 516
#: Velocity error of tinyflux against plain rounding's (docs/measurements.md, "Pictures in ComfyUI"): nothing connected,
#: 32 prompts, and those with sensitivity.
ERRORS = (("plain FP8", 1.00), ("nothing connected", 0.37), ("your prompts", 0.34), ("and sensitivity", 0.25))
#: MB of the bf16 file and of its FP8 file.
SIZES = (50.0, 26.1)
ENCODERS = (("T5-XXL", "UMT5-XXL"), ("Qwen2.5-VL", "Qwen3"), ("Gemma 3", "Llama 3.1"))
Pictures = dict[str, torch.Tensor]


class Card:
    """A canvas with the job's name on it; pictures are pasted last, pixel by pixel."""

    def __init__(self, title: str, below: str) -> None:
        self.canvas = _plot.Canvas(SIDE, SIDE, _plot.THEMES["dark"])
        self.theme = self.canvas.theme
        self._pasted: list[tuple[Image.Image, tuple[int, int]]] = []
        self.canvas.text(LEFT, 116, title, size=50)
        self.canvas.text(LEFT, 164, below, self.theme.quiet, 26)

    def picture(self, pixels: torch.Tensor, left: int, top: int, side: int) -> None:
        self._pasted.append((as_image(pixels).resize((side, side), Image.Resampling.NEAREST), (left, top)))

    def chip(self, words: str, left: float, top: float, width: float, strong: bool = False) -> None:
        """A box with words in it, 62 pixels high."""
        self.canvas.box(left, top, left + width, top + 62, self.theme.result if strong else self.theme.grid)
        self.canvas.text(left + width / 2, top + 31, words, self.theme.paper if strong else "", 27, "mm")

    def arrow(self, x: float, top: float, bottom: float) -> None:
        """Down."""
        colour = self.theme.quiet
        self.canvas.line([(x, top), (x, bottom)], colour, 4)
        self.canvas.line([(x - 11, bottom - 13), (x, bottom), (x + 11, bottom - 13)], colour, 4)

    def image(self) -> Image.Image:
        picture = as_image(self.canvas.image()[0].permute(2, 0, 1))
        for pixels, place in self._pasted:
            picture.paste(pixels, place)
        return picture


def half(drawn: Pictures) -> Card:
    card = Card("Half the size", "three nodes, nothing else")
    wide, low = RIGHT - LEFT, spread(drawn, 3)[0]
    for index, (key, name) in enumerate((("bf16", "bf16"), ("pack", "FP8"))):
        left, top = LEFT + index * (wide - 192), 202
        card.picture(drawn[key][low], left, top, 192)
        y, colour = 434 + 54 * index, (card.theme.plain, card.theme.result)[index]
        card.canvas.box(LEFT, y - 21, LEFT + wide * SIZES[index] / SIZES[0], y + 21, colour)
        ink = card.theme.paper if index else ""
        card.canvas.text(LEFT + 14, y, f"{name}  {SIZES[index]:.0f} MB", ink, 27)
    card.canvas.text(SIDE / 2, 298, "->", card.theme.quiet, 44, "mm")
    card.canvas.text(LEFT, 534, "a toy model's files and pictures", card.theme.quiet, 20)
    return card


def same_run(drawn: Pictures) -> Card:
    card = Card("Quantize and use", "in one run, stock loaders")
    for index, (words, strong) in enumerate((("bf16 model", False), ("FP8 file", True), ("KSampler", False))):
        top = 212 + 110 * index
        card.chip(words, LEFT, top, 200, strong)
        if index < 2:
            card.arrow(LEFT + 100, top + 68, top + 104)
    card.picture(drawn["pack"][0], RIGHT - 256, 215, 256)
    return card


def best(drawn: Pictures) -> Card:
    card = Card("Best quality", "calibrated with your prompts")
    for index, (words, error) in enumerate(ERRORS):
        y = 222 + 74 * index
        strong = index >= 2
        card.canvas.text(LEFT, y, words, "" if strong else card.theme.quiet, 25)
        card.canvas.box(LEFT, y + 19, LEFT + (RIGHT - LEFT - 78) * error, y + 45,
                        card.theme.result if strong else card.theme.plain)
        card.canvas.text(LEFT + (RIGHT - LEFT - 78) * error + 12, y + 32, f"{error:.2f}", size=27)
    card.canvas.text(LEFT, 526, "error of what a toy model predicts", card.theme.quiet, 20)
    return card


def compare(drawn: Pictures) -> Card:
    card = Card("Before and after", "both pictures, and how far apart")
    side, middle = 192, spread(drawn, 3)[1]
    card.picture(drawn["bf16"][middle], LEFT, 202, side)
    card.picture(drawn["pack"][middle], RIGHT - side, 202, side)
    card.canvas.text(SIDE / 2, 298, "->", card.theme.quiet, 44, "mm")
    card.picture(AMPLIFIED * (drawn["pack"][middle] - drawn["bf16"][middle]).abs(), LEFT, 414, 128)
    card.canvas.text(LEFT + 150, 446, f"difference x {AMPLIFIED}", card.theme.quiet, 26)
    card.canvas.text(LEFT + 150, 500, f"{decibels(drawn, 'pack')[middle]:.1f} dB", card.theme.result, 50)
    return card


def loras(drawn: Pictures) -> Card:
    card = Card("LoRAs baked in", "one FP8 file, nothing on top")
    third = (RIGHT - LEFT - 24) / 3
    for index, words in enumerate(("model", "LoRA", "LoRA")):
        card.chip(words, LEFT + index * (third + 12), 222, third)
        card.arrow(LEFT + index * (third + 12) + third / 2, 292, 352)
    card.canvas.box(LEFT, 366, RIGHT, 470, card.theme.result)
    card.canvas.text(SIDE / 2, 418, "one FP8 file", card.theme.paper, 44, "mm")
    card.canvas.text(LEFT, 514, "added at full precision, rounded once", card.theme.quiet, 23)
    return card


def encoders(drawn: Pictures) -> Card:
    card = Card("Text encoders", "calibrated with prompts")
    half = (RIGHT - LEFT - 12) / 2
    for row, names in enumerate(ENCODERS):
        for column, name in enumerate(names):
            card.chip(name, LEFT + column * (half + 12), 206 + 74 * row, half)
    card.arrow(SIDE / 2, 426, 456)
    card.chip("half the memory", LEFT, 468, RIGHT - LEFT, strong=True)
    return card


CARDS: dict[str, Callable[[Pictures], Card]] = {
    "Quantize a diffusion model to FP8": half,
    "Quantize and use in one run": same_run,
    "Best quality with calibration": best,
    "Quantize a model with its LoRAs": loras,
    "Quantize a text encoder": encoders,
    "Compare before and after": compare,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drawn", type=Path, required=True, help="the pictures that before_after kept")
    drawn = load_file(parser.parse_args().drawn)
    for name, card in CARDS.items():
        card(drawn).image().save(ROOT / "example_workflows" / f"{name}.jpg", quality=90, optimize=True)
    print(f"mean PSNR of the pictures: {mean(decibels(drawn, 'pack')):.1f} dB")


if __name__ == "__main__":
    main()
