"""Bytes between the stages of a lane and between host and device: how many, in which buffers, and on which stream.

Pinned buffers and streams of their own let copies run beside the computing. Every tensor that a stream uses which it
was not made on is recorded there, so that its memory is not given away while it is read.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..device import host_buffer
from ..errors import is_out_of_memory
from .progress import POLL, Halt
from .report import LayerReport
from .tasks import Task

#: Tensors begin at multiples of so many bytes in a buffer.
ALIGNMENT = 64


@dataclass(frozen=True)
class Read:
    """Reader to compute: a tensor to quantize, on its device, or on the host where it did not fit.

    weight [out, in], bias [out] where the task has one. `ready` is the upload's event, None where there is none to wait
    for.
    """

    task: Task
    weight: torch.Tensor
    bias: torch.Tensor | None
    ready: torch.cuda.Event | None


@dataclass(frozen=True)
class Result:
    """What computing a `Read` gives: a quantized layer where it was computed, perhaps not finished yet.

    codes [out, in] float8_e4m3fn, numbers [m] float32 with the scale first, bias [out] where the task has one: all
    contiguous and on one device. `scale_names` are what the scale is called in the file. `ready` is the event after
    which all of them are computed, None on a CPU. `report(numbers, bias)` is what to tell of the layer, from copies on
    the host; it raises TpecError for a layer that must not be written.
    """

    codes: torch.Tensor
    numbers: torch.Tensor
    bias: torch.Tensor | None
    scale_names: tuple[str, ...]
    report: Callable[[torch.Tensor, torch.Tensor | None], LayerReport]
    ready: torch.cuda.Event | None = None


@dataclass(frozen=True)
class Write:
    """To the writer: (tensor name, host bytes, offset) for the file; `task` is set on a task's last piece.

    Bytes of a quantized layer are there once `ready` has passed, and `report` may be called then; `buffer` is what they
    lie in and what is to be given back.
    """

    pieces: tuple[tuple[str, torch.Tensor, int], ...]
    task: Task | None
    report: Callable[[], LayerReport] | None = None
    ready: torch.cuda.Event | None = None
    buffer: torch.Tensor | None = None


class Budget:
    """Bytes of host memory in flight; one request larger than the limit passes alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used = limit, 0
        self._changed = threading.Condition()

    def take(self, nbytes: int, halt: Halt) -> None:
        """Wait until there is room. Raises Stopped when the run fails meanwhile."""
        with self._changed:
            while self._used and self._used + nbytes > self._limit:
                self._changed.wait(POLL)
                halt.check()
            self._used += nbytes

    def give(self, nbytes: int) -> None:
        """`nbytes` that were taken are free again."""
        with self._changed:
            self._used -= nbytes
            self._changed.notify_all()


class Buffers:
    """Host buffers of one size, used in turn and pinned once: pinning memory again and again stalls the device."""

    def __init__(self, count: int, nbytes: int) -> None:
        self._free: queue.Queue[torch.Tensor] = queue.Queue()
        for _ in range(count):
            self._free.put(host_buffer(nbytes, torch.uint8))

    def take(self, halt: Halt) -> torch.Tensor:
        """A free buffer [nbytes] uint8, when there is one. Raises Stopped when the run fails meanwhile."""
        while True:
            halt.check()
            try:
                return self._free.get(timeout=POLL)
            except queue.Empty:
                continue

    def give(self, buffer: torch.Tensor) -> None:
        """A buffer that was taken is free again."""
        self._free.put(buffer)


class Upload:
    """Weights on their way to a GPU, for one thread: one is copied while the next is read into another buffer."""

    def __init__(self, device: torch.device, buffers: Buffers) -> None:
        self._device, self._buffers = device, buffers
        self._stream = torch.cuda.Stream(device)
        self._under_way: tuple[torch.Tensor, torch.cuda.Event] | None = None

    def buffer(self, halt: Halt) -> torch.Tensor:
        """Where to read the next weight to. Raises Stopped when the run fails meanwhile."""
        return self._buffers.take(halt)

    def send(self, task: Task, buffer: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Read:
        """Start to copy `weight`, which lies in `buffer`, and the bias; on the host where the device has no room."""
        self._finish()
        try:
            with torch.cuda.stream(self._stream):
                moved = weight.to(self._device, non_blocking=True)
                moved_bias = bias.to(self._device) if bias is not None else None
                ready = torch.cuda.Event()
                ready.record(self._stream)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # The compute stage decides what to do with a weight that does not fit.
            read = Read(task, weight.clone(), bias, None)
            self._buffers.give(buffer)
            return read
        self._under_way = (buffer, ready)
        return Read(task, moved, moved_bias, ready)

    def _finish(self) -> None:
        """The buffer before this one is free once its copy has ended."""
        if self._under_way is not None:
            buffer, ready = self._under_way
            ready.synchronize()
            self._buffers.give(buffer)
            self._under_way = None


class Fetched(NamedTuple):
    """Flat byte tensors on the host; on CUDA they are complete once `ready` has passed, and lie in `buffer`."""

    tensors: list[torch.Tensor]
    ready: torch.cuda.Event | None
    buffer: torch.Tensor | None


class Download:
    """Results on their way from a device, for one thread; `buffers` (None for a CPU) are given back by the writer."""

    def __init__(self, device: torch.device, buffers: Buffers | None) -> None:
        self._buffers = buffers
        self._stream = torch.cuda.Stream(device) if buffers is not None else None

    @torch.inference_mode()
    def fetch(self, tensors: Sequence[torch.Tensor], ready: torch.cuda.Event | None, halt: Halt) -> Fetched:
        """Start to copy contiguous `tensors` of one device to the host, once `ready` has passed.

        Raises Stopped when the run fails meanwhile.
        """
        flat = [tensor.view(-1).view(torch.uint8) for tensor in tensors]
        if self._buffers is None or self._stream is None or flat[0].device.type == "cpu":
            return Fetched([tensor.cpu() for tensor in flat], None, None)
        buffer = self._buffers.take(halt)
        if ready is not None:
            self._stream.wait_event(ready)
        host, at = [], 0
        with torch.cuda.stream(self._stream):
            for tensor in flat:
                host.append(buffer[at: at + tensor.numel()])
                host[-1].copy_(tensor, non_blocking=True)
                tensor.record_stream(self._stream)
                at += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return Fetched(host, arrived, buffer)

