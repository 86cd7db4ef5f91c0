"""A calibration file as a large model's would be: every layer has statistics of its own, nothing is shared.

    python -m benchmarks.make_calibration /data/scratch/model.safetensors /data/scratch/calibration.safetensors

The figures are made up (see synthetic.py); their number and forms are those of a real file. With --gradients the file
also has what `sensitivity` collects.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch

from tpec.files.checkpoint import open_checkpoint
from tpec.model.families import QUANTIZE
from tpec.model.plan import make_plan
from tpec.settings import Settings
from tpec.statistics.calibration import Calibration, hash_layers
from tpec.statistics.gradients import GradientsOnDemand, run_shape
from tpec.statistics.inputs import Gram, InputsOnDemand, Moment, Summary, gram_form, summary_form
from tpec.statistics.storage import save_calibration
from tpec.statistics.sums import SKETCH_SHARE, WIDTH_LIMIT

from . import synthetic


def moment(width: int, seed: int, made_on: torch.device, device: torch.device) -> Moment:
    """In the form that the engine keeps for inputs of such a width; made up on one device and handed out on another."""
    if width <= WIDTH_LIMIT:
        return Gram(synthetic.gram(width, seed, made_on).to(device))
    k = width // SKETCH_SHARE
    random = synthetic.generator(seed, made_on)
    vectors = torch.randn(width, k, generator=random, device=made_on).mul_(width**-0.5)
    values = torch.arange(1, k + 1, device=made_on) ** -1.0 * width
    return Summary(vectors.to(device), values.to(device), torch.full((width,), 0.5, device=device))


def input_stats(width: int, seed: int, made_on: torch.device) -> InputsOnDemand:
    form = gram_form(width) if width <= WIDTH_LIMIT else summary_form(width, width // SKETCH_SHARE)
    return InputsOnDemand(torch.zeros(width), 1.0, synthetic.TOKENS, form, partial(moment, width, seed, made_on))


def gradient_stats(rows: int, seed: int, made_on: torch.device) -> GradientsOnDemand:
    def make(device: torch.device) -> torch.Tensor:
        return synthetic.outputs(rows, seed, made_on).second_moment(device)

    return GradientsOnDemand(rows, synthetic.TOKENS, run_shape(rows)[0], make)


def calibration(model: Path, device: torch.device, gradients: bool) -> Calibration:
    """One group per layer of the model's plan; the parts are computed on `device` on access."""
    plan = make_plan(open_checkpoint(model), Settings())
    shapes = {layer.linear_in_model: layer.shape for layer in plan.of(QUANTIZE)}
    groups = {name: input_stats(columns, seed, device) for seed, (name, (_, columns)) in enumerate(shapes.items())}
    outputs = {name: gradient_stats(rows, seed, device)
               for seed, (name, (rows, _)) in enumerate(shapes.items()) if gradients}
    return Calibration(groups, {name: name for name in shapes}, hash_layers(shapes), model.name, 1, outputs, shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where it is made up")
    parser.add_argument("--gradients", action="store_true", help="output statistics too")
    args = parser.parse_args()
    begun = time.perf_counter()
    made = calibration(args.model, torch.device(args.device), args.gradients)
    save_calibration(made, args.output, overwrite=True)
    print(f"{args.output.stat().st_size / 1e9:.2f} GB for {len(made.layers)} layers, "
          f"{time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main()
