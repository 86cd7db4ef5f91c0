"""Pictures and velocity errors of quantized files, everything done by a real ComfyUI, in one run.

    python -m benchmarks.pictures --shared ../shared --calibrate 8 32

Starts the ComfyUI of the tests (COMFYUI_PATH, COMFYUI_PYTHON) with this pack. Every file is made by API prompts: plain
rounding, this project without calibration, and calibrated with stored conditionings 32 and on (one sampling of 20 steps
each, cfg 3). Then stock UNETLoader and KSampler draw prompts 0 and on with every file, and PSNR is against the bf16
model's pictures.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from .common import environment, markdown_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "comfy"))
import prompts as p  # noqa: E402
from comfy_server import ComfyServer, find_comfy, find_python, link  # noqa: E402

TINYFLUX = "tinyflux_shapes_bf16.safetensors"
#: Conditionings per prompt given to ComfyUI.
BATCH = 8
#: Seconds that one prompt may take on a slow machine.
_PATIENCE = 7200


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/tinyflux-shapes and fidelity")
    parser.add_argument("--calibrate", type=int, nargs="*", default=[8], help="numbers of calibration prompts")
    parser.add_argument("--sensitivity", action="store_true", help="calibrate with output gradients as well, beside it")
    parser.add_argument("--gpu", action="store_true", help="let ComfyUI use its GPU (default: the CPU)")
    parser.add_argument("--pictures", type=int, default=16, help="prompts to draw (default 16)")
    parser.add_argument("--steps", type=int, default=20)
    return parser.parse_args()


def calibrating(count: int, steps: int, sensitivity: bool) -> dict[str, dict]:
    """Nodes that sample conditionings 32 and on, BATCH at a time, each batch adding to the calibration before it."""
    nodes = p.stock_loader(TINYFLUX)
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


def make(server: ComfyServer, name: str, nodes: dict[str, dict], **settings: object) -> float:
    """Quantize and save as `name`; returns seconds."""
    begun = time.monotonic()
    server.succeed({**nodes, **p.quantizing(f"diffusion_models/{TINYFLUX}", **settings), **p.saving(name)}, _PATIENCE)
    return time.monotonic() - begun


def draw(server: ComfyServer, file: str, args: argparse.Namespace, model: Path) -> torch.Tensor:
    """Pictures [count, 3, 64, 64] of prompts 0 and on."""
    parts = []
    for first in range(0, args.pictures, BATCH):
        nodes = {**p.stock_loader(file), **p.sampling(["model", 0], f"{Path(file).stem}{first}", first=first,
                                                      count=min(BATCH, args.pictures - first), steps=args.steps)}
        parts.append(p.image(p.saved_latent(server, server.succeed(nodes, _PATIENCE)), model))
    return torch.cat(parts)


def velocity_ratio(script: Path, file: Path) -> float:
    """Velocity error against plain rounding's, by the shared script."""
    run = subprocess.run([sys.executable, script, file], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)["ratio_to_round_to_nearest"]


def main() -> None:
    args = arguments()
    shared = args.shared.resolve()
    model, script = shared / "models" / "tinyflux-shapes", shared / "fidelity" / "velocity_error.py"
    comfy = find_comfy()
    if comfy is None or find_python(comfy) is None:
        sys.exit("no ComfyUI: set COMFYUI_PATH and COMFYUI_PYTHON")
    print(environment(), flush=True)
    jobs: dict[str, tuple[int, bool]] = {"nearest": (0, False), "tpec": (0, False)}
    for count in args.calibrate:
        jobs[f"tpec, calibrated on {count}"] = (count, False)
        if args.sensitivity:
            jobs[f"tpec, calibrated on {count}, sensitivity"] = (count, True)
    with tempfile.TemporaryDirectory() as folder, \
            ComfyServer(comfy, find_python(comfy), Path(folder), not args.gpu) as server:
        link(model / TINYFLUX, server.models / "diffusion_models" / TINYFLUX)
        link(model / p.CONDITIONING, server.base / "input" / p.CONDITIONING)
        original = draw(server, TINYFLUX, args, model)
        rows, base = [], None
        for number, (title, (count, sensitivity)) in enumerate(jobs.items()):
            name = f"file{number}"
            settings = {"method": "nearest"} if title == "nearest" else {}
            if count:
                settings = {"calibration": [f"calibrate{range(32, 32 + count, BATCH)[-1]}", 0]}
            nodes = calibrating(count, args.steps, sensitivity) if count else {}
            seconds = make(server, name, nodes, **settings)
            ratio = velocity_ratio(script, server.models / "diffusion_models" / f"{name}.safetensors")
            pictures = draw(server, f"{name}.safetensors", args, model)
            each = [p.psnr(a, b, 1.0) for a, b in zip(pictures, original, strict=True)]
            mean, pooled = sum(each) / len(each), p.psnr(pictures, original, 1.0)
            base = base or (mean, pooled)
            rows.append((title, f"{ratio:.4f}", f"{mean:.2f}", f"{mean - base[0]:+.2f}", f"{pooled:.2f}",
                         f"{pooled - base[1]:+.2f}", f"{seconds:.0f}"))
            print(f"done {title}: {rows[-1][1:]}", flush=True)
    print()
    print(markdown_table(("file", "velocity error / nearest", f"mean PSNR of {args.pictures} pictures, dB",
                          "over nearest", "PSNR of all pixels together, dB", "over nearest", "seconds to make"), rows))


if __name__ == "__main__":
    main()
