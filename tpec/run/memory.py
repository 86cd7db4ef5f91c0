"""Memory a run will take, from the plan alone; both bounds are independent of the model's size."""

from dataclasses import dataclass

import torch

from ..model.families import QUANTIZE
from ..model.plan import Plan
from ..rounding.layer import chunk_items
from ..statistics.calibration import Calibration
from ..statistics.gradients import output_bytes

_MIB = 1 << 20
_PIECE = 32 * _MIB
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
class Estimate:
    """Bytes on the host and on the device beyond what PyTorch itself takes."""

    host: int
    device: int

    def text(self) -> str:
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
    largest = max(layer.info.nbytes for layer in layers)
    items = max(layer.info.items for layer in layers)
    width = max((layer.shape[1] for layer in layers
                 if calibration is not None and calibration.stats(layer.local_layer) is not None), default=0)
    rows = max((layer.shape[0] for layer in layers
                if calibration is not None and layer.local_layer in calibration.outputs), default=0)
    coupling = _COUPLING_COPIES * output_bytes(rows) if rows else 0
    work = (largest + 2 * items + _CHUNK_COPIES * 4 * min(chunk_items(device), items)
            + _DENSE_COPIES * 4 * width**2 + coupling)
    # So much of the input may be on its way at once (see lane.py).
    waiting = (1 + threads) * max(largest, _PIECE)
    if device.type == "cpu":
        return Estimate(round(_HEAP_SLACK * (waiting + 2 * items + work)), 0)
    # Pinned buffers besides, for weights on their way up and for results on their way down.
    buffers = 2 * largest + (2 + threads) * items
    return Estimate(waiting + buffers, (1 + threads) * largest + threads * work)
