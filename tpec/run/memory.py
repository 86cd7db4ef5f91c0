"""Memory a run will take, from the plan alone: lanes keep to it and estimates tell it.

It does not depend on the model's size, only on that of its largest layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..model.families import QUANTIZE
from ..model.plan import Plan, TensorPlan
from ..rounding.layer import chunk_size
from ..statistics.calibration import Calibration
from ..statistics.gradients import output_bytes

#: Bytes of a kept tensor that are read and written at a time: a multiple of every dtype's item size, so that no element
#: is split.
PIECE = 32 << 20
#: Weights that wait between the reader and the compute threads.
AHEAD = 2
#: A weight is read into one pinned buffer while the one before it is copied from another.
_UPLOADS = 2
#: A bias takes at most so many bytes a row, the scale and a layer's numbers these.
_BIAS_BYTES = 8
_NUMBERS_BYTES = 4096
_FLOAT32_BYTES = 4
#: FP8 codes of a layer, a byte a weight, alive while it is computed: the better of its own and round to nearest's is
#: taken. On a CPU, whose results wait for the writer where they were made, two layers' besides.
_CODES = 2
_CODES_WAITING = 2
#: Float32 copies of a chunk of rows alive at once while it is rounded (measured with benchmarks/memory.py).
_CHUNK_COPIES = 8
#: A CPU run's peak beside its tensors: the heap keeps some of what was freed (largest seen with benchmarks/memory.py).
_HEAP_SLACK = 1.25
#: n x n float32 matrices alive while a calibrated metric is made: moment, permuted, Cholesky factor and its flip.
_DENSE_COPIES = 4
#: Copies of a layer's output statistics alive while they are made ready: as read, damped, permuted, factor, pulls.
_COUPLING_COPIES = 5
#: Layers at a time on a GPU with enough memory.
_THREADS = 3


@dataclass(frozen=True)
class LaneSizes:
    """Bytes of host memory that one lane uses beside what computing takes.

    in_flight bounds what was read and is not written yet, on the host or on a device. On a GPU there are pinned buffers
    besides: `uploads` of `upload` bytes each for weights, `downloads` of `download` bytes each for results. Kept
    tensors are copied `piece` bytes at a time.
    """

    in_flight: int
    upload: int
    uploads: int
    download: int
    downloads: int
    piece: int

    @classmethod
    def of(cls, layers: Sequence[TensorPlan], threads: int) -> "LaneSizes":
        """For a lane that quantizes `layers`, `threads` of them at a time; it may have none."""
        largest = max((layer.info.nbytes for layer in layers), default=0)
        results = max((layer.info.items + _BIAS_BYTES * layer.shape[0] for layer in layers), default=0)
        return cls((1 + threads) * max(largest, PIECE), largest, _UPLOADS, results + _NUMBERS_BYTES, AHEAD + threads,
                   PIECE)

    @property
    def pinned(self) -> int:
        """Bytes of all pinned buffers."""
        return self.uploads * self.upload + self.downloads * self.download


@dataclass(frozen=True)
class Estimate:
    """Bytes that a run takes at its peak on the host and on the device, beyond PyTorch's own after its import.

    `device` is 0 for a CPU.
    """

    host: int
    device: int

    def text(self) -> str:
        """For people, in GB."""
        parts = [f"{self.host / 1e9:.1f} GB of memory"]
        if self.device:
            parts.append(f"{self.device / 1e9:.1f} GB of VRAM")
        return " and ".join(parts)


def describe_needs(plan: Plan, device: torch.device, calibration: Calibration | None = None) -> str:
    """One line for people: what a run takes at least, and at most where a GPU has room for several layers."""
    least = estimate(plan, device, calibration)
    text = f"needs about {least.text()}, whatever the model's size"
    if _most_threads(plan, device, calibration) == 1:
        return text
    return f"{text}; takes up to {estimate(plan, device, calibration, _THREADS).text()} where that is free"


def compute_threads(plan: Plan, device: torch.device, calibration: Calibration | None = None, lanes: int = 1) -> int:
    """How many layers one of `lanes` that share a device works on at a time; the result is the same."""
    most = _most_threads(plan, device, calibration)
    if most == 1:
        return 1
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = (torch.cuda.mem_get_info(device)[0] + cached) // lanes
    return next((threads for threads in range(most, 1, -1) if estimate(plan, device, None, threads).device <= free), 1)


def _most_threads(plan: Plan, device: torch.device, calibration: Calibration | None) -> int:
    """Without calibration a GPU takes less time over a layer than Python over telling it what to do."""
    return _THREADS if device.type == "cuda" and plan.settings.method == "tpec" and calibration is None else 1


def estimate(plan: Plan, device: torch.device, calibration: Calibration | None = None, threads: int = 1) -> Estimate:
    """Peak memory of one lane on `device` that works on `threads` layers at a time."""
    layers = plan.of(QUANTIZE)
    sizes = LaneSizes.of(layers, threads)
    largest = max(layer.info.nbytes for layer in layers)
    weights = max(layer.info.items for layer in layers)
    one = (largest + _CODES * weights + _CHUNK_COPIES * _FLOAT32_BYTES * min(chunk_size(device), weights)
           + _statistics_bytes(layers, calibration))
    if device.type == "cpu":
        return Estimate(round(_HEAP_SLACK * (sizes.in_flight + _CODES_WAITING * weights + one)), 0)
    return Estimate(sizes.in_flight + sizes.pinned, (1 + threads) * largest + threads * one)


def _statistics_bytes(layers: Sequence[TensorPlan], calibration: Calibration | None) -> int:
    """What a calibration makes of its largest layers' statistics while they are rounded."""
    if calibration is None:
        return 0
    width = max((layer.shape[1] for layer in layers if calibration.stats(layer.linear_in_model) is not None), default=0)
    rows = max((layer.shape[0] for layer in layers if layer.linear_in_model in calibration.outputs), default=0)
    coupling = _COUPLING_COPIES * output_bytes(rows) if rows else 0
    return _DENSE_COPIES * _FLOAT32_BYTES * width**2 + coupling
