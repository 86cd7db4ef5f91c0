"""The end of a failed run: what failed first is what is raised."""

import threading

import pytest

from tpec.run.halt import Halt, Stopped


def test_a_run_that_did_not_fail() -> None:
    halt, seen = Halt(), []
    halt.run(lambda: seen.append("first"), lambda: seen.append("second"))
    halt.check()
    halt.raise_first()
    assert sorted(seen) == ["first", "second"] and not halt.is_set()


def test_what_failed_first_is_raised_whatever_follows() -> None:
    halt = Halt()
    halt.fail(OSError("disk"))
    halt.fail(Stopped())
    halt.fail(KeyboardInterrupt())
    with pytest.raises(Stopped):
        halt.check()
    with pytest.raises(OSError, match="disk"):
        halt.raise_first()


@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_failing_stage_ends_the_others(at: int) -> None:
    halt, ended = Halt(), []

    def fail() -> None:
        raise ZeroDivisionError("this one")

    def work() -> None:
        try:
            while True:
                halt.check()
        finally:
            ended.append(threading.get_ident())

    halt.run(*(fail if index == at else work for index in range(3)))
    assert len(ended) == 2
    with pytest.raises(ZeroDivisionError, match="this one"):
        halt.raise_first()


def test_interrupt_while_the_others_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the thread that waits stops the stages and waits on."""
    halt, joined = Halt(), []
    join = threading.Thread.join

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        joined.append(thread)
        if len(joined) == 1:
            raise KeyboardInterrupt
        join(thread, timeout)

    def work() -> None:
        while not halt.is_set():
            pass

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    halt.run(lambda: None, work)
    assert not joined[0].is_alive()
    with pytest.raises(KeyboardInterrupt):
        halt.raise_first()
