"""What rounding each layer is expected to cost the model's result, measured in one reading of the weights.

A layer is rounded to nearest on evenly spread rows. Its error relative to the layer's output is measured on what is
known: the weights alone, the real inputs, and the gradients at its output. To compare layers of different kinds it is
weighed by the part that the layer plays (roles.py) and by how many of the tokens pass through it.
"""

import statistics
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import torch

from ...errors import is_out_of_memory
from ...files.dtypes import TORCH_DTYPES
from ...files.header import TensorInfo
from ...files.source import TensorReader
from ...model.families import QUANTIZE
from ...model.plan import Plan, TensorPlan
from ...model.roles import density, modulates, of_text
from ...rounding.grid import round_to_grid
from ...rounding.layer import check_finite
from ...rounding.scale import absmax_scale
from ...statistics.calibration import Calibration
from ...statistics.gradients import GradientStats
from ...statistics.inputs import InputStats
from ..progress import Meter, OnProgress

#: Rows that are rounded, of a layer of many; their errors vary little.
_ROWS = 256
_CPU = torch.device("cpu")
#: Squared relative error of a value rounded to e4m3, wherever its mantissa lies: 2^-6 / 12 * E[1 / m^2].
_INPUT_ROUNDING = 2**-6 / 24
#: Rounding that knows the inputs gains most where they have few directions: powers of their spread (1: all directions
#: alike), with inputs alone and with gradients as well.
_SPREAD_POWER = 0.25
_FELT_SPREAD_POWER = 0.5


@dataclass(frozen=True)
class Measured:
    """One layer. Errors are squared and relative: of the weight, and of the output on the calibration's inputs.

    input_error is that of the output when the inputs are rounded to FP8 instead. spread is the share of directions
    that the inputs fill (participation ratio of their covariance), tokens how many inputs there were; felt and
    input_felt are what the result feels of both errors by the gradients, in the calibration's own units.
    """

    weight_error: float
    output_error: float | None = None
    input_error: float | None = None
    spread: float = 1.0
    tokens: int = 0
    felt: float | None = None
    input_felt: float | None = None


def measure(plan: Plan, calibration: Calibration | None, device: torch.device,
            progress: OnProgress | None = None) -> dict[str, Measured]:
    """Every Linear that `plan` quantizes, by its name in the file; holds one weight and one moment [in, in] at a time.

    `progress` may raise to stop. Raises TpecError for weights that are not finite or cannot be read.
    """
    layers = [layer for layer in plan.of(QUANTIZE) if not layer.embedding]
    meter = Meter(sum(layer.info.nbytes for layer in layers) or 1.0, len(layers), 0.0, 0, progress)
    probe = _Probe(plan, calibration, device)
    found = {}
    with closing(plan.checkpoint.reader()) as reader, torch.inference_mode():
        for at, layer in enumerate(layers):
            if at + 1 < len(layers):
                reader.will_need(layers[at + 1].info)
            meter.begin(layer.linear)
            found[layer.linear] = probe.measure(layer, _loaded(reader, layer.info))
            meter.advance(layer.info.nbytes, True, "measured")
    return found


def _loaded(reader: TensorReader, info: TensorInfo) -> torch.Tensor:
    raw = torch.empty(info.nbytes, dtype=torch.uint8)
    reader.read_into(info, raw.numpy().data)
    return raw.view(TORCH_DTYPES[info.dtype]).reshape(info.shape)


