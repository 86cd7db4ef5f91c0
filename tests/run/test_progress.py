"""Progress: adds up, never runs backwards, and stops every thread; of a failed run what failed first is raised."""

import threading
import time

import pytest

from tpec.run.progress import _WITHIN, Halt, Meter, Progress, Stopped


def test_meter_adds_up() -> None:
    events: list[Progress] = []
    meter = Meter(10.0, 3, 4.0, 1, events.append)
    meter.begin("a")
    meter.advance(3.0, True, "error 0.02")
    meter.advance(3.0, False)
    assert [(event.done, event.index, event.layer) for event in events] == [(4, 1, "a"), (7, 2, "a"), (10, 2, "a")]
    assert events[-1].message == "error 0.02"
    assert events[0].eta is None
    Meter(1.0, 1, 0.0, 0, None).advance(1.0, True)


def test_meter_within_a_layer_tells_now_and_then() -> None:
    events: list[Progress] = []
    meter = Meter(10.0, 3, 0.0, 0, events.append)
    begun = time.monotonic()
    meter.begin("a")
    for _ in range(100_000):
        meter.tick()
    assert len(events) <= 1 + (time.monotonic() - begun) / _WITHIN
    told = len(events)
    time.sleep(2 * _WITHIN)
    meter.tick()
    assert len(events) == told + 1


def test_events_come_in_their_order_from_any_thread() -> None:
    events: list[Progress] = []
    begun, later = threading.Event(), threading.Event()

    def listen(event: Progress) -> None:
        if event.done == 1:
            begun.set()
            # As long as a second thread would need to be told of later work.
            later.wait(0.5)
        events.append(event)
        if event.done == 2:
            later.set()

    meter = Meter(2.0, 2, 0.0, 0, listen)
    first = threading.Thread(target=meter.advance, args=(1.0, True))
    first.start()
    begun.wait()
    meter.advance(1.0, True)
    first.join()
    assert [(event.done, event.index) for event in events] == [(1, 1), (2, 2)]


def test_many_threads_count_up_to_the_end() -> None:
    events: list[Progress] = []
    meter = Meter(400.0, 400, 0.0, 0, events.append)

    def work() -> None:
        for _ in range(100):
            meter.begin("a")
            meter.tick()
            meter.advance(1.0, True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert (events[-1].done, events[-1].index) == (400, 400)


def test_listener_that_raises_stops_everyone_and_is_not_asked_again() -> None:
    halt, calls = Halt(), []

    def refuse(event: Progress) -> None:
        calls.append(event)
        raise ZeroDivisionError("enough")

    meter = Meter(10.0, 3, 0.0, 0, refuse, halt)
    with pytest.raises(ZeroDivisionError):
        meter.begin("a")
    for tell in (meter.tick, lambda: meter.begin("b"), lambda: meter.advance(1.0, True)):
        with pytest.raises(Stopped):
            tell()
    assert len(calls) == 1
    with pytest.raises(ZeroDivisionError, match="enough"):
        halt.raise_first()


def test_tick_does_not_wait_for_another_threads_report() -> None:
    """A listener that never returns holds up the thread that called it and no other."""
    begun, end = threading.Event(), threading.Event()

    def listen(event: Progress) -> None:
        begun.set()
        end.wait(30)

    meter = Meter(10.0, 3, 0.0, 0, listen)
    thread = threading.Thread(target=meter.begin, args=("a",))
    thread.start()
    begun.wait()
    time.sleep(2 * _WITHIN)
    meter.tick()
    assert thread.is_alive()
    end.set()
    thread.join()


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
