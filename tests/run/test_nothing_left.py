"""What a run held in memory is free once it has ended, however it ends: nothing waits for the garbage collector."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import torch
from samples import generator, save_flux

from tpec.errors import TpecError
from tpec.files.checkpoint import open_checkpoint
from tpec.model.plan import make_plan
from tpec.run.pipeline import quantize
from tpec.run.processes import World
from tpec.run.progress import Halt, Progress
from tpec.settings import Settings

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
