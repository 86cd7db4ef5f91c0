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

from ..files.dtypes import TORCH_DTYPES
from ..files.header import TensorInfo
from ..files.partial import Journal, SpoolFile
from ..files.source import TensorReader
from ..model.finite import check_kept
from .memory import AHEAD, LaneSizes
from .progress import POLL, Halt
from .tasks import Task
from .transfers import Budget, Buffers, Download, Read, Result, Upload, Write

#: The system is asked to fetch so many bytes before they are read; they lie in its cache, not in this process.
_WINDOW = 1 << 30
#: Bytes of the scale, float32.
_SCALE = 4


#: What is known of written tensors, by name: a quantized layer's report, {"nonfinite": True}, or None.
Known = dict[str, dict[str, object] | None]


@dataclass
class Stages:
    """Seconds each stage was busy, summed over its threads; the rest of a run they waited."""

    read: float = 0.0
    compute: float = 0.0
    write: float = 0.0


@dataclass
class Lane:
    """Runs `tasks` on `device`; `on_done` hears of every task that is on disk, with what is known of each tensor.

    Each of `compute` turns a Read into a Result, in a thread of its own. `halt` is shared by all lanes of a run. NaN
    and infinite values in parameters that are copied fail the run unless `keep_nonfinite`.
    """

    device: torch.device
    tasks: Sequence[Task]
    reader: TensorReader
    file: SpoolFile
    journal: Journal
    compute: Sequence[Callable[[Read], Result]]
    on_done: Callable[[Task, Known], None]
    halt: Halt = field(default_factory=Halt)
    keep_nonfinite: bool = False
    stages: Stages = field(default_factory=Stages)

    def __post_init__(self) -> None:
        quantized = [task.tensor for task in self.tasks if task.quantize]
        self._sizes = sizes = LaneSizes.of(quantized, len(self.compute))
        self._budget = Budget(sizes.in_flight)
        self._inbox: queue.Queue[Read | None] = queue.Queue(AHEAD)
        self._outbox: queue.Queue[Write | None] = queue.Queue()
        self._counting = threading.Lock()
        self._computing = len(self.compute)
        #: Names of tensors seen to hold NaN or infinite values, before they go to the writer.
        self._nonfinite: set[str] = set()
        self._uploads: Buffers | None = None
        self._downloads: Buffers | None = None
        if self.device.type == "cuda" and quantized:
            self._uploads = Buffers(sizes.uploads, sizes.upload)
            self._downloads = Buffers(sizes.downloads, sizes.download)

    def run(self) -> None:
        """Work through all tasks, or until `halt` is set, by a failure of any stage here or elsewhere; never raises."""
        first, *others = (partial(self._compute_all, compute) for compute in self.compute)
        self.halt.run(first, self._read_all, self._write_all, *others)

    def _compute_all(self, compute: Callable[[Read], Result]) -> None:
        download = Download(self.device, self._downloads)
        for item in self._received(self._inbox):
            begun = time.monotonic()
            self._outbox.put(self._computed(compute, item, download))
            with self._counting:
                self.stages.compute += time.monotonic() - begun
        # Each compute thread that ends lets the next one know, and the last of them the writer.
        self._send(None)
        with self._counting:
            self._computing -= 1
            if not self._computing:
                self._outbox.put(None)

    def _computed(self, compute: Callable[[Read], Result], item: Read, download: Download) -> Write:
        """One layer, perhaps still on its way to the host. Nothing of it stays on the device when this returns."""
        result, task = compute(item), item.task
        bias = [] if result.bias is None else [result.bias]
        (codes, numbers, *biases), ready, buffer = download.fetch([result.codes, result.numbers, *bias], result.ready,
                                                                  self.halt)
        pieces = [(task.tensor.name, codes, 0), *((name, numbers[:_SCALE], 0) for name in result.scale_names)]
        host_bias = None
        if task.bias is not None and result.bias is not None:
            pieces.append((task.bias.name, biases[0], 0))
            host_bias = biases[0].view(result.bias.dtype)
        report = partial(result.report, numbers.view(torch.float32), host_bias)
        return Write(tuple(pieces), task, report, ready, buffer)

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
        upload = Upload(self.device, self._uploads) if self._uploads is not None else None
        ahead = self._fetch_ahead()
        for task in self.tasks:
            if self.halt.is_set():
                return
            next(ahead)
            if task.quantize:
                self._send(self._read(task, upload))
            else:
                self._copy(task)
        self._send(None)

    def _fetch_ahead(self) -> Iterator[None]:
        """Each step tells the system of the tensors that the next task brings within _WINDOW bytes."""
        waiting, used = iter(self.tasks), 0
        for task in self.tasks:
            while used < _WINDOW and (coming := next(waiting, None)) is not None:
                self.reader.will_need(coming.tensor.info)
                used += coming.tensor.info.nbytes
            yield
            used -= task.tensor.info.nbytes

    def _read(self, task: Task, upload: Upload | None) -> Read:
        info = task.tensor.info
        self._budget.take(info.nbytes, self.halt)
        bias = self._load_bias(task.bias) if task.bias else None
        if upload is None:
            return Read(task, self._load(info, torch.empty(info.nbytes, dtype=torch.uint8)), bias, None)
        buffer = upload.buffer(self.halt)
        return upload.send(task, buffer, self._load(info, buffer[: info.nbytes]), bias)

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
        self.reader.read_into(info, raw.numpy().data)
        self.reader.drop_cache(info)
        self.stages.read += time.monotonic() - begun
        return raw.view(TORCH_DTYPES[info.dtype]).reshape(info.shape)

    def _copy(self, task: Task) -> None:
        info = task.tensor.info
        piece_size = self._sizes.piece
        for offset in range(0, max(info.nbytes, 1), piece_size):
            count = min(piece_size, info.nbytes - offset)
            self._budget.take(count, self.halt)
            begun = time.monotonic()
            piece = torch.empty(count, dtype=torch.uint8)
            if count:
                self.reader.read_into(info, piece.numpy().data, offset)
            self.stages.read += time.monotonic() - begun
            self._look(info, piece)
            last = offset + count >= info.nbytes
            self._outbox.put(Write(((info.name, piece, offset),), task if last else None))
        self.reader.drop_cache(info)

    def _write_all(self) -> None:
        for item in self._received(self._outbox):
            if item.ready is not None:
                item.ready.synchronize()
            report = item.report() if item.report else None
            begun = time.monotonic()
            nbytes = 0
            for name, data, offset in item.pieces:
                self.file.write(name, memoryview(data.numpy()), offset)
                nbytes += data.numel()
            if item.buffer is not None and self._downloads is not None:
                self._downloads.give(item.buffer)
            # What was taken: of a quantized layer the bytes that were read, else the piece's own.
            self._budget.give(nbytes if report is None else item.task.tensor.info.nbytes)
            if item.task is not None:
                self._note(item.task, None if report is None else report.to_json(),
                           nbytes if report is not None else item.task.tensor.info.nbytes)
            self.stages.write += time.monotonic() - begun
        if not self.halt.is_set():
            self.journal.flush()

    def _note(self, task: Task, report: dict[str, object] | None, nbytes: int) -> None:
        """Note a task whose tensors, of `nbytes` in all, are written."""
        known: Known = {name: {"nonfinite": True} if name in self._nonfinite else None for name in task.written}
        if report is not None:
            known[task.tensor.name] = report
        for name in task.written:
            # The journal adds the bytes up: they count once, whatever the number of names.
            self.journal.record(name, nbytes if name == task.tensor.name else 0, known[name])
        self.on_done(task, known)
