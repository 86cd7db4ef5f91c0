"""A model of real size in a real ComfyUI: seconds, memory, VRAM and disk of the nodes, and what they say.

    python -m benchmarks.make_model flux.safetensors --layout flux --depth 19 38
    python -m benchmarks.in_comfy --model flux.safetensors --card 8 --output rows-8.json
    python -m benchmarks.in_comfy --merge rows-8.json rows-12.json ...

Starts the ComfyUI of the tests (COMFYUI_PATH, COMFYUI_PYTHON) on its GPU, with a synthetic model in Flux layout. Stock
nodes sample with the bf16 model; it is quantized, saved, and sampled with by stock nodes; then it calibrates itself,
and is calibrated by TPEC Calibrate without and with sensitivity, and quantized with what they learned. With --card this
program keeps all VRAM but that of such a card for itself, and ComfyUI is told that there is no more. Memory is the
server's own (without what the system lends it from files), VRAM what was taken at most beside what was taken before,
disk what lies in ComfyUI's folders.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import prompts as p
import torch
from comfy_server import link
from safetensors.torch import save_file

from .comfy_jobs import (
    Bench,
    Job,
    Nodes,
    add_arguments,
    add_model_arguments,
    card_bytes,
    facts,
    flux_model,
    merged,
    only,
    run_all,
    table,
)
from .server import all_threads, comfy
from .synthetic import generator

MODEL, RESULT = "model.safetensors", "result_fp8"
#: Seconds after which a job is interrupted.
LIMITS = {"sample": 90, "never": 120, "save": 60, "result": 90, "auto": 300, "plain": 150, "plain_quantize": 180,
          "sensitive": 240, "sensitive_quantize": 300}
_MADE = ("results", "calibrations")


def conditioning(path: Path, width: int = 4096, pooled: int = 768) -> None:
    """One made-up prompt of Flux's sizes."""
    random = generator(0, "cpu")
    save_file({"context": torch.randn(1, 256, width, generator=random).bfloat16(),
               "pooled": torch.randn(1, pooled, generator=random).bfloat16()}, path)


def sampling(model: list, name: str, steps: int, pixels: int, seed: int = 7) -> Nodes:
    nodes = p.sampling(model, name, steps=steps, cfg=1.0, seed=seed)
    nodes["latent"]["inputs"] |= {"width": pixels, "height": pixels}
    return nodes


def calibrating(steps: int, pixels: int, runs: int, sensitivity: bool) -> Nodes:
    """Nodes that load the bf16 model and, as `calibrate`, sample with it."""
    nodes = {**p.stock_loader(MODEL), **sampling(["model", 0], "unused", steps, pixels)}
    for name in ("sampler", "keep"):
        del nodes[name]
    nodes["calibrate"] = p.node(
        "TPECCalibrate", model=["model", 0], positive=["positive", 0], negative=["negative", 0],
        latent_image=["latent", 0], seed=1, steps=steps, cfg=1.0, sampler_name="euler", scheduler="simple",
        runs=runs, sensitivity=sensitivity)
    return nodes


def shown(node: str) -> Nodes:
    """The node `show`, for the text of another."""
    return {"show": p.node("PreviewAny", source=[node, 1])}


def jobs(args: argparse.Namespace) -> list[Job]:
    """In an order in which each finds what it needs, those that most users run first."""
    source = f"diffusion_models/{MODEL}"
    never, auto = p.quantizing(source), p.quantizing(source, calibrate="auto")
    found = [
        Job("sample", "sample, bf16",
            {**p.stock_loader(MODEL), **sampling(["model", 0], "bf16", args.steps, args.pixels)}),
        Job("never", "TPEC Quantize FP8, calibrate never", {**never, **shown("quantize")}),
        Job("save", "Save Scaled FP8", {**never, **p.saving(RESULT)}, needs="never"),
        Job("result", "sample, FP8", {**p.stock_loader(f"{RESULT}.safetensors"),
                                      **sampling(["model", 0], "fp8", args.steps, args.pixels)},
            needs="save", clean=_MADE, unlink=f"{RESULT}*"),
        Job("auto", "TPEC Quantize FP8, calibrate auto", {**auto, **shown("quantize")}, clean=_MADE),
    ]
    for name, sensitivity in (("plain", False), ("sensitive", True)):
        calibrate = calibrating(args.steps, args.pixels, args.runs, sensitivity)
        words = " with sensitivity" if sensitivity else ""
        found += [
            Job(name, f"TPEC Calibrate{words}", {**calibrate, **shown("calibrate")}),
            Job(f"{name}_quantize", f"TPEC Quantize FP8, calibrated{words}",
                {**calibrate, **p.quantizing(source, calibration=["calibrate", 0]), **shown("quantize")}, needs=name,
                clean=_MADE)]
    limits = LIMITS | {name: float(seconds) for name, _, seconds in (text.partition("=") for text in args.limits)}
    return [with_limit(job, limits[job.name]) for job in found if not args.jobs or job.name in args.jobs]


def with_limit(job: Job, seconds: float) -> Job:
    return replace(job, limit=seconds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    add_model_arguments(parser)
    add = parser.add_argument
    add("--card", type=float, default=0, help="leave what a card sold as so many GB has (default 0: all VRAM)")
    add("--steps", type=int, default=4, help="of each sampling (default 4)")
    add("--pixels", type=int, default=512, help="width and height of the pictures (default 512)")
    add("--runs", type=int, default=2, help="samplings of TPEC Calibrate (default 2)")
    add("--jobs", nargs="+", default=[], choices=LIMITS, help="only these")
    add("--limits", nargs="+", default=[], metavar="JOB=SECONDS", help=f"other limits than {LIMITS}")
    add("--merge", type=Path, nargs="+", metavar="JSON", help="print one table of several --output files and end")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.merge:
        print(merged(args.merge))
        return
    model = flux_model(args)
    about = facts(f"{args.card:g} GB" if args.card else "all", model)
    with only(card_bytes(args.card)) as taken, comfy(args.cpu, args.folder, all_threads()) as server:
        link(model.resolve(), server.models / "diffusion_models" / MODEL)
        conditioning(server.base / "input" / p.CONDITIONING)
        print(*about.values(), *(line for line in server.log().splitlines() if "VRAM" in line or "TEST a card" in line),
              sep="\n", flush=True)
        bench = Bench(server, taken, about, args.output, args.within)
        run_all(bench, jobs(args))
    print("", table(bench.rows), sep="\n")


if __name__ == "__main__":
    main()
