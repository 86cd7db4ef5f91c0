"""One lane: bounded memory between its stages, every byte copied, and the first failure of any stage told."""

import threading
from collections.abc import Callable
from functools import partial
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
from tpec.run.lane import Buffers, Lane, Read, Write
from tpec.run.progress import Meter
from tpec.run.tasks import Task, make_tasks
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
        layers = frozenset(layer.layer for layer in self.plan.of("quantize"))
        self.tasks = make_tasks(self.plan, layers if biases else frozenset())
        self.reader, self.file = Reader(self.plan.checkpoint), spool.SpoolFile(self.output, self.layout)
        self.ledger, self.done = Ledger(), []
        self.computes = [Compute(self.plan, None, self.layout, CPU, Meter(1.0, 1, 0.0, 0, None))
                         for _ in range(threads)]
        self.finished = finished or (lambda task, *_: self.done.append(task.layer.name))

    def lane(self, compute: Callable[[Lane, Read], Write] | None = None) -> Lane:
        computes = [compute] if compute else [one.run for one in self.computes]
        return Lane(CPU, self.tasks, self.reader, self.file, self.ledger, computes, self.finished)

    def run(self, compute: Callable[[Lane, Read], Write] | None = None) -> None:
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
    monkeypatch.setattr("tpec.run.lane._PIECE", 512)


@pytest.mark.parametrize("threads", [1, 3])
def test_every_tensor_is_written_and_told_once(tmp_path: Path, small_pieces: None, threads: int) -> None:
    setup = Setup(tmp_path, threads=threads)
    setup.run()
    assert sorted(setup.done) == sorted(task.layer.name for task in setup.tasks)
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
    assert len(names) == len(set(names)) == len(setup.plan.layers)
    written = sum(setup.layout.entries[name].nbytes for name in names)
    # A layer's scale goes to the file under each of its names.
    scales = 4 * 2 * len(setup.plan.of("quantize"))
    assert sum(nbytes for _, nbytes in setup.ledger.lines) == written + scales


def test_failure_of_the_writer_is_told_though_compute_waits_for_a_buffer(tmp_path: Path) -> None:
    """On a GPU the compute thread waits there most of the time: being stopped is not what went wrong."""
    waiting = threading.Event()

    def full(task: Task, *_: object) -> None:
        waiting.wait(30)
        raise TpecError("The disk of X is full.")

    def wait(lane: Lane, item: Read) -> Write:
        lane._downloads = Buffers(0, 8)
        waiting.set()
        lane.download_buffer()

    with pytest.raises(TpecError, match="The disk of X is full"):
        Setup(tmp_path, full).run(wait)


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
        def compute(lane: Lane, item: Read) -> Write:
            return Write((), item.task, fail)
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


def test_one_request_larger_than_the_budget_passes_alone() -> None:
    from tpec.run.halt import Halt, Stopped
    from tpec.run.lane import Budget

    halt, budget = Halt(), Budget(10)
    budget.take(100, halt)
    waiter = threading.Thread(target=partial(budget.take, 5, halt))
    waiter.start()
    assert waiter.is_alive()
    budget.give(100)
    waiter.join()
    halt.fail(KeyError())
    with pytest.raises(Stopped):
        budget.take(6, halt)


def test_buffers_are_used_in_turn() -> None:
    from tpec.run.halt import Halt

    halt, buffers = Halt(), Buffers(2, 16)
    first, second = buffers.take(halt), buffers.take(halt)
    assert first.numel() == 16 and first.data_ptr() != second.data_ptr()
    buffers.give(first)
    assert buffers.take(halt).data_ptr() == first.data_ptr()
