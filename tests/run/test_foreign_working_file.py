"""Another file that takes the working file's name, at any point of a run: it is neither written to nor published."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import names_in, save_flux

from tpec.errors import TpecError
from tpec.files import partial
from tpec.files.checkpoint import open_checkpoint
from tpec.files.layout import Layout
from tpec.files.partial import SpoolFile, create, finish, output_lock, partial_path
from tpec.model.formats import make_layout
from tpec.model.plan import Plan, make_plan
from tpec.run.pipeline import quantize
from tpec.run.progress import Progress
from tpec.settings import Settings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be replaced there")
FOREIGN = b"another run's unfinished bytes"
REFUSED = "another run replaced the working file"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    folder = tmp_path / "source"
    folder.mkdir()
    return make_plan(open_checkpoint(save_flux(folder)), Settings(method="nearest"))


@pytest.fixture
def layout(plan: Plan) -> Layout:
    return make_layout(plan, {})


def put_another(output: Path) -> None:
    """As another machine does: a file of its own under the name."""
    other = output.with_name("other")
    other.write_bytes(FOREIGN)
    other.replace(partial_path(output))


def after(owner: object, name: str, nth: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `act` happen right after the nth call of `owner.name`, which does its work as ever."""
    real, calls = getattr(owner, name), []

    def called(*arguments: object, **named: object) -> object:
        found = real(*arguments, **named)
        calls.append(name)
        if len(calls) == nth:
            act()
        return found

    monkeypatch.setattr(owner, name, called)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(("name", "nth"), [("__init__", 1), ("allocate", 1), ("write", 1), ("write", 3), ("close", 1),
                                           ("__init__", 2), ("write", 40), ("sync", 1), ("close", 2)])
def test_replaced_at_any_point_of_a_run(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, name: str,
                                        nth: int, resume: bool) -> None:
    output = tmp_path / "q.safetensors"
    after(SpoolFile, name, nth, lambda: put_another(output), monkeypatch)
    with pytest.raises(TpecError, match=REFUSED):
        quantize(plan, output, resume=resume, sync_bytes=1)
    assert not output.exists()
    assert partial_path(output).read_bytes() == FOREIGN


def test_replaced_when_the_last_sync_is_over(tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "q.safetensors"
    with output_lock(output) as lock:
        lock.acquire()
        create(output, layout, lock)
        after(os, "fsync", 1, lambda: put_another(output), monkeypatch)
        with pytest.raises(TpecError, match=REFUSED):
            finish(output, lock=lock)
    assert names_in(tmp_path) == {"source", partial_path(output).name}
    assert partial_path(output).read_bytes() == FOREIGN


def test_replaced_when_a_resumed_run_has_looked_at_it(tmp_path: Path, plan: Plan,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "q.safetensors"

    def stop(event: Progress) -> None:
        if event.index > 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        quantize(plan, output, progress=stop, resume=True, sync_bytes=1)
    after(partial, "finished", 1, lambda: put_another(output), monkeypatch)
    with pytest.raises(TpecError, match=REFUSED):
        quantize(plan, output, resume=True)
    assert partial_path(output).read_bytes() == FOREIGN
    assert not output.exists()


def test_what_fails_after_it_was_replaced_leaves_the_other_file(tmp_path: Path, layout: Layout,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "q.safetensors"

    def replace_and_fail() -> None:
        put_another(output)
        raise InterruptedError

    after(SpoolFile, "write", 2, replace_and_fail, monkeypatch)
    with output_lock(output) as lock:
        lock.acquire()
        with pytest.raises(InterruptedError):
            create(output, layout, lock)
    assert partial_path(output).read_bytes() == FOREIGN
