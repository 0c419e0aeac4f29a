"""Reports that share calls: nobody waits for company, nobody is left behind."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import resultd
from resultd import _operations, _reporter
from resultd._effects import Call, Report
from resultd._reporter import ThreadReporter, Ticket, take
from resultd.errors import ResultdError, UnavailableError, ValueTooLargeError, make
from resultd.testing import Server
from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2, task_pb2, value_pb2


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for the module."""
    with Server() as running:
        yield running


def report(task_id: str, timeout: float = 10.0, size: int = 1) -> Report:
    """A finished task."""
    value = value_pb2.Payload(data=b"1" * size)
    meta = task_pb2.TaskMeta(task_id=task_id, state=state_pb2.STATE_SUCCESS, value=value)
    return Report(pb.StoreResultRequest(meta=meta), timeout)


def ids(call: Call) -> list[str]:
    """Whose reports a call carries."""
    if isinstance(call.request, pb.StoreResultRequest):
        return [call.request.meta.task_id]
    assert isinstance(call.request, pb.BatchStoreResultsRequest)
    return [each.meta.task_id for each in call.request.reports]


def answer(call: Call) -> Any:
    """What a server says: each report's version is its id's number."""
    if isinstance(call.request, pb.StoreResultRequest):
        return pb.StoreResultResponse(version=int(call.request.meta.task_id))
    outcomes = [pb.StoreOutcome(result=pb.StoreResultResponse(version=int(i))) for i in ids(call)]
    return pb.BatchStoreResultsResponse(outcomes=outcomes)


class Gate:
    """A server whose first calls take until they are opened, one by one."""

    def __init__(self, respond: Callable[[Call], Any] = answer, count: int = 1) -> None:
        self.calls: list[list[str]] = []
        self.entered = threading.Event()
        self.each = [threading.Event() for _ in range(count)]
        self.opened = self.each[0]
        self._respond = respond

    def __call__(self, call: Call) -> Any:
        """Take a call, and answer it."""
        number = len(self.calls)
        self.calls.append(ids(call))
        self.entered.set()
        if number < len(self.each):
            assert self.each[number].wait(10)
        return self._respond(call)


class Threads:
    """Threads that store one report each, and what came of it."""

    def __init__(self, reporter: ThreadReporter) -> None:
        self._reporter = reporter
        self.outcomes: dict[str, Any] = {}
        self._threads: list[threading.Thread] = []

    def store(self, task_id: str, timeout: float = 10.0, size: int = 1) -> None:
        """Start one."""
        thread = threading.Thread(target=self._store, args=(report(task_id, timeout, size),))
        self._threads.append(thread)
        thread.start()

    def _store(self, effect: Report) -> None:
        task_id = effect.request.meta.task_id
        try:
            self.outcomes[task_id] = self._reporter.store(effect).version
        except ResultdError as error:
            self.outcomes[task_id] = error

    def join(self) -> None:
        """Until all have ended."""
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


def together(respond: Callable[[Call], Any]) -> tuple[ThreadReporter, dict[str, Any]]:
    """Store "1", and while that call runs "2" and "3", which then go out in one."""
    gate = Gate(respond)
    threads = Threads(reporter := ThreadReporter(gate))
    threads.store("1")
    assert gate.entered.wait(10)
    threads.store("2")
    threads.store("3")
    until(queued(reporter, 2))
    gate.opened.set()
    threads.join()
    return reporter, threads.outcomes


def until(condition: Callable[[], bool]) -> None:
    """Wait for something other threads do."""
    changed = threading.Event()
    for _ in range(2_000):
        if condition():
            return
        changed.wait(0.005)
    raise AssertionError("it never came about")


def queued(reporter: ThreadReporter, count: int) -> Callable[[], bool]:
    """Whether so many reports wait."""
    return lambda: len(reporter._waiting) == count


def test_a_report_alone_is_sent_at_once_by_itself() -> None:
    """One thread's reports are unary calls, in their order."""
    calls: list[Call] = []

    def call(each: Call) -> Any:
        calls.append(each)
        return answer(each)

    reporter = ThreadReporter(call)
    assert [reporter.store(report(str(n))).version for n in range(1, 4)] == [1, 2, 3]
    assert [each.method for each in calls] == ["StoreResult"] * 3


