"""The lock that one run holds on its output, with and without a file system that knows locks."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import names_in, python, small_disk

from tpec.errors import TpecError
from tpec.files.lock import OutputLock, lock_file

HOLD = """import sys, time
from pathlib import Path
from tpec.files.lock import OutputLock
OutputLock(Path(sys.argv[1]), Path("q.safetensors")).acquire()
print("held", flush=True)
sys.stdin.read()"""


def no_locks(handle: int) -> None:
    """A file system without locks."""
    return None


def make(folder: Path, lock: Callable[[int], bool | None] = lock_file) -> OutputLock:
    return OutputLock(folder / "q.lock", folder / "q.safetensors", lock)


@pytest.mark.parametrize("lock", [lock_file, no_locks])
def test_one_holds_it_and_the_other_is_told_who(tmp_path: Path, lock: Callable[[int], bool | None]) -> None:
    with make(tmp_path, lock) as first, make(tmp_path, lock) as second:
        first.acquire()
        assert first.held
        assert names_in(tmp_path) == {"q.lock"}
        with pytest.raises(TpecError, match=rf"another run is writing this output \(process {os.getpid()} on"):
            second.acquire()
        assert not second.held
        second.release()
        assert names_in(tmp_path) == {"q.lock"}, "who does not hold it must not remove it"
        first.release()
        assert names_in(tmp_path) == set()
        second.acquire()
    assert names_in(tmp_path) == set()


def test_lock_dies_with_its_process(tmp_path: Path) -> None:
    process = python(HOLD, [tmp_path / "q.lock"], stdin=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    with make(tmp_path) as lock:
        with pytest.raises(TpecError, match=f"process {process.pid} on"):
            lock.acquire()
        process.kill()
        process.communicate(timeout=60)
        assert names_in(tmp_path) == {"q.lock"}
        lock.acquire()
    assert names_in(tmp_path) == set()


def left_behind(folder: Path, content: str) -> None:
    (folder / "q.lock").write_text(content)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not asked there")
@pytest.mark.parametrize("number", [None, 2**70])
def test_without_locks_a_dead_process_does_not_count(tmp_path: Path, number: int | None) -> None:
    left_behind(tmp_path, json.dumps({"process": number or dead_process(), "host": socket.gethostname()}))
    with make(tmp_path, no_locks) as lock:
        lock.acquire()
        assert json.loads((tmp_path / "q.lock").read_text())["process"] == os.getpid()
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("content", [json.dumps({"process": 1, "host": "another machine"}), "", "[3]", "\0\0",
                                     '{"process": "x", "host": "y"}'])
def test_without_locks_what_may_be_alive_counts_and_the_remedy_is_named(tmp_path: Path, content: str) -> None:
    left_behind(tmp_path, content)
    with make(tmp_path, no_locks) as lock, pytest.raises(TpecError, match="if it is gone, delete q.lock"):
        lock.acquire()
    assert (tmp_path / "q.lock").read_text() == content


@pytest.mark.parametrize("content", ["", "\0\0", json.dumps({"process": os.getpid(), "host": socket.gethostname()})])
def test_with_locks_a_left_file_never_counts(tmp_path: Path, content: str) -> None:
    left_behind(tmp_path, content)
    with make(tmp_path) as lock:
        lock.acquire()
    assert names_in(tmp_path) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_file_that_its_holder_removes_meanwhile_is_made_anew(tmp_path: Path) -> None:
    """Opened before the holder let go, locked after: that lock would be on a file without a name."""
    calls = []

    def slow(handle: int) -> bool | None:
        if not calls:
            (tmp_path / "q.lock").unlink()
        calls.append(handle)
        return lock_file(handle)

    left_behind(tmp_path, "")
    with make(tmp_path, slow) as lock:
        lock.acquire()
        assert len(calls) == 2
        with make(tmp_path) as other, pytest.raises(TpecError, match="another run"):
            other.acquire()


def test_impossible_place_is_one_sentence(tmp_path: Path) -> None:
    with make(tmp_path / "none") as lock, pytest.raises(TpecError, match="cannot be written: No such file"):
        lock.acquire()


def test_replaced_working_file_is_noticed(tmp_path: Path) -> None:
    working = tmp_path / "q.partial"
    working.write_text("mine")
    with make(tmp_path) as lock:
        lock.acquire()
        assert lock.unchanged()
        with open(working, "rb") as file:
            lock.watch(file.fileno(), working)
        assert lock.unchanged()
        lock.confirm()
        if sys.platform != "win32":
            working.rename(tmp_path / "kept")
            assert not lock.unchanged()
            working.write_text("theirs")
            with pytest.raises(TpecError, match="another run replaced the working file"):
                lock.confirm()


def test_full_disk_keeps_no_lock_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        with open(disk / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        with make(disk) as lock, make(disk) as other:
            lock.acquire()
            with pytest.raises(TpecError, match="another run is writing this output: wait"):
                other.acquire()
        assert names_in(disk) == {"filler"}


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is watched there")
def test_processes_without_the_lock_know_the_working_file_of_the_one_with_it(tmp_path: Path) -> None:
    working, foreign = tmp_path / "q.partial", tmp_path / "foreign"
    with make(tmp_path) as first, make(tmp_path) as second, open(working, "wb") as file, open(foreign, "wb") as other:
        assert first.identity() is None
        second.follow(None)
        second.confirm(other.fileno())
        first.watch(file.fileno(), working)
        second.follow(first.identity())
        second.confirm(file.fileno())
        with pytest.raises(TpecError, match="another run replaced the working file"):
            second.confirm(other.fileno())
        with make(tmp_path) as distant:
            distant.follow(("another machine", 1))
            distant.confirm(other.fileno())
