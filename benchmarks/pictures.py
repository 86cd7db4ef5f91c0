"""Pictures and velocity errors of quantized files of two models, everything done by a real ComfyUI, in one run.

    python -m benchmarks.pictures --shared ../shared --gpu

Starts the ComfyUI of the tests (COMFYUI_PATH, COMFYUI_PYTHON) with this pack. Every file is made by API prompts: plain
rounding, this project by the weights alone, as a user gets it with nothing but three nodes (the model calibrates
itself), and calibrated with stored conditionings 32 and on (one sampling of 20 steps each, cfg 3). Then stock
UNETLoader and KSampler draw prompts 0 and on with every file, and PSNR is against the bf16 model's pictures.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import prompts as p
import torch
from comfy_server import ComfyServer, link

from .common import environment, markdown_table
from .server import comfy


@dataclass(frozen=True)
class Model:
    """A trained model: its folder and file below `models`, and its family's latents."""

    folder: str
    file: str
    latents: tuple[float, float]


MODELS = {"tinyflux": Model("tinyflux-shapes", "tinyflux_shapes_bf16.safetensors", p.FLUX_LATENT),
          "tinysd3": Model("tinysd3-shapes", "tinysd3_shapes_bf16.safetensors", p.SD3_LATENT)}
#: Both models were trained on the same captions, with one text encoder.
CONDITIONINGS = MODELS["tinyflux"].folder
#: Conditionings per prompt given to ComfyUI.
BATCH = 16
#: Seconds that one prompt may take on a slow machine.
_PATIENCE = 7200


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models and fidelity")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="models (default both)")
    parser.add_argument("--calibrate", type=int, nargs="*", default=[8, 32], help="calibration prompts (default 8 32)")
    parser.add_argument("--sensitivity", action="store_true", help="calibrate with output gradients as well, beside it")
    parser.add_argument("--gpu", action="store_true", help="let ComfyUI use its GPU (default: the CPU)")
    parser.add_argument("--pictures", type=int, default=16, help="prompts to draw (default 16; 0: velocities alone)")
    parser.add_argument("--steps", type=int, default=20)
    return parser.parse_args()


def calibrating(file: str, count: int, steps: int, sensitivity: bool) -> dict[str, dict]:
    """Nodes that sample conditionings 32 and on, BATCH at a time, each batch adding to the calibration before it."""
    nodes = p.stock_loader(file)
    before: dict[str, object] = {}
    for first in range(32, 32 + count, BATCH):
        part = p.sampling(["model", 0], "unused", first=first, count=min(BATCH, 32 + count - first))
        nodes |= {f"{name}{first}": part[name] for name in ("positive", "negative", "latent")}
        nodes[f"calibrate{first}"] = p.node(
            "TPECCalibrate", model=["model", 0], positive=[f"positive{first}", 0], negative=[f"negative{first}", 0],
            latent_image=[f"latent{first}", 0], seed=first, steps=steps, cfg=3.0, sampler_name="euler",
            scheduler="simple", runs=1, sensitivity=sensitivity, **before)
        before = {"calibration": [f"calibrate{first}", 0]}
    return nodes | {"last": p.node("PreviewAny", source=[*before["calibration"][:1], 1])}


def jobs(args: argparse.Namespace) -> dict[str, tuple[int, dict[str, object]]]:
    """By title: how many conditionings to calibrate with, and inputs of TPEC Quantize FP8 or of calibrating."""
    found: dict[str, tuple[int, dict[str, object]]] = {
        "nearest": (0, {"method": "nearest"}), "by the weights alone": (0, {}),
        "calibrated itself (default)": (0, {"calibrate": "auto"})}
    for count in args.calibrate:
        found[f"{count} prompts"] = (count, {"sensitivity": False})
        if args.sensitivity:
            found[f"{count} prompts, sensitivity"] = (count, {"sensitivity": True})
    return found


def make(server: ComfyServer, name: str, model: Model, count: int, steps: int, settings: dict[str, object]) -> float:
    """Quantize and save as `name`; returns seconds."""
    nodes: dict[str, dict] = {}
    if count:
        nodes = calibrating(model.file, count, steps, bool(settings["sensitivity"]))
        settings = {"calibration": [f"calibrate{range(32, 32 + count, BATCH)[-1]}", 0]}
    begun = time.monotonic()
    server.succeed({**nodes, **p.quantizing(f"diffusion_models/{model.file}", **settings), **p.saving(name)}, _PATIENCE)
    return time.monotonic() - begun


def draw(server: ComfyServer, file: str, args: argparse.Namespace, model: Model) -> torch.Tensor:
    """Pictures [count, 3, 64, 64] of prompts 0 and on."""
    parts = []
    for first in range(0, args.pictures, BATCH):
        nodes = {**p.stock_loader(file), **p.sampling(["model", 0], f"{Path(file).stem}{first}", first=first,
                                                      count=min(BATCH, args.pictures - first), steps=args.steps)}
        latent = p.saved_latent(server, server.succeed(nodes, _PATIENCE))
        parts.append(p.image(latent, args.shared / "models" / CONDITIONINGS, model.latents))
    return torch.cat(parts)


def velocity_ratio(script: Path, file: Path) -> float:
    """Velocity error against plain rounding's, by the shared script."""
    run = subprocess.run([sys.executable, script, file], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)["ratio_to_round_to_nearest"]


def measure(server: ComfyServer, title: str, args: argparse.Namespace) -> list[tuple[str, ...]]:
    """One row per file of a model."""
    model, script = MODELS[title], args.shared / "fidelity" / "velocity_error.py"
    link(args.shared / "models" / model.folder / model.file, server.models / "diffusion_models" / model.file)
    original = draw(server, model.file, args, model) if args.pictures else None
    rows: list[tuple[str, ...]] = []
    base = math.nan
    for number, (name, (count, settings)) in enumerate(jobs(args).items()):
        seconds = make(server, f"{title}{number}", model, count, args.steps, settings)
        file = f"{title}{number}.safetensors"
        ratio = velocity_ratio(script, server.models / "diffusion_models" / file)
        psnr = math.nan
        if original is not None:
            pictures = draw(server, file, args, model)
            each = [p.psnr(a, b, 1.0) for a, b in zip(pictures, original, strict=True)]
            psnr = sum(each) / len(each)
        base = psnr if number == 0 else base
        rows.append((title, name, f"{ratio:.4f}", f"{psnr:.2f}", f"{psnr - base:+.2f}", f"{seconds:.0f}"))
        print(f"done {rows[-1]}", flush=True)
    return rows


def main() -> None:
    args = arguments()
    args.shared = args.shared.resolve()
    print(environment(), flush=True)
    with comfy(not args.gpu) as server:
        link(args.shared / "models" / CONDITIONINGS / p.CONDITIONING, server.base / "input" / p.CONDITIONING)
        rows = [row for title in args.model for row in measure(server, title, args)]
    print()
    print(markdown_table(("model", "file", "velocity error / nearest", f"mean PSNR of {args.pictures} pictures, dB",
                          "over nearest", "seconds to make"), rows))


if __name__ == "__main__":
    main()
