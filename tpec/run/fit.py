"""Whether a calibration fits a plan, and what the file's header says of each layer because of it."""

from collections.abc import Iterable, Mapping

import torch

from ..errors import TpecError
from ..files.dtypes import TORCH_DTYPES
from ..files.header import TensorInfo
from ..files.source import TensorReader
from ..model.families import QUANTIZE
from ..model.formats import LayerOptions
from ..model.plan import Plan, TensorPlan
from ..patterns import matches
from ..rounding.grid import FP8_MAX
from ..rounding.method import centred
from ..statistics.calibration import Calibration
from ..statistics.inputs import InputStats
from ..statistics.weights import other_weights, rounded, sampled_span
from .tasks import Task

#: The least size of an input, relative to its maximum, that FP8 keeps to a few percent: 448 / 2^-6.
_FP8_RANGE = 28672.0


def check_calibration(plan: Plan, calibration: Calibration) -> tuple[str, ...]:
    """Names (in the file) of the layers it covers. Raises TpecError when it is of another model."""
    layers, covered = _own_layers(plan), []
    for layer in layers:
        stats = calibration.stats(layer.linear_in_model)
        if stats is None:
            continue
        covered.append(layer)
        if stats.width != layer.shape[1]:
            raise _other_model(f"its '{layer.linear_in_model}' reads {stats.width} values, that of "
                               f"{plan.checkpoint.name} {layer.shape[1]}")
        outputs = calibration.outputs.get(layer.linear_in_model)
        if outputs is not None and outputs.rows != layer.shape[0]:
            raise _other_model(f"its '{layer.linear_in_model}' has {outputs.rows} outputs, that of "
                               f"{plan.checkpoint.name} {layer.shape[0]}")
    foreign = [name for name in calibration.layers if f"{plan.prefix}{name}.weight" not in plan.checkpoint.tensors]
    if covered and foreign:
        raise _other_model(f"{plan.checkpoint.name} has no layer '{foreign[0]}'")
    if not covered:
        raise _other_model(f"it knows none of the {len(layers)} layers of {plan.checkpoint.name}")
    _check_shapes(plan, calibration.shapes)
    return tuple(layer.linear for layer in covered)


def _other_model(why: str) -> TpecError:
    return TpecError(f"The calibration is of another model: {why}; use one of this model, or none.")


def _own_layers(plan: Plan) -> tuple[TensorPlan, ...]:
    """The layers of the plan's main model; text encoders quantized beside it see other inputs."""
    return tuple(layer for layer in plan.of(QUANTIZE) if plan.part(layer.name) is plan.parts[0])


def _check_shapes(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Hold the plan's layers against those of the model that was calibrated, as far as the calibration tells them.

    A layer that merely saw no input is no fault, one that the model did not have is: smaller relatives of a model have
    part of its layers under the same names.
    """
    include = plan.settings.include
    for layer in _own_layers(plan) if shapes else ():
        shape = shapes.get(layer.linear_in_model)
        if shape is None and not (include and matches(include, layer.name)):
            raise _other_model(f"that one had no layer '{layer.linear_in_model}', {plan.checkpoint.name} has")
        if shape is not None and shape != layer.shape:
            raise _other_model(f"its '{layer.linear_in_model}' is {' x '.join(map(str, shape))}, that of "
                               f"{plan.checkpoint.name} {' x '.join(map(str, layer.shape))}")


def relative_notes(plan: Plan, calibration: Calibration | None) -> list[str]:
    """A sentence for the report when the calibration was made with other weights, as of a fine-tune; else none.

    Calibrations of earlier versions do not say what they were made with.
    """
    if calibration is None or not calibration.weights:
        return []
    found = {}
    reader = plan.checkpoint.reader()
    try:
        for name, values in calibration.weights.items():
            info = plan.checkpoint.tensors.get(f"{plan.prefix}{name}.weight")
            if info is not None and len(info.shape) == 2 and info.dtype in TORCH_DTYPES:
                found[name] = _sampled(reader, info)[: len(values)]
    finally:
        reader.close()
    other = other_weights(calibration.weights, found)
    if not other:
        return []
    return [f"The calibration was made with a relative of this model: {len(other)} of {len(found)} layers that were "
            "compared have other weights. Relatives see nearly the same inputs, so it is used; how much of the gain it "
            "keeps nobody has measured here, and a calibration of this very model is the sure way."]


def _sampled(reader: TensorReader, info: TensorInfo) -> tuple[float, ...]:
    dtype = TORCH_DTYPES[info.dtype]
    begin, count = sampled_span(info.shape)
    raw = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    reader.read_into(info, raw.numpy().data, begin * dtype.itemsize)
    return rounded(raw.view(dtype))


def calibration_record(tasks: Iterable[Task], calibration: Calibration | None) -> dict[str, float | None]:
    """The calibrated layers among `tasks`, for the file's header: |E[x]| where the bias makes up for it, else None."""
    record: dict[str, float | None] = {}
    if calibration is None:
        return record
    for task in tasks:
        stats = calibration.stats(task.tensor.linear_in_model) if task.quantize else None
        if stats is not None:
            corrects = centred(stats, task.bias is not None)
            # Few digits, so that the header does not depend on the order of summation.
            record[task.tensor.linear] = float(f"{stats.mean.double().norm().item():.4g}") if corrects else None
    return record


def layer_options(plan: Plan, calibration: Calibration | None) -> Mapping[str, LayerOptions]:
    """Matmul and input scale per layer, where they are not the settings' own.

    With `fp8` matmul, inputs of too wide a range keep full precision.
    """
    options = {}
    for layer in plan.of(QUANTIZE):
        matmul = layer.matmul or plan.settings.matmul
        stats = calibration.stats(layer.linear_in_model) if calibration and matmul == "fp8" else None
        if stats is not None:
            options[layer.linear] = fp8_options(stats)
        elif matmul != plan.settings.matmul:
            options[layer.linear] = LayerOptions(full_precision=matmul == "full_precision")
    return options


def fp8_options(stats: InputStats) -> LayerOptions:
    typical = stats.energies().mean().sqrt().item()
    if stats.absmax <= 0 or stats.absmax > _FP8_RANGE / 8 * typical:
        return LayerOptions(full_precision=True)
    return LayerOptions(input_scale=stats.absmax / FP8_MAX, full_precision=False)
