"""Deputies: threads that do for the main thread what no signal's handler may break off."""

from __future__ import annotations

import _thread
import contextvars
import gc
import logging
import signal
import threading
import weakref
from collections.abc import Iterator

import pytest

from resultd import _gevent
from resultd._deputies import FREE_MAX, THREADS_MAX, Deputies, Errand, needed
from resultd.client import Client
from tests.support.interrupts import Interrupt
from tests.support.results import until


@pytest.fixture
def deputies() -> Iterator[Deputies]:
    """Some of the test's own."""
    made = Deputies()
    yield made
    made.pause(float("inf"))


def interrupt_once(waiting: threading.Event) -> None:
    """Have a signal's handler raise in the main thread, once something has begun."""

    def raise_there(*_: object) -> None:
        signal.signal(signal.SIGUSR1, before)
        raise Interrupt

    def send() -> None:
        assert waiting.wait(10)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, raise_there)
    threading.Thread(target=send).start()


def test_work_is_done_elsewhere_and_its_outcome_comes_here(deputies: Deputies) -> None:
    """What it returns, and what it raises; with the context variables of who waits."""
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(5)
    where, value = deputies.do(lambda _: (threading.current_thread(), variable.get()))
    assert (where is threading.current_thread(), where.name, value) == (False, "resultd-call", 5)

    def fail(_: Errand[None]) -> None:
        raise SystemExit("as it was")

    with pytest.raises(SystemExit, match="as it was"):
        deputies.do(fail)


def test_once_threads_are_greenlets_it_begins_anew(
    deputies: Deputies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there before would stop them all. All are the main thread now: it asks nobody."""
    assert needed()
    deputies.do(lambda _: None)
    before = deputies.receiver
    assert deputies.receiver == before
    monkeypatch.setattr(_gevent, "has_patched", lambda: True)
    assert not needed()
    assert deputies.receiver != before
    assert deputies.do(lambda _: 1) == 1


def test_nothing_is_left_to_the_garbage_collector(deputies: Deputies) -> None:
    """Neither by work that ended in order nor by work that failed."""

    class Failure(Exception):
        pass

    def fail(_: Errand[None]) -> None:
        raise Failure

    deputies.do(lambda _: None)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(Failure) as caught:
            deputies.do(fail)
        gone = weakref.ref(caught.value)
        del caught
        until(lambda: gone() is None)
    finally:
        gc.enable()


def test_an_interrupt_ends_the_wait_at_once_and_not_the_work(deputies: Deputies) -> None:
    """What the work is to do sooner then, it is told; and the next finds a deputy."""
    begun, told, let_go, ended = (threading.Event() for _ in range(4))

    def work(errand: Errand[None]) -> None:
        errand.stop_with(told.set)
        begun.set()
        assert let_go.wait(10)
        ended.set()

    interrupt_once(begun)
    with pytest.raises(Interrupt):
        deputies.do(work)
    assert told.wait(10)
    assert deputies.do(lambda _: "next") == "next"
    assert not ended.is_set()
    let_go.set()
    assert ended.wait(10)


def test_work_that_is_given_up_before_it_says_how_to_end_it_is_ended_then() -> None:
    """The interrupt may come at any time."""
    stopped: list[bool] = []

    def work(errand: Errand[None]) -> None:
        errand.given_up = True
        errand.stop()  # of no use yet
        errand.stop_with(lambda: stopped.append(True))

    errand = Errand(work)
    errand.do()
    errand.stop()  # it has ended: there is nothing to be stopped
    assert stopped == [True]


def test_there_are_no_more_threads_than_allowed(deputies: Deputies) -> None:
    """What is too much waits for its turn; when all is done few stay."""
    let_go, done = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        let_go.wait(10)
        done.release()

    for _ in range(THREADS_MAX + 3):
        deputies.leave(work)
    until(lambda: len(deputies._threads) == THREADS_MAX and deputies._free == 0)
    let_go.set()
    for _ in range(THREADS_MAX + 3):
        assert done.acquire(timeout=10)
    until(lambda: len(deputies._threads) == FREE_MAX == deputies._free)


def test_over_a_fork_free_ones_end_and_what_is_handed_over_waits(deputies: Deputies) -> None:
    """One that is busy is not waited for; the child begins with none."""
    begun, let_go, done = threading.Event(), threading.Event(), threading.Event()

    def busy() -> None:
        begun.set()
        let_go.wait(10)

    deputies.leave(busy)
    assert begun.wait(10)
    deputies.do(lambda _: None)
    until(lambda: deputies._free == 1)
    deputies.pause(float("inf"))
    assert (deputies._free, len(deputies._threads)) == (0, 1)
    deputies.leave(done.set)
    assert not done.wait(0.05)
    deputies.resume()
    assert done.wait(10)
    let_go.set()
    until(lambda: len(deputies._threads) == 1 == deputies._free)
    deputies.begin_anew()
    assert deputies.do(lambda _: len(deputies._threads)) == 1


def test_what_nobody_waits_for_says_in_the_log_that_it_failed(
    deputies: Deputies, caplog: pytest.LogCaptureFixture
) -> None:
    """And the deputy goes on."""
    with caplog.at_level(logging.ERROR, "resultd"):
        deputies.leave(lambda: int("x"))
        until(lambda: bool(caplog.records))
    assert "invalid literal" in str(caplog.records[0].exc_info)
    assert deputies.do(lambda _: 1) == 1


def test_where_no_more_threads_can_be_work_is_done_all_the_same(
    deputies: Deputies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the thread that was to begin another."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert deputies.do(lambda _: 1) == 1
    until(lambda: not deputies._threads and deputies._free == 0)


def test_where_none_can_be_begun_at_all_who_asks_does_it(
    deputies: Deputies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in functions that run when the interpreter ends, from Python 3.12 on."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    assert deputies.do(lambda _: threading.current_thread()) is threading.current_thread()


def test_only_the_main_thread_needs_them(client: Client) -> None:
    """Python runs the handlers of signals there; the others make their calls themselves."""
    assert needed()
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(needed()))
    thread.start()
    thread.join()
    assert found == [False]
    client.server_info()
    assert any(each.name == "resultd-call" for each in threading.enumerate())