class _Probe:
    """Measures layer by layer and keeps the inputs' covariance, which neighbours share."""

    def __init__(self, plan: Plan, calibration: Calibration | None, device: torch.device) -> None:
        self._plan, self._calibration, self._device = plan, calibration, device
        self._kept: tuple[object, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None = None

    def measure(self, layer: TensorPlan, weight: torch.Tensor) -> Measured:
        stats, gradients = self._known(layer)
        try:
            return self._measure(layer, weight.to(self._device), stats, gradients)
        except RuntimeError as error:
            if self._device.type == "cpu" or not is_out_of_memory(error):
                raise
        self._kept = None
        return self._measure(layer, weight, stats, gradients)

    def _known(self, layer: TensorPlan) -> tuple[InputStats | None, GradientStats | None]:
        """What the calibration says of a layer of the main model."""
        if self._calibration is None or self._plan.part(layer.name) is not self._plan.parts[0]:
            return None, None
        return self._calibration.stats(layer.linear_in_model), self._calibration.outputs.get(layer.linear_in_model)

    def _measure(self, layer: TensorPlan, weight: torch.Tensor, stats: InputStats | None,
                 gradients: GradientStats | None) -> Measured:
        scale = absmax_scale(check_finite(layer.name, weight))
        count = min(len(weight), _ROWS)
        rows = torch.arange(count, device=weight.device) * len(weight) // count
        sample = weight[rows].float() / scale
        errors = round_to_grid(sample) - sample
        plain = _ratio(errors.square().sum(), sample.square().sum())
        if stats is None:
            return Measured(plain)
        covariance, energies, unit = self._covariance(layer, stats, weight.device)
        right = ((sample @ covariance) * sample).sum(1).clamp(min=0)
        wrong = torch.stack([((errors @ covariance) * errors).sum(1).clamp(min=0),
                             _INPUT_ROUNDING * (sample.square() @ energies)])
        felt: list[float | None] = [None, None]
        if gradients is not None:
            strength = gradients.second_moment(weight.device).diagonal(dim1=-2, dim2=-1).reshape(-1)[rows]
            whole = scale.square() * unit * gradients.tokens * (len(weight) / count)
            felt = ((wrong * strength).sum(1) * whole).tolist()
        spread = _ratio(covariance.trace().square(), covariance.square().sum()) / len(covariance)
        output_error, input_error = (_ratio(part.sum(), right.sum()) for part in wrong)
        return Measured(plain, output_error, input_error, spread, stats.tokens, felt[0], felt[1])

    def _covariance(self, layer: TensorPlan, stats: InputStats, device: torch.device) -> tuple[
            torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the inputs, their mean squares [in], both in units of the mean of these, and that.

        The mean is taken out of the covariance where a bias makes up for its error.
        """
        biased = f"{layer.linear}.bias" in self._plan.checkpoint.tensors
        group = self._calibration.layers[layer.linear_in_model] if self._calibration else None
        key = (group, biased, device)
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            moment = stats.second_moment(device)
            unit = moment.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
            energies = moment.diagonal() / unit
            if biased:
                mean = stats.mean.to(device)
                moment.addr_(mean, mean, alpha=-1)
            self._kept = key, (moment.div_(unit), energies, unit)
        return self._kept[1]


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> float:
    return (part / whole.clamp(min=torch.finfo(torch.float32).tiny)).item()


def expected(plan: Plan, found: Mapping[str, Measured]) -> dict[str, float]:
    """The squared error of the model's result that each layer is expected to cause, in units of their sum."""
    layers = {layer.linear: layer for layer in plan.of(QUANTIZE) if layer.linear in found}
    weighty = importance(plan, found)
    known = plan.settings.method == "tpec"
    by_weight, by_input, by_gradient = {}, {}, {}
    for name, layer in layers.items():
        one = found[name]
        by_weight[name] = layer.info.items * _part(plan, layer) * of_text(layer.linear_in_model) * one.weight_error
        if one.output_error is None:
            continue
        cost = weighty[name] * one.output_error
        by_input[name] = cost * one.spread ** (_SPREAD_POWER if known else 0.0)
        if one.felt is not None:
            by_gradient[name] = (cost * one.felt) ** 0.5 * one.spread ** (_FELT_SPREAD_POWER if known else 0.0)
    costs = completed(by_gradient, completed(by_input, by_weight))
    total = sum(costs.values()) or 1.0
    return {name: cost / total for name, cost in costs.items()}


def importance(plan: Plan, found: Mapping[str, Measured]) -> dict[str, float]:
    """By layer, what a relative squared error of its output weighs: its size, its part, its share of the tokens."""
    most = max((one.tokens for one in found.values()), default=0) or 1
    layers = [layer for layer in plan.of(QUANTIZE) if layer.linear in found]
    shares = {layer.linear: 1.0 if modulates(layer.linear_in_model) else found[layer.linear].tokens / most
              for layer in layers}
    return {layer.linear: layer.info.items * _part(plan, layer) * shares[layer.linear] for layer in layers}


def _part(plan: Plan, layer: TensorPlan) -> float:
    part = plan.part(layer.name)
    return density(layer.linear_in_model) if part is None or part.family.kind == "diffusion_models" else 1.0


def completed(better: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """`better` where it knows a layer, else `others` in the same units."""
    ratios = [better[name] / others[name] for name in better if others[name] > 0]
    unit = statistics.median(ratios) if ratios else 1.0
    return {name: better.get(name, unit * cost) for name, cost in others.items()}