def test_what_queues_while_a_call_runs_goes_out_together() -> None:
    """Seven reports that come during a call are one call, and each has its own answer."""
    gate = Gate()
    threads = Threads(reporter := ThreadReporter(gate))
    threads.store("1")
    assert gate.entered.wait(10)
    for number in range(2, 9):
        threads.store(str(number))
    until(queued(reporter, 7))
    gate.opened.set()
    threads.join()
    assert threads.outcomes == {str(n): n for n in range(1, 9)}
    assert [len(call) for call in gate.calls] == [1, 7]


def two_under_way(
    gate: Gate, reporter: ThreadReporter | None = None
) -> tuple[ThreadReporter, Threads]:
    """Calls of report 0 and of reports 1 to 8 are under way."""
    threads = Threads(reporter := reporter or ThreadReporter(gate))
    threads.store("0")
    assert gate.entered.wait(10)
    for number in range(1, 8):
        threads.store(str(number))
    until(queued(reporter, 7))
    assert len(gate.calls) == 1
    threads.store("8")
    until(lambda: len(gate.calls) == 2)
    return reporter, threads


def test_a_second_call_goes_out_once_enough_wait() -> None:
    """Beside a call under way the eighth report that waits makes another, and there is no third."""
    gate = Gate(count=2)
    reporter, threads = two_under_way(gate)
    for number in range(9, 20):
        threads.store(str(number))
    until(queued(reporter, 11))
    assert [len(call) for call in gate.calls] == [1, 8]
    gate.each[0].set()
    until(lambda: "19" in threads.outcomes)
    gate.each[1].set()
    threads.join()
    assert [len(call) for call in gate.calls] == [1, 8, 11]
    assert threads.outcomes == {str(n): n for n in range(20)}


def test_a_second_call_carries_half_of_those_that_report() -> None:
    """Of twenty threads nine wait, beside a call of ten: each call carries half of them."""
    gate = Gate(count=3)
    reporter, threads = two_under_way(gate)
    for number in range(9, 19):
        threads.store(str(number))
    until(queued(reporter, 10))
    gate.each[0].set()
    until(lambda: len(gate.calls) == 3)
    gate.each[1].set()
    until(lambda: [len(each) for each in reporter._led.values()] == [10])
    for number in range(19, 28):
        threads.store(str(number))
    until(queued(reporter, 9))
    assert len(gate.calls) == 3
    threads.store("28")
    until(lambda: len(gate.calls) == 4)
    gate.each[2].set()
    threads.join()
    assert [len(call) for call in gate.calls] == [1, 8, 10, 10]
    assert threads.outcomes == {str(n): n for n in range(29)}


def test_threads_that_left_are_forgotten() -> None:
    """Once few of many still report, their second call goes out as if they had been few always."""
    gate = Gate(count=2)
    reporter, threads = two_under_way(gate)
    for number in range(9, 49):
        threads.store(str(number))
    until(queued(reporter, 40))
    for each in gate.each:
        each.set()
    threads.join()
    for number in range(16):
        reporter.store(report(str(number)))
    again = Gate(count=2)
    reporter._call = again
    _, threads = two_under_way(again, reporter)
    for each in again.each:
        each.set()
    threads.join()
    assert [len(call) for call in again.calls] == [1, 8]


def test_who_leads_waits_no_longer_than_it_may() -> None:
    """However patient the reports are that its call carries: those try again."""
    given: list[float] = []
    gate = Gate()

    def call(each: Call) -> Any:
        given.append(each.timeout)
        return gate(each)

    threads = Threads(reporter := ThreadReporter(call))
    threads.store("1")
    assert gate.entered.wait(10)
    threads.store("2", timeout=5.0)
    until(queued(reporter, 1))
    threads.store("3", timeout=60.0)
    until(queued(reporter, 2))
    gate.opened.set()
    threads.join()
    assert gate.calls == [["1"], ["2", "3"]]
    assert 0 < given[1] < 5.0


def test_a_signals_handler_may_report_in_the_middle_of_a_report() -> None:
    """What it interrupts cannot go on before it has ended: its report goes by itself, at once."""

    def interrupted(call: Call) -> Any:
        if ids(call) == ["1"]:
            assert reporter.store(report("2", timeout=60.0)).version == 2
        return answer(call)

    reporter = ThreadReporter(interrupted)
    assert reporter.store(report("1")).version == 1
    assert reporter._inside == set()


