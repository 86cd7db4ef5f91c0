"""The policy of a layer: which metric, how many sweeps and components, how much damping, whether its bias is corrected.

This is the only place that decides it; runs and benchmarks ask here. docs/method.md explains the choices.
"""

from typing import NamedTuple

import torch

from ..statistics.gradients import GradientStats
from ..statistics.inputs import InputStats
from .damping import Damping, damped, scaled
from .feedback import Tick, no_tick
from .layer import Quantized, Rounding, check_finite, chunk_size, corrected_bias, quantize_nearest, quantize_tpec
from .metric import DenseMetric
from .principal import data_free_metric, principal_components, start_directions
from .rows import RowCoupling

#: Data-free: this share of the columns' number of components, at most so many, and their extra weight.
_RANK_SHARE = 16
_RANK_LIMIT = 256
_STRENGTH = 2.0
#: Sweeps of coordinate descent by default: they pay on real inputs, hardly on the weight's own components.
_SWEEPS_CALIBRATED = 4
_SWEEPS_COUPLED = 2
_SWEEPS_DATA_FREE = 0
#: With a bias to absorb the mean error, rounding may ignore most of the mean's part of the second moment.
_CENTRING = 0.95
_DAMPING = Damping(4.0, 0.02, 0.05)
#: Fewer distinct tokens per column than this and the mean is not trusted either.
_FEW = 8.0


class Policy(NamedTuple):
    """What the user may choose: `method` is "tpec" or "nearest"; None leaves `rank` and `sweeps` to this module.

    rank is the number of principal components of a layer without statistics, sweeps the most of coordinate descent.
    """

    method: str = "tpec"
    rank: int | None = None
    sweeps: int | None = None


class Rounded(NamedTuple):
    """A layer that was rounded, on its device.

    bias [out] is the corrected one, None where it stays as it is. metric says what the loss is: "nearest" (no metric),
    "weight" (data-free), "activation" (calibrated), or "gradient" (calibrated with sensitivity).
    """

    quantized: Quantized
    bias: torch.Tensor | None
    metric: str


class Rounder:
    """Rounds one layer after another by one policy; `tick` is called within layers and may raise to stop.

    It keeps what neighbours share, the factored metric of the last inputs above all, and serves one thread.
    """

    def __init__(self, policy: Policy, tick: Tick = no_tick) -> None:
        self._policy = policy
        self._tick = tick
        self._metric: tuple[object, DenseMetric] | None = None
        self._directions = start_directions()

    def round_linear(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None = None,
                     inputs: InputStats | None = None, gradients: GradientStats | None = None,
                     chunk: int | None = None) -> Rounded:
        """Round W [out, in] of any float dtype on its device, with the statistics that are known of the layer.

        bias [out] is the layer's, if it has one. About `chunk` weights are held in float32 at a time, by default what
        suits the device. Raises TpecError, naming the tensor `name`, for weights that are not finite, and for
        statistics that are not positive.
        """
        if self._policy.method == "nearest":
            return self.round_table(name, weight, chunk)
        chunk = chunk or chunk_size(weight.device)
        largest = check_finite(name, weight)
        if inputs is None:
            rounding = self._data_free(weight, largest, chunk)
            return Rounded(quantize_tpec(weight, largest, rounding, chunk, self._tick), None, "weight")
        rounding = self._calibrated(inputs, gradients, bias is not None, weight.device)
        quantized = quantize_tpec(weight, largest, rounding, chunk, self._tick)
        if bias is None or not centred(inputs, True):
            corrected = None
        else:
            corrected = corrected_bias(weight, quantized, bias, inputs.mean.to(weight.device), chunk)
        return Rounded(quantized, corrected, "activation" if gradients is None else "gradient")

    def round_table(self, name: str, weight: torch.Tensor, chunk: int | None = None) -> Rounded:
        """Round a table of vectors [n, width] that are looked up, not multiplied: to nearest, whatever the method.

        `chunk` and errors are as in `round_linear`.
        """
        quantized = quantize_nearest(weight, check_finite(name, weight), chunk or chunk_size(weight.device), self._tick)
        return Rounded(quantized, None, "nearest")

    def metric(self, inputs: InputStats, has_bias: bool, device: torch.device) -> DenseMetric:
        """The metric of a layer that reads `inputs`; the last one is kept."""
        key = (inputs, has_bias, device)
        if self._metric is None or self._metric[0] != key:
            # Two of them at once may be more than the device holds.
            self._metric = None
            self._metric = (key, calibrated_metric(inputs, has_bias, device))
        return self._metric[1]

    def forget(self) -> None:
        """Let go of the metric, where memory is short."""
        self._metric = None

    def _data_free(self, weight: torch.Tensor, largest: torch.Tensor, chunk: int) -> Rounding:
        rank = self._policy.rank or default_rank(weight.shape[1])
        components = principal_components(weight, largest, rank, chunk, self._tick, self._directions)
        return Rounding(data_free_metric(components, _STRENGTH), self._sweeps(_SWEEPS_DATA_FREE), components)

    def _calibrated(self, inputs: InputStats, gradients: GradientStats | None, has_bias: bool,
                    device: torch.device) -> Rounding:
        metric = self.metric(inputs, has_bias, device)
        if gradients is None:
            return Rounding(metric, self._sweeps(_SWEEPS_CALIBRATED))
        return Rounding(metric, self._sweeps(_SWEEPS_COUPLED), coupling=RowCoupling(gradients, device))

    def _sweeps(self, default: int) -> int:
        return default if self._policy.sweeps is None else self._policy.sweeps


def default_rank(width: int) -> int:
    """Principal components corrected in a layer that reads `width` values, when the user does not say."""
    return min(max(1, width // _RANK_SHARE), _RANK_LIMIT)


def centred(inputs: InputStats, has_bias: bool) -> bool:
    """Whether the mean is taken out of the metric and put into the bias instead."""
    return has_bias and inputs.tokens >= _FEW * inputs.width


def calibrated_metric(inputs: InputStats, has_bias: bool, device: torch.device) -> DenseMetric:
    """Damped E[x x^T], less the mean's part where the bias takes care of it; columns by falling energy.

    Raises TpecError when no damping makes it positive.
    """
    moment = inputs.second_moment(device)
    if centred(inputs, has_bias):
        mean = inputs.mean.to(device)
        moment.addr_(mean, mean, alpha=-_CENTRING)
    scaled(moment, inputs.width)
    order = moment.diagonal().argsort(descending=True, stable=True)
    return damped(moment, _DAMPING.share(inputs.width, inputs.tokens), lambda matrix: DenseMetric(matrix, order))
