"""Whether a calibration was made with the very weights that are quantized, or with those of a relative."""

import torch

from ..files.dtypes import TORCH_DTYPES
from ..files.header import TensorInfo
from ..files.source import TensorReader
from ..model.plan import Plan
from ..statistics.calibration import Calibration
from ..statistics.weights import other_weights, rounded, sampled_span


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
    reader.read_into(info, memoryview(raw.numpy()), begin * dtype.itemsize)
    return rounded(raw.view(dtype))
