"""What extra size buys: the velocity error of files that keep some layers in high precision, by several rules.

    python -m benchmarks.keep_quality --velocity-script velocity_error.py --model MODEL.safetensors \\
        --calibration stats.safetensors stats_with_sensitivity.safetensors

At equal size: this project's `keep_quality`, the blocks at both ends of the model, and the layers with the largest
weight errors. Layers are rounded one by one, so every file is put together from one quantized file and the original.
Ratios are against the smallest file of the same rounding; `expected` is what the plan promises. `--every 2` also
measures every set of layers that fills 2 % (nothing more fits beside it), where that are few: whether any is better.
"""

import argparse
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file

from tpec.files.checkpoint import open_checkpoint
from tpec.model.families import QUANTIZE
from tpec.model.plan import Plan, make_plan
from tpec.run.choices.losses import Measured, expected, measure
from tpec.run.choices.quality import choose
from tpec.run.pipeline import quantize
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration
from tpec.statistics.storage import open_calibration

from .common import environment, markdown_table
from .errors import read_tensors
from .tinyflux import velocity_error

_CPU = torch.device("cpu")
#: Of all sets that fill a budget: how many are measured at most, and how many printed.
_SETS, _BEST = 100, 10
_OF_SETS = ("rounding", "extra size, %", "place", "velocity error", "layers kept", "chosen by")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--velocity-script", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, nargs="*", default=[])
    parser.add_argument("--percent", type=float, nargs="*", default=[2, 5, 10])
    parser.add_argument("--every", type=float, help="percent of extra size for which every set of layers is measured")
    return parser.parse_args()


@dataclass(frozen=True)
class Rounded:
    """A model rounded in one way: what was measured of it, the original's tensors and the smallest file's."""

    plan: Plan
    found: Mapping[str, Measured]
    original: Mapping[str, torch.Tensor]
    quantized: Mapping[str, torch.Tensor]

    @property
    def costs(self) -> dict[str, int]:
        return {layer.linear: layer.info.nbytes - layer.info.items for layer in self.plan.of(QUANTIZE)}


def rounded(model: Path, calibration: Calibration | None, folder: Path) -> Rounded:
    """Quantize every layer that the plan allows."""
    plan = make_plan(open_checkpoint(model), Settings())
    quantize(plan, folder / "smallest.safetensors", calibration=calibration, overwrite=True)
    return Rounded(plan, measure(plan, calibration, _CPU), read_tensors(model),
                   read_tensors(folder / "smallest.safetensors"))


def keeping(names: Iterable[str], one: Rounded, target: Path) -> Path:
    """A file with these layers as in the original, biases too."""
    tensors = dict(one.quantized)
    for layer in names:
        for name in [name for name in tensors if name.startswith(f"{layer}.")]:
            del tensors[name]
        tensors |= {name: one.original[name] for name in (f"{layer}.weight", f"{layer}.bias") if name in one.original}
    save_file(tensors, target)
    return target


def filled(order: Iterable[str], costs: Mapping[str, int], budget: int) -> list[str]:
    """Of the layers in this order, each that still fits."""
    kept = []
    for name in order:
        if costs[name] <= budget:
            kept.append(name)
            budget -= costs[name]
    return kept


def block(layer: str) -> tuple[int, int]:
    """Where the layer's block stands: rows of blocks in Flux's order, and the number."""
    number = re.search(r"\.(\d+)\.", layer)
    return int(layer.startswith("single")), int(number[1]) if number else 0


def from_the_ends(costs: Mapping[str, int]) -> list[str]:
    """Layers by their block's distance from the nearer end; the first block before the last, in the file's order."""
    blocks = sorted({block(name) for name in costs})
    place = {one: min(at, len(blocks) - 1 - at) for at, one in enumerate(blocks)}
    return sorted(costs, key=lambda name: (place[block(name)], block(name)))


def rows(title: str, one: Rounded, script: Path, percents: Iterable[float], folder: Path) -> Iterable[list[str]]:
    smallest, _ = velocity_error(script, folder / "smallest.safetensors")
    yield [title, "0", f"{smallest:.5f}", "1.000", "1.000", "1.000", "1.000", "0"]
    shares, costs = expected(one.plan, one.found), one.costs
    worst = sorted(costs, key=lambda name: -one.found[name].weight_error)
    for percent in percents:
        budget = int(one.plan.output_nbytes * percent / 100)
        ours = sorted(choose(shares, costs, budget))
        promise = (1 - sum(shares[name] for name in ours)) ** 0.5
        errors = [velocity_error(script, keeping(names, one, folder / "kept.safetensors"))[0]
                  for names in (ours, filled(from_the_ends(costs), costs, budget), filled(worst, costs, budget))]
        yield [title, f"{percent:g}", f"{errors[0]:.5f}", *(f"{error / smallest:.3f}" for error in errors),
               f"{promise:.3f}", str(len(ours))]


def fillings(costs: Mapping[str, int], budget: int) -> Iterator[frozenset[str]]:
    """Every set of layers that fits the budget and has no room for another."""
    names = [name for name in costs if costs[name] <= budget]

    def further(taken: tuple[str, ...], at: int, rest: int) -> Iterator[frozenset[str]]:
        if not any(costs[name] <= rest for name in names if name not in taken):
            yield frozenset(taken)
        for index in range(at, len(names)):
            if costs[names[index]] <= rest:
                yield from further((*taken, names[index]), index + 1, rest - costs[names[index]])

    return further((), 0, budget)


def every(title: str, one: Rounded, script: Path, percent: float, folder: Path) -> Iterable[list[str]]:
    """The best of all sets that fill the budget, and which of them the rules choose."""
    shares, costs = expected(one.plan, one.found), one.costs
    budget = int(one.plan.output_nbytes * percent / 100)
    sets = list(islice(fillings(costs, budget), _SETS + 1))
    if len(sets) > _SETS:
        raise SystemExit(f"--every {percent:g}: more than {_SETS} sets of layers fill that, take less.")
    rules = {"keep_quality": choose(shares, costs, budget),
             "first and last blocks": frozenset(filled(from_the_ends(costs), costs, budget))}
    smallest, _ = velocity_error(script, folder / "smallest.safetensors")
    errors = {names: velocity_error(script, keeping(names, one, folder / "kept.safetensors"))[0] for names in sets}
    for place, names in enumerate(sorted(errors, key=errors.__getitem__)[:_BEST], 1):
        yield [title, f"{percent:g}", f"{place} of {len(sets)}", f"{errors[names] / smallest:.4f}",
               " ".join(f"`{name}`" for name in sorted(names)),
               ", ".join(rule for rule, chosen in rules.items() if chosen == names)]


def main() -> None:
    args = arguments()
    print(environment(), flush=True)
    lines, sets = [], []
    for path in (None, *args.calibration):
        calibration = open_calibration(path) if path else None
        title = f"{args.model.stem}, {path.stem if path else 'no calibration'}"
        with tempfile.TemporaryDirectory() as folder:
            one = rounded(args.model, calibration, Path(folder))
            for row in rows(title, one, args.velocity_script, args.percent, Path(folder)):
                print(row, flush=True)
                lines.append(row)
            if args.every:
                sets += every(title, one, args.velocity_script, args.every, Path(folder))
    print(markdown_table(("rounding", "extra size, %", "velocity error", "keep_quality", "first and last blocks",
                          "largest weight errors", "expected", "layers kept"), lines))
    if sets:
        print(f"\n{markdown_table(_OF_SETS, sets)}")


if __name__ == "__main__":
    main()
