"""What a run held in memory is free once it has ended, however it ends: nothing waits for the garbage collector."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType

import pytest
import torch
from samples import generator, save_flux

from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.run.pipeline import quantize, settle
from tpec.run.processes import World
from tpec.run.progress import Halt, Progress
from tpec.settings import Settings
from tpec.statistics.backward import GradientCollector
from tpec.statistics.calibration import Calibration, hash_layers
from tpec.statistics.inputs import Gram, HeldInputs
from tpec.statistics.watching import Collector

LANES = [("cpu",), ("cpu", "cpu")]


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fails when what happens within leaves tensors, frames or objects of the engine to the garbage collector."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        left = [thing for thing in gc.garbage if isinstance(thing, torch.Tensor | FrameType)
                or type(thing).__module__.startswith("tpec.")]
        kinds = sorted({str(thing) if isinstance(thing, FrameType) else type(thing).__name__ for thing in left})
        assert not left, kinds[:8]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def fails(work: Callable[[], object], error: type[BaseException]) -> None:
    """As `pytest.raises` does, which keeps the exception."""
    try:
        work()
    except error:
        return
    pytest.fail("nothing was raised")


def held(error: BaseException) -> list[torch.Tensor]:
    """Tensors that an exception leads to by its traceback."""
    found, waiting, seen = [], [error], {id(error)}
    while waiting:
        for thing in gc.get_referents(waiting.pop()):
            if id(thing) in seen or isinstance(thing, ModuleType | type):
                continue
            seen.add(id(thing))
            # The namespaces of modules lead everywhere.
            if not (isinstance(thing, dict) and "__builtins__" in thing):
                waiting.append(thing)
            if isinstance(thing, torch.Tensor):
                found.append(thing)
    return found


@pytest.mark.parametrize("devices", LANES)
@pytest.mark.parametrize("method", ["nearest", "tpec"])
def test_run_that_ends_well(tmp_path: Path, devices: tuple[str, ...], method: str) -> None:
    plan = make_plan(open_checkpoint(save_flux(tmp_path)), Settings(method=method))
    with nothing_left():
        quantize(plan, tmp_path / "q.safetensors", devices=devices)


@pytest.mark.parametrize("devices", LANES)
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_run_that_its_listener_stops(tmp_path: Path, devices: tuple[str, ...], error: type[BaseException]) -> None:
    plan = make_plan(open_checkpoint(save_flux(tmp_path)), Settings())

    def stop(event: Progress) -> None:
        if event.index:
            raise error("stop")

    with nothing_left():
        fails(lambda: quantize(plan, tmp_path / "q.safetensors", devices=devices, progress=stop), error)


@pytest.mark.parametrize("devices", LANES)
def test_run_that_meets_a_bad_weight(tmp_path: Path, devices: tuple[str, ...]) -> None:
    weight = torch.randn(64, 32, generator=generator()).bfloat16()
    weight[0, 0] = torch.nan
    plan = make_plan(open_checkpoint(save_flux(tmp_path, extra={"single_blocks.0.linear1.weight": weight})), Settings())
    with nothing_left():
        fails(lambda: quantize(plan, tmp_path / "q.safetensors", devices=devices), TpecError)


@pytest.mark.parametrize("devices", LANES)
@pytest.mark.parametrize("main", [True, False], ids=["computing", "writing"])
def test_exception_that_is_kept_holds_no_tensors(tmp_path: Path, devices: tuple[str, ...], main: bool) -> None:
    """ComfyUI keeps those of interrupted prompts for a while; a frame keeps the one that called it."""
    plan = make_plan(open_checkpoint(save_flux(tmp_path)), Settings())

    def stop(event: Progress) -> None:
        if (threading.current_thread() is threading.main_thread()) == main:
            time.sleep(0.3)  # meanwhile weights are read ahead, and the lane holds them
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        quantize(plan, tmp_path / "q.safetensors", devices=devices, progress=stop)
    assert not held(caught.value)


@pytest.mark.parametrize("devices", LANES)
def test_kept_exception_with_a_cause_holds_no_tensors(tmp_path: Path, devices: tuple[str, ...]) -> None:
    """A clear sentence is raised `from None`: what it stands for is hidden, not gone."""
    plan = make_plan(open_checkpoint(save_flux(tmp_path)), Settings())

    def write(weight: torch.Tensor) -> None:
        raise OSError(weight.numel())

    def stop(event: Progress) -> None:
        if event.index:
            try:
                write(torch.ones(8))
            except OSError:
                raise TpecError("The disk is full.") from None

    with pytest.raises(TpecError) as caught:
        quantize(plan, tmp_path / "q.safetensors", devices=devices, progress=stop)
    assert isinstance(caught.value.__context__, OSError)
    assert not held(caught.value)


def test_exception_while_measuring_holds_no_tensors(tmp_path: Path) -> None:
    """The covariance of the inputs is kept from layer to layer."""
    plan = make_plan(open_checkpoint(save_flux(tmp_path)), Settings(keep_quality=5))
    layers = {layer.linear_in_model: layer.shape for layer in plan.of("quantize")}
    width = max(shape[1] for shape in layers.values())
    inputs = HeldInputs(torch.zeros(width), 1.0, 99, Gram(torch.eye(width)))
    groups = {name: "one" for name, shape in layers.items() if shape[1] == width}
    calibration = Calibration({"one": inputs}, groups, hash_layers(layers), shapes=layers)
    known = {id(tensor) for tensor in held(MemoryError(calibration))}

    def stop(event: Progress) -> None:
        if event.index == event.count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        settle(plan, calibration, torch.device("cpu"), stop)
    assert known and not [tensor.shape for tensor in held(caught.value) if id(tensor) not in known]


@pytest.mark.parametrize("watching", [Collector, GradientCollector])
def test_exception_while_calibrating_holds_no_sums(watching: type[Collector | GradientCollector]) -> None:
    layer = torch.nn.modules.linear.Linear(32, 32)

    def run(collector: Collector | GradientCollector) -> None:
        with collector:
            layer(torch.ones(1, 8, 32, requires_grad=True)).sum().backward()
            assert held(MemoryError(collector._sums)), "there is something to let go"
            raise MemoryError

    with pytest.raises(MemoryError) as caught:
        run(watching({"layer": layer}))
    weights = {id(weight) for weight in (*layer.parameters(), layer.weight.grad, layer.bias.grad)}
    assert not [tensor.shape for tensor in held(caught.value) if id(tensor) not in weights]


def test_run_whose_source_is_cut_short_meanwhile(tmp_path: Path) -> None:
    source = save_flux(tmp_path)
    plan = make_plan(open_checkpoint(source), Settings())
    with open(source, "r+b") as file:
        file.truncate(source.stat().st_size // 2)
    with nothing_left():
        fails(lambda: quantize(plan, tmp_path / "q.safetensors"), TpecError)


def test_what_failed_first_is_raised_once() -> None:
    halt = Halt()
    halt.guard(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        halt.raise_first()
    assert halt.is_set()
    halt.raise_first()


def test_step_of_several_processes(tmp_path: Path) -> None:
    """Of two, one of which is not there: it has no news."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        world = World(0, 2)
        with nothing_left():
            fails(lambda: world.agree(lambda: 1 / 0), ZeroDivisionError)
    finally:
        torch.distributed.destroy_process_group()
