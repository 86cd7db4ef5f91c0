"""How little may a model sample that calibrates itself? Velocity errors by samplings, steps and backward runs.

    python -m benchmarks.auto_effort --shared ../shared --efforts 16x20b 8x20b 16x20

Starts the ComfyUI of the tests (COMFYUI_PATH, COMFYUI_PYTHON) with this pack and quantizes both models with nothing
connected, once for each effort: samplings x steps on average, "b" with backward runs. Evaluations are what the pack
reckons with, a backward run being three; seconds are those of the whole prompt on this machine.
"""

import argparse
import re
import sys
from pathlib import Path

import prompts as p
from comfy_server import ComfyServer, link

from .common import environment, markdown_table
from .pictures import MODELS, velocity_ratio
from .server import comfy

#: From as much as any machine does to as little as any does.
EFFORTS = ("16x20b", "8x20b", "16x10b", "6x20b", "4x20b", "16x20", "16x10", "16x5")
_PATIENCE = 7200


def effort(text: str) -> tuple[int, int, bool]:
    """Samplings, steps and whether backwards, of "16x20b"."""
    found = re.fullmatch(r"(\d+)x(\d+)(b?)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"'{text}' is not like 16x20 or 16x20b")
    return int(found[1]), int(found[2]), bool(found[3])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models and fidelity")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS), help="models (default both)")
    parser.add_argument("--efforts", nargs="+", type=effort, default=[effort(text) for text in EFFORTS],
                        metavar="RUNSxSTEPS[b]", help=f"default {' '.join(EFFORTS)}")
    parser.add_argument("--gpu", action="store_true", help="let ComfyUI use its GPU (default: the CPU)")
    return parser.parse_args()


def measure(server: ComfyServer, shared: Path, title: str, runs: int, steps: int, backwards: bool) -> tuple[str, str]:
    """Velocity error and seconds of a model that calibrates itself so."""
    model, name = MODELS[title], f"{title}_{runs}x{steps}{'b' * backwards}"
    # A name of its own each time: what a model learned is kept for its next run.
    link(shared / "models" / model.folder / model.file, server.models / "diffusion_models" / f"{name}.safetensors")
    made = server.succeed({**p.quantizing(f"diffusion_models/{name}.safetensors", calibrate="auto"),
                           **p.saving(f"{name}_fp8")}, _PATIENCE)
    if "calibrated itself" not in made.text("quantize"):
        sys.exit(made.text("quantize"))
    file = server.models / "diffusion_models" / f"{name}_fp8.safetensors"
    return f"{velocity_ratio(shared / 'fidelity' / 'velocity_error.py', file):.3f}", f"{made.seconds:.0f}"


def main() -> None:
    args = arguments()
    print(environment(), flush=True)
    rows = []
    with comfy(not args.gpu) as server:
        for runs, steps, backwards in args.efforts:
            asked = server.succeed({"effort": p.node("TestEffort", runs=runs, steps=steps, backwards=backwards)})
            found = [measure(server, args.shared.resolve(), title, runs, steps, backwards) for title in args.model]
            rows.append((f"{runs} x {steps}", "yes" if backwards else "no", asked.text("effort"),
                         *(cell for cells in found for cell in cells)))
            print(f"done {rows[-1]}", flush=True)
    header = ("samplings x steps", "backwards", "evaluations",
              *(f"{title}, {what}" for title in args.model for what in ("error", "s")))
    print("", markdown_table(header, rows), sep="\n")


if __name__ == "__main__":
    main()
