"""What one prompt of a kind leaves in ComfyUI's process, where `soak` says that something grows.

    python -m benchmarks.growth --shared ../shared --gpu

Starts the ComfyUI of the tests (COMFYUI_PATH, COMFYUI_PYTHON) with this pack and repeats prompts of one kind after
another, those of ComfyUI alone among them. Before and after each row models, cache and history are freed; the row tells
what is left for each prompt. The first row of a kind holds what its libraries take with their first call.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import prompts as p
from comfy_server import TINYFLUX, ComfyServer

from .common import environment, markdown_table
from .server import all_threads, comfy, own_memory
from .soak_jobs import KEPT, MODEL, NAN, Nodes, calibrating, first_ones, furnish, storing

#: Seconds from queueing to the interrupt, for kinds that are interrupted.
_UNTIL_STOPPED = 0.3
_PATIENCE = 3600
_KEPT_SENSITIVITY = KEPT[1]


def _shown(node: str, nodes: Nodes) -> Nodes:
    return {**nodes, "show": p.node("PreviewAny", source=[node, 1])}


def _stock(steps: int, number: int) -> Nodes:
    return {**p.stock_loader(MODEL), **p.sampling(["model", 0], "growth", steps=steps, seed=number)}


def _quantized(number: int, model: str = MODEL, **settings: object) -> Nodes:
    return _shown("quantize", p.quantizing(f"diffusion_models/{model}", exclude=f"never{number}", **settings))


def _added(number: int) -> Nodes:
    kept = {"kept": p.node("TPECLoadCalibration", name=f"{_KEPT_SENSITIVITY}.safetensors")}
    return _shown("calibrate", {**kept, **calibrating(2, number, True, calibration=["kept", 0])})


KINDS: dict[str, Callable[[int], Nodes]] = {
    "ComfyUI alone": partial(_stock, 2),
    "ComfyUI alone, interrupted": partial(_stock, 30),
    "nearest": partial(_quantized, method="nearest"),
    "tpec": _quantized,
    "tpec, interrupted": partial(_quantized, num_iter=2),
    "refused weight": partial(_quantized, model=NAN),
    "calibrate": lambda number: _shown("calibrate", calibrating(2, number, False)),
    "calibration added to another": _added,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="folder with models (default: a small model with random weights)")
    parser.add_argument("--gpu", action="store_true", help="let ComfyUI use its GPU (default: the CPU)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="only these")
    parser.add_argument("--prompts", type=int, default=20, help="of one kind in a row (default 20)")
    parser.add_argument("--rows", type=int, default=2, help="of each kind (default 2)")
    parser.add_argument("--cold", action="store_true", help="nothing is calibrated twice before the first row")
    return parser.parse_args()


def held(server: ComfyServer) -> dict[str, float]:
    """What the process holds once everything is freed that can be."""
    p.freed(server)
    facts = p.freed(server)
    return {"blocks": facts["blocks"], "malloc": facts["given_out"] / 1e6, "memory": own_memory(server.pid) / 1e6,
            "vram": facts["allocated"] / 1e6, "objects": sum(facts["objects"].values())}


def play(server: ComfyServer, kind: str, number: int) -> None:
    prompt = server.queue(KINDS[kind](number))
    if "interrupted" in kind:
        time.sleep(_UNTIL_STOPPED)
        server.interrupt()
    server.wait(prompt, _PATIENCE)


def main() -> None:
    args = arguments()
    folder = args.shared and args.shared.resolve() / "models" / "tinyflux-shapes"
    print(environment(), flush=True)
    rows, numbers = [], itertools.count()
    with comfy(not args.gpu, threads=all_threads()) as server:
        furnish(server, folder and folder / TINYFLUX, folder and folder / p.CONDITIONING)
        first = [{**calibrating(2, 1, True), **storing(_KEPT_SENSITIVITY)}] if args.cold else first_ones()
        for nodes in first:
            server.succeed(nodes, _PATIENCE)
        held(server)
        for kind, row in itertools.product(args.kinds, range(args.rows)):
            before = held(server)
            for _ in range(args.prompts):
                play(server, kind, next(numbers))
            after = held(server)
            rows.append((kind, row + 1, *(f"{(after[what] - before[what]) / args.prompts:+.3f}" for what in before),
                         f"{after['malloc']:.1f}"))
            print(rows[-1], flush=True)
    print("", markdown_table(("prompt", "row", "Python's blocks each", "malloc, MB each", "memory, MB each",
                              "tensors in VRAM, MB each", "objects of this pack each", "malloc in all, MB"), rows),
          sep="\n")


if __name__ == "__main__":
    main()
