"""What one lane does with one layer: choose the metric, quantize, fetch the result back, note what it cost."""

import math
import re
import time
from functools import partial

import torch

from ..errors import TpecError, is_out_of_memory
from ..files.layout import Layout
from ..model.formats import WORST_ERROR, scalar_names
from ..model.plan import Plan
from ..rounding.layer import (
    FACTS,
    Quantized,
    check_finite,
    chunk_items,
    corrected_bias,
    count_vanished,
    quantize_nearest,
    quantize_tpec,
)
from ..rounding.metric import DenseMetric
from ..rounding.principal import data_free_metric, principal_components, start_directions
from ..rounding.rows import RowCoupling
from ..statistics.calibration import Calibration
from ..statistics.inputs import InputStats
from .fit import calibrated_metric, centred
from .lane import Lane, Read, Write
from .progress import Meter

#: Data-free: this share of the columns' number of components, at most so many, and their extra weight.
RANK_SHARE = 16
RANK_LIMIT = 256
STRENGTH = 2.0
#: Sweeps of coordinate descent by default: they pay on real inputs, hardly on the weight's own components.
SWEEPS_CALIBRATED = 4
SWEEPS_COUPLED = 2
SWEEPS_DATA_FREE = 0
#: Results lie at multiples of so many bytes in a buffer.
_ALIGNMENT = 64
#: Smaller chunks tried when a device or the host runs out of memory, before the CPU takes the layer.
_SHRINK = (1, 4, 16)