def test_who_has_given_up_breaks_no_chain_of_wakes() -> None:
    """Threads wake each other; one that waits no longer, in the middle, wakes nobody."""
    gate = Gate(count=2)
    threads = Threads(reporter := ThreadReporter(gate))
    threads.store("1")
    assert gate.entered.wait(10)
    for number, timeout in ((2, 60.0), (3, 60.0), (4, 0.2), (5, 60.0)):
        threads.store(str(number), timeout)
        until(queued(reporter, number - 1))
    gate.each[0].set()
    until(lambda: "4" in threads.outcomes)  # under way with the others, not in the queue
    assert gate.calls[1] == ["2", "3", "4", "5"]
    gate.each[1].set()
    threads.join()
    assert threads.outcomes.pop("4").code == "DEADLINE_EXCEEDED"
    assert threads.outcomes == {"1": 1, "2": 2, "3": 3, "5": 5}


def test_ctrl_c_in_a_thread_that_is_woken_leaves_nobody_asleep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever is interrupted as it wakes wakes the next one all the same."""

    class Interrupted:
        """A lock whose waiter gets a signal as it has it."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self.release = self._lock.release

        def acquire(self, timeout: float = -1) -> bool:
            """Take it; raises KeyboardInterrupt where it had to be waited for."""
            self._lock.acquire(timeout=timeout)
            if timeout > 0:
                raise KeyboardInterrupt
            return True

    gate = Gate(count=2)
    threads = Threads(reporter := ThreadReporter(gate))
    interrupted = threading.Event()

    def wait() -> None:
        try:
            reporter.store(report("3", timeout=60.0))
        except KeyboardInterrupt:
            interrupted.set()

    threads.store("1")
    assert gate.entered.wait(10)
    threads.store("2", timeout=60.0)
    until(queued(reporter, 1))
    with monkeypatch.context() as patched:
        patched.setattr(
            _reporter, "threading", SimpleNamespace(Lock=Interrupted, get_ident=threading.get_ident)
        )
        third = threading.Thread(target=wait)
        third.start()
        until(queued(reporter, 2))
    threads.store("4", timeout=60.0)
    until(queued(reporter, 3))
    for each in gate.each:
        each.set()
    third.join(10)
    threads.join()
    assert interrupted.is_set()
    assert gate.calls == [["1"], ["2", "3", "4"]]
    assert threads.outcomes == {"1": 1, "2": 2, "4": 4}


def test_who_is_woken_too_late_wakes_the_next() -> None:
    """A thread whose time runs out as it is to be woken has its answer, and wakes who follows."""
    reporter = ThreadReporter(answer)
    first, second = Ticket(report("1")), Ticket(report("2"))
    for ticket in (first, second):
        ticket.asleep = threading.Lock()
        ticket.asleep.acquire()
    _reporter.settle([first], pb.StoreResultResponse(version=1))
    with reporter._lock:
        reporter._wake([first, second])
    reporter._give_up(first)
    assert first.result().version == 1
    assert second.asleep is not None
    assert second.asleep.locked()
    _reporter.rouse_follower(first)
    assert not second.asleep.locked()
    _reporter.rouse_follower(first)  # Ctrl-C right after: once is enough


