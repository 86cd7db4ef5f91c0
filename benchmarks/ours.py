"""The engine's entry points that the benchmarks call, in one place."""

from collections.abc import Iterable
from pathlib import Path

import torch

from tpec.layer import Quantized, quantize_nearest, quantize_tpec
from tpec.metric import DenseMetric
from tpec.principal import data_free_metric, principal_components
from tpec.scale import absmax


def collect(model: torch.nn.Module, run: Iterable[object], checkpoint: Path, target: Path) -> Path | None:
    return None


def nearest(weight: torch.Tensor) -> Quantized:
    """Round to nearest."""
    return quantize_nearest(weight, absmax(weight))


def data_free(weight: torch.Tensor) -> Quantized:
    """The default method without calibration."""
    components = principal_components(weight, 16, 1 << 26)
    return quantize_tpec(weight, absmax(weight), data_free_metric(components, 1.0), 1, components)


def factor(gram: torch.Tensor) -> DenseMetric:
    """What layers with the same input share: the damped metric of their Gram matrix, factored."""
    n = len(gram)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(n, device=gram.device)
    return DenseMetric(damped, gram.diagonal().argsort(descending=True, stable=True))


def calibrated(weight: torch.Tensor, metric: DenseMetric) -> Quantized:
    """The default method with calibration."""
    return quantize_tpec(weight, absmax(weight), metric, 1, None)
