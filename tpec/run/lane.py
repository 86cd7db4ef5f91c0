"""One device's share of a run: a reader thread, compute loops and a writer thread, with bounded memory between them.

Tensors that stay as they are go from the reader to the writer in pieces and never touch the device.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from ..device import host_buffer
from ..errors import is_out_of_memory
from ..files.dtypes import TORCH_DTYPES
from ..files.header import TensorInfo
from ..files.partial import Journal, SpoolFile
from ..files.source import TensorReader
from ..model.finite import check_kept
from .halt import POLL, Halt
from .tasks import Task

#: Bytes copied at a time: a multiple of every dtype's item size, so that no element is split.
_PIECE = 32 << 20
_AHEAD = 2
#: The system is asked to fetch so many bytes before they are read; they lie in its cache, not in this process.
_WINDOW = 1 << 30
_SLACK = 4096


#: What is known of written tensors, by name: a quantized weight's numbers, {"nonfinite": True}, or None.
Facts = dict[str, dict[str, object] | None]


@dataclass(frozen=True)
class Read:
    """A tensor to quantize, on its device, or on the host where it did not fit; `ready` is the upload's event."""

    task: Task
    weight: torch.Tensor
    bias: torch.Tensor | None
    ready: torch.cuda.Event | None


@dataclass(frozen=True)
class Write:
    """Bytes on their way to the file: (tensor name, host tensor, offset); `facts` makes the journal's entry.

    `task` is set on a task's last piece. `ready` is the download's event, `buffer` what to give back afterwards.
    """

    pieces: tuple[tuple[str, torch.Tensor, int], ...]
    task: Task | None
    facts: Callable[[], dict[str, object]] | None = None
    ready: torch.cuda.Event | None = None
    buffer: torch.Tensor | None = None


@dataclass
class Stages:
    """Seconds each stage was busy, summed over its threads; the rest of a run they waited."""

    read: float = 0.0
    compute: float = 0.0
    write: float = 0.0


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
        """A free buffer, when there is one. Raises Stopped when the run fails meanwhile."""
        while True:
            halt.check()
            try:
                return self._free.get(timeout=POLL)
            except queue.Empty:
                continue

    def give(self, buffer: torch.Tensor) -> None:
        self._free.put(buffer)


