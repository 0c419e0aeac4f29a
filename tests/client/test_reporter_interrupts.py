"""Exceptions out of nowhere: wherever a signal's handler raises, the reporter goes on.

Ctrl-C and Celery's soft time limit raise in the main thread, wherever it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resultd import _reporter
from resultd._effects import Call
from resultd._reporter import ThreadReporter
from resultd.errors import ResultdError, UnavailableError
from tests.client.test_reporter import Gate, answer, report
from tests.support.interrupts import Interrupt, Interrupts, each_place
from tests.support.results import until

PLACES_MAX = 400


class Others:
    """Threads that report beside the one that is interrupted, and what came of them."""

    def __init__(self, reporter: ThreadReporter) -> None:
        self._reporter = reporter
        self._threads: list[threading.Thread] = []
        self.outcomes: dict[int, Any] = {}

    def store(self, number: int) -> None:
        """Start one."""
        self._threads.append(threading.Thread(target=self._store, args=(number,)))
        self._threads[-1].start()

    def _store(self, number: int) -> None:
        try:
            self.outcomes[number] = self._reporter.store(report(str(number), 60.0)).version
        except ResultdError as error:
            self.outcomes[number] = error

    def join(self) -> None:
        """Until all have ended: long before their time."""
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def check(self) -> None:
        """Each was stored, or is told that it may try again."""
        for number, outcome in self.outcomes.items():
            assert outcome == number or outcome.retryable


def alone(reporter: ThreadReporter, gate: Gate, others: Others, interrupts: Interrupts) -> None:
    """The thread makes its call itself."""
    gate.opened.set()
    with interrupts:
        reporter.store(report("1", 60.0))


def _beside(reporter: ThreadReporter, gate: Gate, others: Others, ahead: bool) -> threading.Thread:
    """A call is under way, which ends once the thread that is interrupted waits among others."""
    others.store(2)
    assert gate.entered.wait(10)
    if not ahead:
        others.store(3)
        until(lambda: len(reporter._waiting) == 1)

    def go_on() -> None:
        queued = 1 if ahead else 2
        until(lambda: len(reporter._waiting) >= queued or interrupted.is_set())
        others.store(4)
        others.store(5)
        until(lambda: len(reporter._waiting) >= queued + 2 or interrupted.is_set())
        gate.opened.set()

    interrupted = threading.Event()
    going_on = threading.Thread(target=go_on)
    going_on.interrupted = interrupted  # type: ignore[attr-defined]  # an attribute of its own
    going_on.start()
    return going_on


def _run_beside(
    reporter: ThreadReporter, going_on: threading.Thread, interrupts: Interrupts
) -> None:
    try:
        with interrupts:
            reporter.store(report("1", 60.0))
    finally:
        going_on.interrupted.set()  # type: ignore[attr-defined]  # as above
        going_on.join(10)


def leading(reporter: ThreadReporter, gate: Gate, others: Others, interrupts: Interrupts) -> None:
    """The thread waits, and makes the next call, for others too."""
    _run_beside(reporter, _beside(reporter, gate, others, ahead=True), interrupts)


def carried(reporter: ThreadReporter, gate: Gate, others: Others, interrupts: Interrupts) -> None:
    """Another thread's call carries its report; it is woken, and wakes the next."""
    _run_beside(reporter, _beside(reporter, gate, others, ahead=False), interrupts)


def places(
    scenario: Callable[[ThreadReporter, Gate, Others, Interrupts], None],
) -> Iterator[tuple[int, ThreadReporter, Others]]:
    """Run a scenario for each place, with what is left of it."""
    for place in range(PLACES_MAX):
        gate = Gate(answer)
        reporter = ThreadReporter(gate)
        others = Others(reporter)
        interrupts = Interrupts(place, _reporter)
        try:
            scenario(reporter, gate, others, interrupts)
        except Interrupt:
            yield place, reporter, others
        else:
            assert not interrupts.raised, "an interrupt was swallowed"
            others.join()
            return
    raise AssertionError("the scenario does not end")


@each_place
@pytest.mark.parametrize("scenario", [alone, leading, carried])
def test_an_exception_anywhere_leaves_the_reporter_whole(
    scenario: Callable[[ThreadReporter, Gate, Others, Interrupts], None],
) -> None:
    """Nobody is left asleep, nothing is left behind, and the next report is stored."""
    count = 0
    for _, reporter, others in places(scenario):
        count += 1
        others.join()
        others.check()
        assert reporter._appointed is None
        assert reporter._led == {}
        assert not reporter._waiting
        assert not reporter._inside
        assert reporter.store(report("9", 5.0)).version == 9
    assert count > 20


def test_what_was_left_behind_lapses() -> None:
    """A leader that never came back: once its time is over others lead."""
    calls: list[Call] = []

    def call(each: Call) -> Any:
        calls.append(each)
        return answer(each)

    reporter = ThreadReporter(call)
    lost = _reporter.Ticket(report("1", 0.05))
    with reporter._lock:
        reporter._appoint(lost)
    with pytest.raises(ResultdError, match="took too long"):
        reporter.store(report("2", 0.2))
    assert reporter.store(report("3", 5.0)).version == 3
    carried = _reporter.Ticket(report("6", 60.0))
    carried.asleep = threading.Lock()
    carried.asleep.acquire()
    with reporter._lock:
        reporter._led[lost] = [lost, carried]
        lost.end = 0.0
    assert [reporter.store(report(str(n), 5.0)).version for n in (4, 5)] == [4, 5]
    assert not carried.asleep.locked()
    with pytest.raises(UnavailableError) as broken_off:
        carried.result()
    assert broken_off.value.retryable
    assert reporter._led == {}