def default_rank(width: int) -> int:
    """Principal components corrected in a layer that reads `width` values, when the user does not say."""
    return min(max(1, width // RANK_SHARE), RANK_LIMIT)


class Compute:
    """Quantizes layers on one device, in a stream of its own; keeps the last calibrated metric, which neighbours share.
    """

    def __init__(self, plan: Plan, calibration: Calibration | None, layout: Layout, device: torch.device,
                 meter: Meter) -> None:
        self._plan = plan
        self._calibration = calibration
        self._layout = layout
        self.device = device
        self._meter = meter
        self._metric: tuple[object, DenseMetric] | None = None
        self._directions = start_directions()
        cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if cuda else None
        self._download = torch.cuda.Stream(device) if cuda else None
        self.notes: list[str] = []

    def run(self, lane: Lane, item: Read) -> Write:
        """Quantize one weight [out, in]; the returned pieces may still be on their way from the device."""
        # Without a stream that one does nothing.
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            return self._run(lane, item)

    def _run(self, lane: Lane, item: Read) -> Write:
        begun = time.monotonic()
        layer = item.task.layer
        self._meter.begin(layer.layer)
        if item.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(item.ready)
            item.weight.record_stream(stream)
            if item.bias is not None:
                item.bias.record_stream(stream)
        quantized, corrected, metric = self._with_less_memory(item)
        bias = item.bias if corrected is None else corrected
        numbers = torch.cat([quantized.scale.reshape(1), quantized.facts])
        host, ready, buffer = self._to_host(lane, [quantized.codes, numbers, *([bias] if bias is not None else [])])
        scale = host[1][:4]
        pieces = [(layer.name, host[0], 0), *((name, scale, 0) for name in scalar_names(layer.layer, self._plan))]
        if bias is not None:
            pieces.append((item.task.bias.name, host[2], 0))
        facts = partial(_facts, layer.layer, host[1], None if corrected is None else host[2].view(bias.dtype), metric,
                        begun)
        return Write(tuple(pieces), item.task, facts, ready, buffer)

    def _with_less_memory(self, item: Read) -> tuple[Quantized, torch.Tensor | None, str]:
        found = None
        if item.weight.device == self.device:
            found = self._in_smaller_pieces(item.weight, item.bias, item)
        if found is None and self.device.type != "cpu":
            note = memory_note(self.device)
            if note not in self.notes:
                self.notes.append(note)
            bias = item.bias.cpu() if item.bias is not None else None
            found = self._in_smaller_pieces(item.weight.cpu(), bias, item)
            self._metric = None
        if found is None:
            raise TpecError(f"Memory ran out at layer '{item.task.layer.layer}', even in small pieces: close other "
                            "programs, or leave out the layer (exclude).")
        return found

    def _in_smaller_pieces(self, weight: torch.Tensor, bias: torch.Tensor | None,
                           item: Read) -> tuple[Quantized, torch.Tensor | None, str] | None:
        """The result on the weight's device, in the largest pieces that there is memory for; None if there is not."""
        for shrink in _SHRINK:
            try:
                items = chunk_items(weight.device) // shrink
                found = self._quantize(weight, bias, item, items)
                count_vanished(weight, found[0], items)
                return found
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Only now, when the exception no longer holds the tensors of the attempt.
            self._metric = None
            if weight.device.type == "cuda":
                torch.cuda.empty_cache()
        return None

    def _quantize(self, weight: torch.Tensor, bias: torch.Tensor | None, item: Read,
                  items: int) -> tuple[Quantized, torch.Tensor | None, str]:
        """The layer, its bias if the calibration corrects that, and the metric's name."""
        settings, tick = self._plan.settings, self._meter.tick
        largest = check_finite(item.task.layer.name, weight)
        if settings.method == "nearest":
            return quantize_nearest(weight, largest, items, tick), None, "nearest"
        stats = self._calibration.stats(item.task.layer.local_layer) if self._calibration else None
        if stats is None:
            k = settings.top_k or default_rank(weight.shape[1])
            sweeps = SWEEPS_DATA_FREE if settings.num_iter is None else settings.num_iter
            components = principal_components(weight, largest, k, items, tick, self._directions)
            metric = data_free_metric(components, STRENGTH)
            return quantize_tpec(weight, largest, metric, sweeps, components, items, tick), None, "weight"
        has_bias = bias is not None
        metric = self._calibrated(item.task.layer.local_layer, stats, has_bias, weight.device)
        outputs = self._calibration.outputs.get(item.task.layer.local_layer)
        coupling = RowCoupling(outputs, weight.device) if outputs is not None else None
        sweeps = settings.num_iter
        if sweeps is None:
            sweeps = SWEEPS_CALIBRATED if coupling is None else SWEEPS_COUPLED
        quantized = quantize_tpec(weight, largest, metric, sweeps, None, items, tick, coupling)
        corrected = None
        if has_bias and centred(stats, has_bias):
            corrected = corrected_bias(weight, quantized, bias, stats.mean.to(weight.device), items)
        return quantized, corrected, "activation" if coupling is None else "gradient"

    def _calibrated(self, layer: str, stats: InputStats, has_bias: bool, device: torch.device) -> DenseMetric:
        key = (self._calibration.layers[layer], has_bias, device)
        if self._metric is None or self._metric[0] != key:
            self._metric = None
            self._metric = (key, calibrated_metric(stats, has_bias, device))
        return self._metric[1]

    def _to_host(self, lane: Lane, tensors: list[torch.Tensor]) -> tuple[
            list[torch.Tensor], torch.cuda.Event | None, torch.Tensor | None]:
        """Flat byte tensors on the host; on CUDA they are complete once the event has passed, and lie in a buffer."""
        flat = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
        if self._download is None or flat[0].device.type == "cpu":
            return [tensor.cpu() for tensor in flat], None, None
        buffer = lane.download_buffer()
        self._download.wait_stream(torch.cuda.current_stream(self.device))
        host, at = [], 0
        with torch.cuda.stream(self._download):
            for tensor in flat:
                host.append(buffer[at: at + tensor.numel()])
                host[-1].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._download)
                at += -(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT
            ready = torch.cuda.Event()
            ready.record(self._download)
        return host, ready, buffer


def memory_note(device: torch.device) -> str:
    """What the report says of a device whose memory was not enough."""
    return f"{device} ran out of memory; some layers were computed on the CPU"


def _facts(layer: str, numbers: torch.Tensor, corrected: torch.Tensor | None, metric: str,
           begun: float) -> dict[str, object]:
    """The layer's line of the report, from the numbers the device sent and its bias, if that was corrected.

    Raises TpecError if they are not finite, or if the layer is off by more than a verified file may be.
    """
    scale, *values = numbers.view(torch.float32).tolist()
    facts = dict(zip(FACTS, values, strict=True))
    if not all(map(math.isfinite, (scale, *values))):
        raise TpecError(f"Quantizing '{layer}' gave values that are not finite: the layer's weights are out of range.")
    norm2 = facts["weight_norm2"] or 1.0
    error = math.sqrt(facts["error2"] / norm2)
    keep = f"keep the layer as it is (--exclude '^{re.escape(layer)}\\.')"
    if error > WORST_ERROR:
        raise TpecError(f"Layer '{layer}' cannot be held in FP8: its weights would be off by {error:.3f}, and "
                        f"{WORST_ERROR} is the most a model can live with; {keep}.")
    if corrected is not None and not bool(corrected.isfinite().all()):
        raise TpecError(f"The bias of '{layer}', corrected by the calibration, leaves the range of its dtype or was "
                        f"not finite before: {keep}, or quantize without calibration.")
    data_free = metric == "weight"
    return {
        "name": layer, "shape": (), "scale": scale, "metric": metric,
        "relative_error": error,
        "nearest_error": math.sqrt(facts["nearest_error2"] / norm2),
        "loss": facts["loss"] / norm2, "nearest_loss": facts["nearest_loss"] / norm2,
        "saturated": int(facts["saturated"]), "vanished": int(facts["vanished"]), "sweeps": int(facts["sweeps"]),
        "seconds": time.monotonic() - begun,
        "principal_before": facts["principal_before"] if data_free else None,
        "principal_after": facts["principal_after"] if data_free else None,
    }
