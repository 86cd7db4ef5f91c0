"""Seconds per step of stock sampling in a real ComfyUI: bf16, and FP8 with each way to multiply.

    python -m benchmarks.make_model flux.safetensors --layout flux --depth 19 38
    python -m benchmarks.step_seconds --model flux.safetensors --output steps.json

TPEC Quantize FP8 writes a file for each `matmul` (rounded to nearest: speed does not depend on the rounding), with a
short calibration where it matters; the stock loader and KSampler sample with each in turn. A step's seconds are the
difference between a prompt with --more and one with --fewer steps, by the server's own clock, divided by the steps
between them: the median of --repeats. What comes once, and what every prompt takes, is not in it.
"""

import argparse
import statistics

import prompts as p
from comfy_server import Outcome, link

from .comfy_jobs import (
    Bench,
    Job,
    Nodes,
    add_arguments,
    add_model_arguments,
    facts,
    flux_model,
    only,
    table,
)
from .common import markdown_table, times
from .in_comfy import MODEL, calibrating, conditioning, sampling, shown
from .server import all_threads, comfy

_SOURCE = f"diffusion_models/{MODEL}"


def quantized(matmul: str, calibrated: bool) -> Nodes:
    """Nodes that write the file of one way to multiply, `named(matmul, calibrated)`."""
    calibrate = calibrating(2, 256, 1, False) if calibrated else {}
    link_to = {"calibration": ["calibrate", 0]} if calibrated else {}
    return {**calibrate, **p.quantizing(_SOURCE, method="nearest", matmul=matmul, **link_to), **shown("quantize"),
            **p.saving(named(matmul, calibrated))}


def named(matmul: str, calibrated: bool) -> str:
    return f"{matmul}_calibrated" if calibrated else matmul


#: What is sampled with: a title, the `matmul` of its file ('' for the bf16 one) and whether it was calibrated.
VARIANTS = [("bf16", "", False), ("FP8, full_precision", "full_precision", False), ("FP8, fp8", "fp8", False),
            ("FP8, auto", "auto", True), ("FP8, fp8, calibrated input scales", "fp8", True)]


def server_seconds(outcome: Outcome) -> float:
    """From the start of a prompt's execution to its end."""
    at = {name: facts["timestamp"] for name, facts in outcome.messages}
    return (at["execution_success"] - at["execution_start"]) / 1000


def step_seconds(bench: Bench, title: str, file: str, args: argparse.Namespace) -> list[float]:
    """One figure per repeat, after a prompt that loads the model and warms everything up."""
    loader = p.stock_loader(file)
    seeds = iter(range(100, 200))

    def sampled(steps: int, name: str) -> float:
        nodes = {**loader, **sampling(["model", 0], "unused", steps, args.pixels, next(seeds))}
        outcome = bench.run(Job(f"{title} {name}", f"{title}: {steps} steps{name}", nodes, args.limit))
        return float("nan") if outcome is None else server_seconds(outcome)

    sampled(args.fewer, ", loading")
    return [(sampled(args.more, "") - sampled(args.fewer, "")) / (args.more - args.fewer) for _ in range(args.repeats)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    add_model_arguments(parser)
    add = parser.add_argument
    add("--pixels", type=int, default=1024, help="width and height of the pictures (default 1024)")
    add("--fewer", type=int, default=4, help="steps of the shorter prompts (default 4)")
    add("--more", type=int, default=12, help="steps of the longer prompts (default 12)")
    add("--repeats", type=int, default=3, help="pairs of prompts (default 3)")
    add("--only", nargs="+", choices=[title for title, *_ in VARIANTS], help="only these models (default: all)")
    add("--limit", type=float, default=180, help="seconds after which a prompt is interrupted (default 180)")
    return parser.parse_args()


def measured(bench: Bench, args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per step by title."""
    variants = [variant for variant in VARIANTS if not args.only or variant[0] in args.only]
    there = [title for title, matmul, calibrated in variants
             if not matmul or bench.run(Job(title, f"{title}: quantize", quantized(matmul, calibrated), args.limit))]
    bench.clean(("results", "calibrations"))
    found: dict[str, list[float]] = {}
    for title, matmul, calibrated in variants:
        if title in there:
            file = f"{named(matmul, calibrated)}.safetensors" if matmul else MODEL
            found[title] = step_seconds(bench, title, file, args)
            print(f"{title}: {', '.join(f'{one:.4f}' for one in found[title])} s per step", flush=True)
            bench.clean((), file if matmul else "")
    return found


def main() -> None:
    args = arguments()
    model = flux_model(args)
    about = facts("all", model)
    with only(0) as taken, comfy(args.cpu, args.folder, all_threads()) as server:
        link(model.resolve(), server.models / "diffusion_models" / MODEL)
        conditioning(server.base / "input" / p.CONDITIONING)
        print(*about.values(), flush=True)
        bench = Bench(server, taken, about, args.output, args.within)
        found = {title: statistics.median(seconds) for title, seconds in measured(bench, args).items()}
    print("", table(bench.rows), "", sep="\n")
    lines = [(title, f"{seconds:.4f}", times(seconds, found["bf16"])) for title, seconds in found.items()]
    print(markdown_table(("model", "seconds per step", "x bf16"), lines))


if __name__ == "__main__":
    main()
