"""Memory a run will take, from the plan alone; both bounds are independent of the model's size."""

from dataclasses import dataclass

import torch

from .calibration import Calibration
from .families import QUANTIZE
from .layer import chunk_items
from .outputs import output_bytes
from .plan import Plan

_MIB = 1 << 20
_PIECE = 32 * _MIB
#: Float32 copies of a chunk of rows alive at once while it is rounded (measured with benchmarks/memory.py).
_CHUNK_COPIES = 8
#: n x n float32 matrices alive while a calibrated metric is made: moment, permuted, Cholesky factor and its flip.
_DENSE_COPIES = 4
#: Copies of a layer's output statistics alive while they are made ready: as read, damped, permuted, factor, pulls.
_COUPLING_COPIES = 5


#: Layers at a time on a GPU with enough memory.
_THREADS = 3


@dataclass(frozen=True)
class Estimate:
    """Bytes on the host and on the device beyond what PyTorch itself takes, where layers are computed one by one."""

    host: int
    device: int

    def text(self) -> str:
        parts = [f"about {self.host / 1e9:.1f} GB of memory"]
        if self.device:
            parts.append(f"{self.device / 1e9:.1f} GB of VRAM")
        return "needs " + " and ".join(parts) + ", whatever the model's size"


def compute_threads(plan: Plan, device: torch.device, calibration: Calibration | None = None) -> int:
    """How many layers a device works on at a time.

    Without calibration a GPU takes less time over a layer than Python over telling it what to do, so several threads do
    that where there is VRAM for as many layers. The result is the same.
    """
    if device.type != "cuda" or plan.settings.method != "tpec" or calibration is not None:
        return 1
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    return max(1, min(_THREADS, free // estimate(plan, device).device))


def estimate(plan: Plan, device: torch.device, calibration: Calibration | None = None) -> Estimate:
    """Peak memory of one lane on `device`."""
    layers = plan.of(QUANTIZE)
    largest = max(layer.info.nbytes for layer in layers)
    items = max(layer.info.items for layer in layers)
    width = max((layer.shape[1] for layer in layers
                 if calibration is not None and calibration.stats(layer.local_layer) is not None), default=0)
    rows = max((layer.shape[0] for layer in layers
                if calibration is not None and layer.local_layer in calibration.outputs), default=0)
    coupling = _COUPLING_COPIES * output_bytes(rows) if rows else 0
    pipeline = 2 * max(largest, _PIECE) + 2 * items
    work = (largest + 2 * items + _CHUNK_COPIES * 4 * min(chunk_items(device), items)
            + _DENSE_COPIES * 4 * width**2 + coupling)
    if device.type == "cpu":
        return Estimate(pipeline + work, 0)
    return Estimate(pipeline, 2 * largest + work)