def test_who_makes_a_call_is_in_it_however_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that comes and leads goes before those for which its call has no room."""
    monkeypatch.setattr(_reporter, "CALL_BYTES_MAX", 1_000)
    gate = Gate(count=2)
    threads = Threads(reporter := ThreadReporter(gate))
    threads.store("0")
    assert gate.entered.wait(10)
    for number in range(1, 8):
        threads.store(str(number), size=900)
        until(queued(reporter, number))
    threads.store("8")
    until(lambda: len(gate.calls) == 2)
    assert gate.calls[1] == ["8", "1"]
    gate.each[0].set()
    gate.each[1].set()
    threads.join()
    assert threads.outcomes == {str(n): n for n in range(9)}


def test_a_refused_report_does_not_spoil_the_others() -> None:
    """Of a batch, each report has its own error or answer."""

    def respond(call: Call) -> Any:
        if len(ids(call)) == 1:
            return answer(call)
        refused = pb.StoreOutcome(error=pb.ReportError(code=3, message="no"))
        kept = pb.StoreOutcome(result=pb.StoreResultResponse(version=7))
        return pb.BatchStoreResultsResponse(
            outcomes=[refused if i == "2" else kept for i in ids(call)]
        )

    _, outcomes = together(respond)
    assert outcomes["3"] == 7
    assert outcomes["2"].code == "INVALID_ARGUMENT"


def test_a_failed_call_fails_all_it_carried_and_the_next_goes_on() -> None:
    """Whoever was in a call that failed is told so; whoever waited leads the next."""
    failing = [True]

    def respond(call: Call) -> Any:
        if len(ids(call)) > 1 and failing.pop():
            raise make("UNAVAILABLE", "gone")
        return answer(call)

    reporter, outcomes = together(respond)
    assert outcomes["1"] == 1
    assert isinstance(outcomes["2"], UnavailableError)
    assert isinstance(outcomes["3"], UnavailableError)
    assert outcomes["2"] is not outcomes["3"], "each thread's traceback is its own"
    assert reporter.store(report("4")).version == 4


def test_who_waits_too_long_is_told_and_takes_nobody_along() -> None:
    """A report that queued longer than its time fails; those behind it go out all the same."""
    gate = Gate()
    threads = Threads(reporter := ThreadReporter(gate))
    threads.store("1")
    assert gate.entered.wait(10)
    threads.store("2", timeout=0.05)
    until(queued(reporter, 1))
    threads.store("3")
    until(lambda: "2" in threads.outcomes)
    assert threads.outcomes["2"].code == "DEADLINE_EXCEEDED"
    gate.opened.set()
    threads.join()
    assert threads.outcomes["3"] == 3
    assert gate.calls == [["1"], ["3"]]


def test_ctrl_c_in_the_leading_thread_breaks_off_a_call_others_may_repeat() -> None:
    """Whoever makes the call raises its KeyboardInterrupt; the others get a retryable error."""
    reporter = ThreadReporter(lambda call: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        reporter.store(report("1"))
    ticket = Ticket(report("2"))
    _reporter.fail([ticket], KeyboardInterrupt())
    assert isinstance(ticket.error, ResultdError)
    assert ticket.error.retryable
    with pytest.raises(KeyboardInterrupt):  # and the lead was passed on
        reporter.store(report("3"))


def test_a_call_is_bounded_in_reports_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call carries at most a batch; a report too large for company goes alone."""
    monkeypatch.setattr(_reporter, "REPORTS_PER_CALL", 3)
    monkeypatch.setattr(_reporter, "CALL_BYTES_MAX", 1_000)
    waiting = deque(Ticket(report(str(n))) for n in range(4))
    waiting.append(Ticket(report("4", size=5_000)))
    waiting.append(Ticket(report("5")))
    sizes = []
    while waiting:
        sizes.append(len(take(waiting)))
    assert sizes == [3, 1, 1, 1]
    assert _operations.REPORTS_PER_CALL == 1_000


def test_a_call_is_bounded_in_the_elements_of_its_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports and their children count together; one with more than that goes alone."""
    monkeypatch.setattr(_reporter, "ELEMENTS_PER_CALL", 10)
    waiting: deque[Ticket] = deque()
    for children in (4, 4, 4, 20, 0, 0):
        effect = report(str(len(waiting)))
        effect.request.meta.children.extend([task_pb2.Child(id="c")] * children)
        waiting.append(Ticket(effect))
    sizes = []
    while waiting:
        sizes.append(len(take(waiting)))
    assert sizes == [2, 1, 1, 2]


def test_many_threads_store_through_few_calls(server: Server) -> None:
    """Against a real server: 32 threads, 20 reports each, all stored, each answered."""
    with resultd.Client(server.url) as client:
        versions: list[int] = []

        def work(thread: int) -> None:
            stored = (client.store_result(f"{thread}-{number}", number) for number in range(20))
            versions.extend(outcome.version for outcome in stored)

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert versions == [1] * 640
        assert client.AsyncResult("31-19").get(timeout=5) == 19


def test_the_servers_reason_reaches_a_report_that_went_alone(server: Server) -> None:
    """A value over the limit is refused with its class, as ever."""
    with resultd.Client(server.url) as client, pytest.raises(ValueTooLargeError):
        client.store_result("large", "x" * 4_000_000)
