"""One layer on one device: ask for its rounding, in smaller pieces where memory runs out, and tell what it cost."""

import contextlib
import re
import time
from functools import partial

import torch

from ..errors import TpecError, is_out_of_memory
from ..model.formats import WORST_ERROR, scalar_names
from ..model.plan import Plan, TensorPlan
from ..rounding.layer import Facts, chunk_size, with_vanished
from ..rounding.method import Policy, Rounded, Rounder
from ..statistics.calibration import Calibration
from .progress import Meter
from .report import LayerReport
from .transfers import Read, Result

#: Smaller chunks tried when a device or the host runs out of memory, before the CPU takes the layer.
_SHRINK = (1, 4, 16)


class Compute:
    """Quantizes layers on one device, in a stream of its own; serves one thread.

    `notes` are what the report should say of the device.
    """

    def __init__(self, plan: Plan, calibration: Calibration | None, device: torch.device, meter: Meter) -> None:
        self._plan = plan
        self._calibration = calibration
        self.device = device
        self._meter = meter
        settings = plan.settings
        self._rounder = Rounder(Policy(settings.method, settings.top_k, settings.num_iter), meter.tick)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.notes: list[str] = []

    def run(self, item: Read) -> Result:
        """Quantize one weight; on a GPU its result is only under way when this returns.

        Raises TpecError for a weight that is not finite or that there is no memory for, Stopped when the run fails.
        """
        # Not stream(None): that asks CUDA for its devices, which a run on the CPU has nothing to do with.
        with torch.inference_mode(), torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            return self._run(item)

    def _run(self, item: Read) -> Result:
        begun = time.monotonic()
        layer = item.task.tensor
        self._meter.begin(layer.linear)
        self._take_over(item)
        rounded, bias = self._with_less_memory(item)
        quantized = rounded.quantized
        numbers = torch.stack([quantized.scale, *quantized.facts])
        ready = None
        if self._stream is not None:
            # Last of all: what is computed after it may be fetched before it is there.
            ready = torch.cuda.Event()
            ready.record(self._stream)
        return Result(quantized.codes, numbers, bias, tuple(scalar_names(layer.linear, self._plan)),
                      partial(_report, layer, rounded.metric, rounded.bias is not None, begun), ready)

    def _take_over(self, item: Read) -> None:
        """Wait, on the device, for the upload; tensors of another stream's are in this one's use from here on."""
        if self._stream is None or item.ready is None:
            return
        self._stream.wait_event(item.ready)
        item.weight.record_stream(self._stream)
        if item.bias is not None:
            item.bias.record_stream(self._stream)

    def _with_less_memory(self, item: Read) -> tuple[Rounded, torch.Tensor | None]:
        """The layer and the bias that goes with it, both on the device that had room for it."""
        found, bias = None, item.bias
        if item.weight.device == self.device:
            found = self._in_smaller_pieces(item.weight, bias, item.task.tensor)
        if found is None and self.device.type != "cpu":
            note = memory_note(self.device)
            if note not in self.notes:
                self.notes.append(note)
            bias = bias.cpu() if bias is not None else None
            found = self._in_smaller_pieces(item.weight.cpu(), bias, item.task.tensor)
            self._rounder.forget()
        if found is None:
            raise TpecError(f"Memory ran out at layer '{item.task.tensor.linear}', even in small pieces: close other "
                            "programs, or leave out the layer (exclude).")
        return found, bias if found.bias is None else found.bias

    def _in_smaller_pieces(self, weight: torch.Tensor, bias: torch.Tensor | None, layer: TensorPlan) -> Rounded | None:
        """The layer on the weight's device, in the largest pieces that there is memory for; None if there is not."""
        for shrink in _SHRINK:
            try:
                chunk = chunk_size(weight.device) // shrink
                found = self._round(weight, bias, layer, chunk)
                return found._replace(quantized=with_vanished(weight, found.quantized))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Only now, when the exception no longer holds the tensors of the attempt.
            self._rounder.forget()
            if weight.device.type == "cuda":
                torch.cuda.empty_cache()
        return None

    def _round(self, weight: torch.Tensor, bias: torch.Tensor | None, layer: TensorPlan, chunk: int) -> Rounded:
        if layer.embedding:
            return self._rounder.round_table(layer.name, weight, chunk)
        inputs = gradients = None
        if self._calibration is not None:
            inputs = self._calibration.stats(layer.linear_in_model)
            gradients = self._calibration.outputs.get(layer.linear_in_model)
        return self._rounder.round_linear(layer.name, weight, bias, inputs, gradients, chunk)


def memory_note(device: torch.device) -> str:
    """What the report says of a device whose memory was not enough."""
    return f"{device} ran out of memory; some layers were computed on the CPU"


def _report(layer: TensorPlan, metric: str, corrected: bool, begun: float, numbers: torch.Tensor,
            bias: torch.Tensor | None) -> LayerReport:
    """The layer's line of the report, from the numbers that the device sent (scale and facts) and its bias.

    Raises TpecError if the layer must not be written.
    """
    name, facts = layer.linear, Facts.of(numbers[1:].double())
    norm2 = facts.weight_norm2 if facts.weight_norm2 > 0 else torch.ones_like(facts.weight_norm2)
    relative_error, nearest_error = (facts.error2 / norm2).sqrt(), (facts.nearest_error2 / norm2).sqrt()
    _refuse_what_cannot_be_held(name, numbers, relative_error.item(), bias if corrected else None)
    data_free = metric == "weight"
    return LayerReport(
        name, layer.shape, numbers[0].item(), relative_error.item(), nearest_error.item(),
        loss=(facts.loss / norm2).item(), nearest_loss=(facts.nearest_loss / norm2).item(),
        saturated=int(facts.saturated), metric=metric, sweeps=int(facts.sweeps), seconds=time.monotonic() - begun,
        principal_before=facts.principal_before.item() if data_free else None,
        principal_after=facts.principal_after.item() if data_free else None,
        vanished=int(facts.vanished))


def _refuse_what_cannot_be_held(layer: str, numbers: torch.Tensor, error: float, bias: torch.Tensor | None) -> None:
    """Raises TpecError if the layer's numbers or corrected bias are not finite, or if its relative `error` is more than
    a verified file may have.
    """
    keep = f"keep the layer as it is (--exclude '^{re.escape(layer)}\\.')"
    if not bool(numbers.isfinite().all()):
        raise TpecError(f"Quantizing '{layer}' gave values that are not finite, as its weights are out of range: "
                        f"{keep}.")
    if error > WORST_ERROR:
        raise TpecError(f"Layer '{layer}' cannot be held in FP8: its weights would be off by {error:.3f}, and "
                        f"{WORST_ERROR} is the most a model can live with; {keep}.")
    if bias is not None and not bool(bias.isfinite().all()):
        raise TpecError(f"The bias of '{layer}', corrected by the calibration, leaves the range of its dtype or was "
                        f"not finite before: {keep}, or quantize without calibration.")
