"""The engine's entry points that the benchmarks call, in one place."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from tpec.files.checkpoint import open_checkpoint
from tpec.model.families import QUANTIZE
from tpec.model.plan import make_plan
from tpec.rounding.layer import Quantized
from tpec.rounding.method import Policy, Rounder
from tpec.settings import Settings
from tpec.statistics.gradients import GradientStats
from tpec.statistics.inputs import Gram, HeldInputs
from tpec.statistics.storage import save_calibration
from tpec.statistics.watching import Collector

from . import synthetic

#: As in a run, where one rounder serves a thread's layers and keeps the random directions of their shapes.
_NEAREST, _DATA_FREE = Rounder(Policy("nearest")), Rounder(Policy())


class Inputs(NamedTuple):
    """What layers with the same input share: its statistics, and a rounder that keeps their factored metric."""

    rounder: Rounder
    stats: HeldInputs


def collect(model: torch.nn.Module, run: Iterable[object], source: Path, include: str, target: Path) -> Path:
    """Collect a calibration of `source`'s layers while `run` is used up, and save it as a file."""
    plan = make_plan(open_checkpoint(source), Settings(include=include))
    shapes = {layer.linear_in_model: layer.shape for layer in plan.of(QUANTIZE)}
    modules = {name: module for name, module in model.named_modules() if name in shapes}
    with Collector(modules) as collector:
        for _ in run:
            pass
    return save_calibration(collector.finish(shapes, source.name), target, overwrite=True)


def nearest(weight: torch.Tensor) -> Quantized:
    """Round to nearest."""
    return _NEAREST.round_linear("weight", weight).quantized


def data_free(weight: torch.Tensor) -> Quantized:
    """The default method without calibration."""
    return _DATA_FREE.round_linear("weight", weight).quantized


def factor(gram: torch.Tensor) -> Inputs:
    """What layers with the same input share, made: the damped metric of their Gram matrix, factored."""
    stats = HeldInputs(torch.zeros(len(gram), device=gram.device), 1.0, synthetic.TOKENS, Gram(gram))
    rounder = Rounder(Policy())
    rounder.metric(stats, True, gram.device)
    return Inputs(rounder, stats)


def calibrated(weight: torch.Tensor, inputs: Inputs, gradients: GradientStats | None = None) -> Quantized:
    """The default method with calibration, correction of the bias included."""
    bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    return inputs.rounder.round_linear("weight", weight, bias, inputs.stats, gradients).quantized


def relative_loss(quantized: Quantized) -> float:
    """The loss on the metric in use against round-to-nearest's."""
    return (quantized.facts.loss / quantized.facts.nearest_loss).item()