@dataclass
class Lane:
    """Runs `tasks` on `device`; `finished` hears of every task that is on disk, with what is known of each tensor.

    Each of `compute` turns a Read into a Write, in a thread of its own. `halt` is shared by all lanes of a run. NaN and
    infinite values in parameters that are copied fail the run unless `keep_nonfinite`.
    """

    device: torch.device
    tasks: Sequence[Task]
    reader: TensorReader
    spool: SpoolFile
    journal: Journal
    compute: Sequence[Callable[["Lane", Read], Write]]
    finished: Callable[[Task, Facts], None]
    halt: Halt = field(default_factory=Halt)
    keep_nonfinite: bool = False
    stages: Stages = field(default_factory=Stages)

    def __post_init__(self) -> None:
        quantized = [task.layer.info.nbytes for task in self.tasks if task.quantize]
        self._budget = Budget((1 + len(self.compute)) * max([*quantized, _PIECE]))
        self._inbox: queue.Queue[Read | None] = queue.Queue(_AHEAD)
        self._outbox: queue.Queue[Write | None] = queue.Queue()
        self._counting = threading.Lock()
        self._computing = len(self.compute)
        #: Names of tensors seen to hold NaN or infinite values, before they go to the writer.
        self._nonfinite: set[str] = set()
        self._cuda = self.device.type == "cuda"
        self._uploading: tuple[torch.Tensor, torch.cuda.Event] | None = None
        if self._cuda and quantized:
            self._uploads = Buffers(2, max(quantized))
            # Codes take a byte a weight, so this leaves room for the bias and the numbers.
            items = max(task.layer.info.items + 8 * task.layer.shape[0] for task in self.tasks if task.quantize)
            self._downloads = Buffers(_AHEAD + len(self.compute), items + _SLACK)

    def run(self) -> None:
        """Work through all tasks, or until `halt` is set, by a failure of any stage here or elsewhere; never raises."""
        first, *others = (partial(self._compute_all, compute) for compute in self.compute)
        self.halt.run(first, self._read_all, self._write_all, *others)

    def download_buffer(self) -> torch.Tensor:
        """Pinned bytes for one layer's results; the writer gives them back. Raises Stopped when the run fails."""
        return self._downloads.take(self.halt)

    def _compute_all(self, compute: Callable[["Lane", Read], Write]) -> None:
        for item in self._received(self._inbox):
            begun = time.monotonic()
            self._outbox.put(compute(self, item))
            with self._counting:
                self.stages.compute += time.monotonic() - begun
        # The other loops need the end's sign too, and the writer gets it from the last of them.
        self._send(None)
        with self._counting:
            self._computing -= 1
            if not self._computing:
                self._outbox.put(None)

    def _received(self, box: queue.Queue) -> Iterator:
        while not self.halt.is_set():
            try:
                item = box.get(timeout=POLL)
            except queue.Empty:
                continue
            if item is None:
                return
            yield item

    def _send(self, item: Read | None) -> None:
        while not self.halt.is_set():
            try:
                return self._inbox.put(item, timeout=POLL)
            except queue.Full:
                continue

    def _read_all(self) -> None:
        stream = torch.cuda.Stream(self.device) if self._cuda else None
        ahead = self._fetch_ahead()
        for task in self.tasks:
            if self.halt.is_set():
                return
            next(ahead)
            if task.quantize:
                self._send(self._read(task, stream))
            else:
                self._copy(task)
        self._send(None)

    def _fetch_ahead(self) -> Iterator[None]:
        """Each step tells the system of the tensors that the next task brings within _WINDOW bytes."""
        waiting, used = iter(self.tasks), 0
        for task in self.tasks:
            while used < _WINDOW and (coming := next(waiting, None)) is not None:
                self.reader.will_need(coming.layer.info)
                used += coming.layer.info.nbytes
            yield
            used -= task.layer.info.nbytes

    def _read(self, task: Task, stream: torch.cuda.Stream | None) -> Read:
        info = task.layer.info
        self._budget.take(info.nbytes, self.halt)
        bias = self._load_bias(task.bias) if task.bias else None
        if stream is None:
            return Read(task, self._load(info, torch.empty(info.nbytes, dtype=torch.uint8)), bias, None)
        buffer = self._uploads.take(self.halt)
        weight = self._load(info, buffer[: info.nbytes])
        self._uploaded()
        try:
            with torch.cuda.stream(stream):
                moved = weight.to(self.device, non_blocking=True)
                moved_bias = bias.to(self.device) if bias is not None else None
                ready = torch.cuda.Event()
                ready.record(stream)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            # The compute stage decides what to do with a weight that does not fit.
            read = Read(task, weight.clone(), bias, None)
            self._uploads.give(buffer)
            return read
        self._uploading = (buffer, ready)
        return Read(task, moved, moved_bias, ready)

    def _uploaded(self) -> None:
        """The buffer before this one is free once its copy has ended."""
        if self._uploading is not None:
            buffer, ready = self._uploading
            ready.synchronize()
            self._uploads.give(buffer)
            self._uploading = None

    def _load_bias(self, info: TensorInfo) -> torch.Tensor:
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        bias = self._load(info, raw)
        self._look(info, raw)
        return bias

    def _look(self, info: TensorInfo, raw: torch.Tensor) -> None:
        if check_kept(info, raw, self.keep_nonfinite):
            self._nonfinite.add(info.name)

    def _load(self, info: TensorInfo, raw: torch.Tensor) -> torch.Tensor:
        begun = time.monotonic()
        self.reader.read_into(info, memoryview(raw.numpy()))
        self.reader.drop_cache(info)
        self.stages.read += time.monotonic() - begun
        return raw.view(TORCH_DTYPES[info.dtype]).reshape(info.shape)

    def _copy(self, task: Task) -> None:
        info = task.layer.info
        for offset in range(0, max(info.nbytes, 1), _PIECE):
            count = min(_PIECE, info.nbytes - offset)
            self._budget.take(count, self.halt)
            begun = time.monotonic()
            piece = torch.empty(count, dtype=torch.uint8)
            if count:
                self.reader.read_into(info, memoryview(piece.numpy()), offset)
            self.stages.read += time.monotonic() - begun
            self._look(info, piece)
            last = offset + count >= info.nbytes
            self._outbox.put(Write(((info.name, piece, offset),), task if last else None))
        self.reader.drop_cache(info)

    def _write_all(self) -> None:
        for item in self._received(self._outbox):
            if item.ready is not None:
                item.ready.synchronize()
            facts = item.facts() if item.facts else None
            begun = time.monotonic()
            nbytes = 0
            for name, data, offset in item.pieces:
                self.spool.write(name, memoryview(data.numpy()), offset)
                nbytes += data.numel()
            if item.buffer is not None:
                self._downloads.give(item.buffer)
            self._budget.give(nbytes if facts is None else item.task.layer.info.nbytes)
            if item.task is not None:
                self._done(item.task, facts, nbytes if facts is not None else item.task.layer.info.nbytes)
            self.stages.write += time.monotonic() - begun
        if not self.halt.is_set():
            self.journal.flush()

    def _done(self, task: Task, facts: dict[str, object] | None, nbytes: int) -> None:
        """Note a task whose tensors, of `nbytes` in all, are written."""
        known: Facts = {name: {"nonfinite": True} if name in self._nonfinite else None for name in task.written}
        if facts is not None:
            known[task.layer.name] = facts
        for name in task.written:
            # The journal adds the bytes up: they count once, whatever the number of names.
            self.journal.record(name, nbytes if name == task.layer.name else 0, known[name])
        self.finished(task, known)
