"""A picture for the README: what a toy model draws in bf16, as plain FP8 and as this pack's FP8, and how far apart.

    python -m benchmarks.before_after --shared ../shared --folder DIR

Starts the ComfyUI of the tests with this pack. Both FP8 files come from the three nodes of the first workflow with
nothing else connected: *Save Scaled FP8* behind *TPEC Quantize FP8*, once with `method: nearest` and once with its
defaults (the model calibrates itself). Stock UNETLoader and KSampler then draw the same prompts and seeds with each
(float32 on a CPU, 20 steps, cfg 3). The means count all pictures; shown are the quartiles of what is gained.

DIR keeps the drawn pictures: with them in it the program only lays them out anew. Needs Pillow, which ComfyUI's own
Python has.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import prompts
import torch
from comfy_server import ComfyServer, link
from PIL import Image
from safetensors.torch import load_file, save_file

from .common import ROOT, environment, markdown_table
from .pack import of_pack
from .pictures import CONDITIONINGS, MODELS, Model, draw, make
from .server import comfy

_plot = of_pack("nodes.drawing.plot")
#: By file: how it is called in the picture, and the inputs of TPEC Quantize FP8 (None: the bf16 model itself).
FILES: dict[str, tuple[str, dict[str, object] | None]] = {
    "bf16": ("bf16", None),
    "plain": ("plain FP8", {"method": "nearest"}),
    "pack": ("this pack", {"calibrate": "auto"}),
}
AMPLIFIED = 16
#: All in pixels of the file, which is shown at half its size.
_TIMES, _GAP, _BETWEEN, _MARGIN, _HEAD = 3, 8, 36, 24, 168
_SIDE = 64 * _TIMES
_SMALL, _LARGE = 29, 38


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models")
    parser.add_argument("--folder", type=Path, required=True, help="keeps the drawn pictures")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures", help="where the two themes' files go")
    parser.add_argument("--model", choices=MODELS, default="tinyflux")
    parser.add_argument("--pictures", type=int, default=16, help="prompts to draw (default 16)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shown", type=int, default=3, help="prompts to show (default 3)")
    return parser.parse_args()


def drawn(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """By file, [count, 3, 64, 64] in 0 .. 1: from the folder, else by ComfyUI."""
    kept = args.folder / f"{args.model}_{args.pictures}x{args.steps}.safetensors"
    if not kept.is_file():
        with comfy() as server:
            found = _from_comfy(server, MODELS[args.model], args)
        args.folder.mkdir(parents=True, exist_ok=True)
        save_file(found, kept)
    return load_file(kept)


def _from_comfy(server: ComfyServer, model: Model, args: argparse.Namespace) -> dict[str, torch.Tensor]:
    link(args.shared / "models" / CONDITIONINGS / prompts.CONDITIONING, server.base / "input" / prompts.CONDITIONING)
    link(args.shared / "models" / model.folder / model.file, server.models / "diffusion_models" / model.file)
    found = {}
    for key, (title, settings) in FILES.items():
        seconds = make(server, key, model, 0, args.steps, settings) if settings else 0.0
        found[key] = draw(server, f"{key}.safetensors" if settings else model.file, args, model).contiguous()
        print(f"{title}: made in {seconds:.0f} s, {len(found[key])} pictures drawn", flush=True)
    return found


def decibels(found: dict[str, torch.Tensor], key: str) -> list[float]:
    """Each picture's PSNR against bf16's."""
    return [prompts.psnr(a, b, 1.0) for a, b in zip(found[key], found["bf16"], strict=True)]


def gains(found: dict[str, torch.Tensor]) -> list[float]:
    """Each picture's dB over plain FP8's."""
    return [ours - plain for ours, plain in zip(decibels(found, "pack"), decibels(found, "plain"), strict=True)]


def spread(found: dict[str, torch.Tensor], count: int) -> list[int]:
    """So many pictures, evenly spaced in the order of what is gained: of three the quartiles."""
    order = sorted(range(len(found["bf16"])), key=gains(found).__getitem__)
    return [order[len(order) * rank // (count + 1)] for rank in range(1, count + 1)]


def lay_out(found: dict[str, torch.Tensor], shown: int, theme: str, model: str) -> Image.Image:
    """For each shown prompt the three pictures in a row, under the FP8 ones their amplified difference and its PSNR."""
    group = len(FILES) * _SIDE + (len(FILES) - 1) * _GAP
    width = 2 * _MARGIN + shown * group + (shown - 1) * _BETWEEN
    canvas = _plot.Canvas(width, _HEAD + 2 * _SIDE + _GAP + 64, _plot.THEMES[theme])
    _headline(canvas, found, model)
    pasted = []
    for place, number in enumerate(spread(found, shown)):
        for column, (key, (title, _)) in enumerate(FILES.items()):
            left = _MARGIN + place * (group + _BETWEEN) + column * (_SIDE + _GAP)
            middle, below = left + _SIDE / 2, _HEAD + _SIDE + _GAP
            colour = canvas.theme.result if key == "pack" else ""
            canvas.text(middle, _HEAD - 26, title, colour, _SMALL, "mm")
            pasted.append((found[key][number], left, _HEAD))
            if key == "bf16":
                for words, higher in (("difference", 20), (f"x {AMPLIFIED}", -20)):
                    canvas.text(left + _SIDE - 8, below + _SIDE / 2 - higher, words, canvas.theme.quiet, _SMALL, "rm")
                continue
            pasted.append((AMPLIFIED * (found[key][number] - found["bf16"][number]).abs(), left, below))
            canvas.text(middle, below + _SIDE + 30, f"{decibels(found, key)[number]:.1f} dB", colour, _SMALL, "mm")
    picture = as_image(canvas.image()[0].permute(2, 0, 1))
    for pixels, left, top in pasted:
        picture.paste(as_image(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (left, top))
    return picture


def _headline(canvas: "_plot.Canvas", found: dict[str, torch.Tensor], model: str) -> None:
    means = {key: mean(decibels(found, key)) for key in FILES if key != "bf16"}
    said = f"Likeness to bf16: plain FP8 {means['plain']:.1f} dB, "
    canvas.text(_MARGIN, 38, said, size=_LARGE)
    ours = f"this pack {means['pack']:.1f} dB"
    canvas.text(_MARGIN + canvas.length(f"{said} ", _LARGE), 38, ours, canvas.theme.result, _LARGE)
    better = sum(gain > 0 for gain in gains(found))
    about = (f"Mean PSNR of {len(found['bf16'])} pictures, higher with this pack in {better}. {model}, a toy model; "
             "shown are the quartiles of the gain.")
    canvas.text(_MARGIN, 88, about, canvas.theme.quiet, _SMALL)


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def as_image(pixels: torch.Tensor) -> Image.Image:
    """Of [3, height, width] in 0 .. 1."""
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def main() -> None:
    args = arguments()
    args.shared = args.shared.resolve()
    found = drawn(args)
    args.out.mkdir(parents=True, exist_ok=True)
    for theme, name in (("dark", "before_after.webp"), ("light", "before_after_light.webp")):
        lay_out(found, args.shown, theme, args.model).save(args.out / name, lossless=True, quality=100, method=6)
    print(environment())
    rows = [(FILES[key][0], f"{mean(decibels(found, key)):.2f}", " ".join(f"{one:.1f}" for one in decibels(found, key)))
            for key in FILES if key != "bf16"]
    print(markdown_table(("file", f"mean PSNR of {len(found['bf16'])} pictures, dB", "each"), rows))


if __name__ == "__main__":
    main()
