"""The engine's entry points that the benchmarks call, in one place."""

from collections.abc import Iterable
from pathlib import Path

import torch

from tpec.files.checkpoint import open_checkpoint
from tpec.model.families import QUANTIZE
from tpec.model.plan import make_plan
from tpec.rounding.layer import FACTS, Quantized, chunk_items, corrected_bias, quantize_nearest, quantize_tpec
from tpec.rounding.metric import DenseMetric
from tpec.rounding.principal import data_free_metric, principal_components
from tpec.rounding.rows import RowCoupling
from tpec.rounding.scale import absmax
from tpec.run.compute import STRENGTH, SWEEPS_CALIBRATED, SWEEPS_COUPLED, SWEEPS_DATA_FREE, default_rank
from tpec.run.fit import calibrated_metric
from tpec.settings import Settings
from tpec.statistics.gradients import GradientStats
from tpec.statistics.inputs import Gram, HeldInputs
from tpec.statistics.storage import save_calibration
from tpec.statistics.watching import Collector

from . import synthetic


def collect(model: torch.nn.Module, run: Iterable[object], source: Path, include: str, target: Path) -> Path:
    """Collect a calibration of `source`'s layers while `run` is used up, and save it as a file."""
    plan = make_plan(open_checkpoint(source), Settings(include=include))
    shapes = {layer.local_layer: layer.shape for layer in plan.of(QUANTIZE)}
    modules = {name: module for name, module in model.named_modules() if name in shapes}
    with Collector(modules) as collector:
        for _ in run:
            pass
    return save_calibration(collector.finish(shapes, source.name), target, overwrite=True)


def nearest(weight: torch.Tensor) -> Quantized:
    """Round to nearest."""
    return quantize_nearest(weight, absmax(weight), chunk_items(weight.device))


def data_free(weight: torch.Tensor) -> Quantized:
    """The default method without calibration."""
    items, largest = chunk_items(weight.device), absmax(weight)
    components = principal_components(weight, largest, default_rank(weight.shape[1]), items)
    metric = data_free_metric(components, STRENGTH)
    return quantize_tpec(weight, largest, metric, SWEEPS_DATA_FREE, components, items)


def factor(gram: torch.Tensor) -> DenseMetric:
    """What layers with the same input share: the damped metric of their Gram matrix, factored."""
    stats = HeldInputs(torch.zeros(len(gram), device=gram.device), 1.0, synthetic.TOKENS, Gram(gram))
    return calibrated_metric(stats, True, gram.device)


def coupling(outputs: GradientStats, device: torch.device) -> RowCoupling:
    """A layer's own part when gradients were collected: its output statistics, factored."""
    return RowCoupling(outputs, device)


def calibrated(weight: torch.Tensor, metric: DenseMetric, rows: RowCoupling | None = None) -> Quantized:
    """The default method with calibration, correction of the bias included."""
    items = chunk_items(weight.device)
    sweeps = SWEEPS_CALIBRATED if rows is None else SWEEPS_COUPLED
    quantized = quantize_tpec(weight, absmax(weight), metric, sweeps, None, items, coupling=rows)
    bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
    mean = torch.zeros(weight.shape[1], device=weight.device)
    corrected_bias(weight, quantized, bias, mean, items)
    return quantized


def relative_loss(quantized: Quantized) -> float:
    """The loss on the metric in use against round-to-nearest's."""
    facts = dict(zip(FACTS, quantized.facts.tolist(), strict=True))
    return facts["loss"] / facts["nearest_loss"]
