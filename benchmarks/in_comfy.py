"""A model of real size in a real ComfyUI: seconds, memory and VRAM of the nodes, one after another.

    python -m benchmarks.in_comfy --folder /data/scratch --size 10
    python -m benchmarks.in_comfy --folder /data/scratch --size 10 --leave 16

Starts the ComfyUI of the tests (COMFYUI_PATH, COMFYUI_PYTHON) on its GPU, with a synthetic model in Flux layout of full
width. Stock nodes sample with the bf16 model; then it is calibrated with sensitivity, quantized without and with that
calibration, and the last result is sampled with by stock nodes in the same prompt. With --leave this program keeps all
VRAM but so many GB for itself, as a smaller card or other programs would. Memory is the server's own (without what the
system lends it from files), VRAM what was taken at most beside what was taken before.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from .common import environment, markdown_table
from .memory import model_file
from .synthetic import generator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "comfy"))
import prompts as p  # noqa: E402
from comfy_server import ComfyServer, find_comfy, find_python, link  # noqa: E402

MODEL = "model.safetensors"
_PATIENCE = 3600
_INTERVAL = 0.05


class Watch:
    """Context manager: peak bytes of the server's own memory and of VRAM while something runs."""

    def __init__(self, server: ComfyServer) -> None:
        self._status = Path(f"/proc/{server.pid}/status")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.memory = self.vram = 0
        self.seconds = 0.0

    def __enter__(self) -> "Watch":
        self._begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._begun
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(_INTERVAL):
            fields = dict(line.split(":", 1) for line in self._status.read_text().splitlines() if ":" in line)
            own = sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) << 10
            free, total = torch.cuda.mem_get_info()
            self.memory, self.vram = max(self.memory, own), max(self.vram, total - free)


def occupy(leave: float) -> list[torch.Tensor]:
    """Hold all VRAM but `leave` GB; 0: hold nothing."""
    torch.cuda.init()
    free = torch.cuda.mem_get_info()[0] - int(leave * 1e9)
    return [torch.empty(free, dtype=torch.uint8, device="cuda")] if leave and free > 0 else []


def conditioning(path: Path) -> None:
    """One made-up prompt of Flux's sizes."""
    random = generator(0, "cpu")
    save_file({"context": torch.randn(1, 256, 4096, generator=random).bfloat16(),
               "pooled": torch.randn(1, 768, generator=random).bfloat16()}, path)


def sampling(model: list, name: str, args: argparse.Namespace) -> dict[str, dict]:
    nodes = p.sampling(model, name, steps=args.steps, cfg=1.0)
    nodes["latent"]["inputs"] |= {"width": args.pixels, "height": args.pixels}
    return nodes


def jobs(args: argparse.Namespace) -> dict[str, dict[str, dict]]:
    """Prompts by title; every one asks only for what those before it did not make."""
    bf16 = p.stock_loader(MODEL)
    calibrating = {**bf16, **sampling(["model", 0], "unused", args)}
    for name in ("sampler", "keep"):
        del calibrating[name]
    calibrating["calibrate"] = p.node(
        "TPECCalibrate", model=["model", 0], positive=["positive", 0], negative=["negative", 0],
        latent_image=["latent", 0], seed=1, steps=args.steps, cfg=1.0, sampler_name="euler", scheduler="simple",
        runs=1, sensitivity=args.sensitivity)
    quantized = p.quantizing(f"diffusion_models/{MODEL}")
    calibrated = {**calibrating, **p.quantizing(f"diffusion_models/{MODEL}", calibration=["calibrate", 0])}
    show = {"show": p.node("PreviewAny", source=["quantize", 1])}
    result = _renamed({**p.stock_loader(["save", 0]), **sampling(["model", 0], "fp8", args)}, "result_")
    return {
        "sample with the bf16 model": {**bf16, **sampling(["model", 0], "bf16", args)},
        "TPEC Quantize FP8": {**quantized, **show},
        "TPEC Calibrate": {**calibrating, "show": p.node("PreviewAny", source=["calibrate", 1])},
        "TPEC Quantize FP8, calibrated": {**calibrated, **show},
        "Save Scaled FP8, sample with it": {**calibrated, **p.saving("fp8"), **result},
    }


def _renamed(nodes: dict[str, dict], prefix: str) -> dict[str, dict]:
    """The same nodes under other names, beside which the old names can stand."""
    def renamed(value: object) -> object:
        return [prefix + value[0], value[1]] if isinstance(value, list) and value[0] in nodes else value

    return {prefix + name: {**node, "inputs": {key: renamed(value) for key, value in node["inputs"].items()}}
            for name, node in nodes.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where model and results go; needs 6 x the size")
    parser.add_argument("--size", type=float, default=10, help="model size, GB (default 10)")
    parser.add_argument("--leave", type=float, default=0, help="GB of VRAM to leave free (default 0: all)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pixels", type=int, default=1024, help="width and height of the pictures (default 1024)")
    parser.add_argument("--no-sensitivity", dest="sensitivity", action="store_false", help="plain calibration")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    comfy = find_comfy()
    if comfy is None or find_python(comfy) is None:
        sys.exit("no ComfyUI: set COMFYUI_PATH and COMFYUI_PYTHON")
    print(environment(), flush=True)
    # The server of the tests takes one thread otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    args.folder.mkdir(parents=True, exist_ok=True)
    model = model_file(args.folder, args.size, "flux", 3072)
    held = occupy(args.leave)
    free, total = torch.cuda.mem_get_info()
    print(f"{model.stat().st_size / 1e9:.1f} GB model, {free / 1e9:.1f} GB of VRAM free", flush=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as base, \
            ComfyServer(comfy, find_python(comfy), Path(base), cpu=False) as server:
        link(model, server.models / "diffusion_models" / MODEL)
        conditioning(server.base / "input" / p.CONDITIONING)
        for title, nodes in jobs(args).items():
            with Watch(server) as watch:
                outcome = server.succeed(nodes, _PATIENCE)
            rows.append((title, f"{watch.seconds:.1f}", f"{watch.memory / 1e9:.1f}",
                         f"{(watch.vram - total + free) / 1e9:.1f}"))
            print(f"done {rows[-1]}", *(outcome.text("show").splitlines()[:6] if "show" in nodes else ()), sep="\n  ",
                  flush=True)
        passes = [line for line in server.log().splitlines() if "TPEC:" in line]
    print(*passes, "", sep="\n")
    print(markdown_table(("prompt", "seconds", "peak memory, GB", "peak VRAM, GB"), rows))
    del held


if __name__ == "__main__":
    main()
