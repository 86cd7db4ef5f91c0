"""FP8 matmul in some of the layers: velocity error against the share of multiplications that it takes over.

    python -m benchmarks.matmul_auto --velocity-script velocity_error.py --model MODEL.safetensors \\
        --calibration stats.safetensors

Inputs are rounded to e4m3 in an emulation, with the input scales of the calibration; weights are exact, so that only
the inputs' rounding counts. The layers that keep full precision are chosen as `matmul: auto` does (cheapest errors in
FP8), by size (the largest in FP8) and at random; errors are of the predicted velocities at the script's points.
"""

import argparse
import importlib.util
import random
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file

from tpec.files.checkpoint import open_checkpoint
from tpec.model.families import QUANTIZE
from tpec.model.plan import make_plan
from tpec.rounding.grid import FP8_MAX, round_to_grid
from tpec.run.choices.losses import measure
from tpec.run.choices.matmul import cheapest, input_costs, multiplications
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration
from tpec.statistics.storage import open_calibration

from .common import environment, markdown_table
from .keep_quality import filled

_SEEDS = 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--velocity-script", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--percent", type=float, nargs="*", default=[25, 50, 75, 90, 100])
    parser.add_argument("--points", type=int, default=0, help="use so many of the points only (default: all)")
    return parser.parse_args()


class Emulation:
    """The script's model with exact weights, whose chosen layers round their inputs."""

    def __init__(self, script: ModuleType, model: Path, calibration: Calibration, points: int) -> None:
        self._script, self._calibration = script, calibration
        self._state = script.load_dequantized(model)
        name = "points_sd3.safetensors" if script.is_sd3(self._state) else "points.safetensors"
        stored = load_file(Path(script.__file__).with_name(name))
        some = torch.linspace(0, len(stored["x"]) - 1, points or len(stored["x"])).long()
        self._points = {key: value[some] for key, value in stored.items()}
        self._exact = script.velocities(self._state, self._points)

    def error(self, layers: Collection[str]) -> float:
        """Relative velocity error with FP8 inputs in `layers`."""
        names = {_known_by(self._state[f"{layer}.weight"]): layer for layer in layers}
        linear = torch.nn.functional.linear

        def rounding(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            layer = names.get(_known_by(weight))
            return linear(self._rounded(layer, x) if layer else x, weight, bias)

        torch.nn.functional.linear = rounding
        try:
            return self._script.relative(self._script.velocities(self._state, self._points), self._exact)
        finally:
            torch.nn.functional.linear = linear

    def _rounded(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        scale = self._calibration.stats(layer).absmax / FP8_MAX
        return round_to_grid(x / scale) * scale


def _known_by(weight: torch.Tensor) -> tuple[object, ...]:
    """Tells a weight from all others, in whatever memory."""
    return (tuple(weight.shape), *weight.reshape(-1)[:16].tolist())


def load_script(path: Path) -> ModuleType:
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location("velocity_error", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kept_by_order(order: list[str], work: Mapping[str, int], budget: int) -> set[str]:
    """Layers that keep full precision: of this order, each that still fits."""
    return set(filled(order, work, budget))


def main() -> None:
    args = arguments()
    print(environment(), flush=True)
    calibration = open_calibration(args.calibration)
    plan = make_plan(open_checkpoint(args.model), Settings())
    found = measure(plan, calibration, torch.device("cpu"))
    costs, work = input_costs(plan, found), multiplications(plan, calibration)
    emulation = Emulation(load_script(args.velocity_script), args.model, calibration, args.points)
    everything, total = [layer.linear for layer in plan.of(QUANTIZE)], sum(work.values())
    smallest = sorted(work, key=lambda name: work[name])
    lines = []
    for percent in args.percent:
        budget = round(total * (1 - percent / 100))
        chosen = [set(cheapest(costs, work, budget)), set(everything) - kept_by_order(smallest, work, budget)]
        for seed in range(_SEEDS):
            order = random.Random(seed).sample(everything, len(everything))
            chosen.append(set(everything) - kept_by_order(order, work, budget))
        errors = [emulation.error(layers) for layers in chosen]
        shares = [100 * sum(work[name] for name in layers) / total for layers in chosen]
        cells = [f"{error:.5f} ({share:.0f} %)" for error, share in zip(errors, shares, strict=True)]
        promise = sum(costs[name] for name in chosen[0]) ** 0.5
        lines.append([f"{percent:g}", cells[0], cells[1], ", ".join(cells[2:]), f"{promise:.3f}"])
        print(lines[-1], flush=True)
    print(markdown_table(("multiplications in FP8, %", "auto", "by size", "at random", "expected, x nearest"), lines))


if __name__ == "__main__":
    main()
