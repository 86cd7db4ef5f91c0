"""One lane: bounded memory between its stages, every byte copied, and the first failure of any stage told."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from samples import load, same_bits, save_flux

from tpec.errors import TpecError
from tpec.files import partial as spool
from tpec.files.checkpoint import Reader, open_checkpoint
from tpec.files.layout import Layout
from tpec.model.formats import make_layout
from tpec.model.plan import Plan, make_plan
from tpec.run.compute import Compute
from tpec.run.lane import Lane
from tpec.run.progress import Halt, Meter
from tpec.run.tasks import Task, make_tasks
from tpec.run.transfers import Buffers, Fetched, Read, Result
from tpec.settings import Settings

CPU = torch.device("cpu")
BIG = torch.arange(1000, dtype=torch.float32).reshape(10, 100)


class Ledger:
    """A journal that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int]] = []
        self.flushed = 0

    def record(self, name: str, nbytes: int, facts: object = None) -> None:
        self.lines.append((name, nbytes))

    def flush(self) -> None:
        self.flushed += 1


class Setup:
    """A lane with all tasks of a small model, rounded to nearest, and the open files it works on."""

    def __init__(self, folder: Path, finished: Callable[..., None] | None = None, biases: bool = False,
                 threads: int = 1) -> None:
        self.source = save_flux(folder, extra={"big.table": BIG})
        self.output = folder / "q.safetensors"
        self.plan: Plan = make_plan(open_checkpoint(self.source), Settings(method="nearest"))
        self.layout: Layout = make_layout(self.plan, {})
        spool.create(self.output, self.layout)
        layers = frozenset(layer.linear for layer in self.plan.of("quantize"))
        self.tasks = make_tasks(self.plan, layers if biases else frozenset())
        self.reader, self.file = Reader(self.plan.checkpoint), spool.SpoolFile(self.output, self.layout)
        self.ledger, self.done = Ledger(), []
        self.computes = [Compute(self.plan, None, CPU, Meter(1.0, 1, 0.0, 0, None))
                         for _ in range(threads)]
        self.finished = finished or (lambda task, *_: self.done.append(task.tensor.name))

    def lane(self, compute: Callable[[Read], Result] | None = None) -> Lane:
        computes = [compute] if compute else [one.run for one in self.computes]
        return Lane(CPU, self.tasks, self.reader, self.file, self.ledger, computes, self.finished)

    def run(self, compute: Callable[[Read], Result] | None = None) -> None:
        try:
            finish(self.lane(compute))
        finally:
            self.reader.close()
            self.file.close()


def finish(lane: Lane) -> None:
    lane.run()
    lane.halt.raise_first()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpec.run.memory.PIECE", 512)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_tensor_is_written_and_told_once(tmp_path: Path, small_pieces: None, threads: int) -> None:
    setup = Setup(tmp_path, threads=threads)
    setup.run()
    assert sorted(setup.done) == sorted(task.tensor.name for task in setup.tasks)
    before, after = load(setup.source), load(setup.output.with_name("q.safetensors.partial"))
    for layer in setup.plan.of("keep"):
        assert same_bits(before[layer.name], after[layer.name]), layer.name
    assert setup.ledger.flushed == 1


@pytest.mark.parametrize("biases", [False, True])
def test_the_journal_is_told_of_every_byte_once(tmp_path: Path, small_pieces: None, biases: bool) -> None:
    """It syncs after so many bytes: neither pieces of a large tensor nor biases may distort that."""
    setup = Setup(tmp_path, biases=biases)
    setup.run()
    names = [name for name, _ in setup.ledger.lines]
    assert len(names) == len(set(names)) == len(setup.plan.tensors)
    written = sum(setup.layout.entries[name].nbytes for name in names)
    # A layer's scale goes to the file under each of its names.
    scales = 4 * 2 * len(setup.plan.of("quantize"))
    assert sum(nbytes for _, nbytes in setup.ledger.lines) == written + scales


def test_failure_of_the_writer_is_told_though_compute_waits_for_a_buffer(tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the compute thread waits there most of the time: being stopped is not what went wrong."""
    waiting, none_free = threading.Event(), Buffers(0, 8)

    def full(task: Task, *_: object) -> None:
        waiting.wait(30)
        raise TpecError("The disk of X is full.")

    def wait(download: object, tensors: object, ready: object, halt: Halt) -> Fetched:
        waiting.set()
        return Fetched([none_free.take(halt)], None, None)

    monkeypatch.setattr("tpec.run.transfers.Download.fetch", wait)
    with pytest.raises(TpecError, match="The disk of X is full"):
        Setup(tmp_path, full).run()


def test_failure_of_the_writer_is_told_though_the_reader_waits_for_memory(tmp_path: Path, small_pieces: None) -> None:
    reading = threading.Event()

    def full(task: Task, *_: object) -> None:
        reading.wait(1)
        raise TpecError("The disk of X is full.")

    setup = Setup(tmp_path, full)
    setup.tasks = tuple(task for task in setup.tasks if not task.quantize)
    with pytest.raises(TpecError, match="The disk of X is full"):
        setup.run()


def fail(*_: object) -> None:
    raise ZeroDivisionError("this stage")


@pytest.mark.parametrize("stage", ["read", "compute", "facts", "write", "finished", "flush"])
def test_failure_of_any_stage_is_raised_and_ends_every_thread(tmp_path: Path, stage: str,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(tmp_path, fail if stage == "finished" else None)
    compute = None
    if stage == "read":
        monkeypatch.setattr(setup.reader, "read_into", fail)
    elif stage == "write":
        monkeypatch.setattr(setup.file, "write", fail)
    elif stage == "flush":
        monkeypatch.setattr(setup.ledger, "flush", fail)
    elif stage == "compute":
        compute = fail
    elif stage == "facts":
        def compute(item: Read) -> Result:
            return Result(torch.zeros(1), torch.zeros(1), None, (), fail)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match="this stage"):
        setup.run(compute)
    assert threading.active_count() == before


def test_a_lane_ends_when_another_has_failed(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    lane = setup.lane()
    lane.halt.fail(OSError("elsewhere"))
    lane.run()
    assert setup.ledger.flushed == 0
    with pytest.raises(OSError, match="elsewhere"):
        lane.halt.raise_first()


def test_a_lane_without_tasks_ends(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.tasks = ()
    setup.run()
    assert setup.done == [] and setup.ledger.flushed == 1
