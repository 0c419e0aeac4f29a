"""Reports of one process that share calls: what queued while calls ran goes out with the next.

Nobody waits for company. A report that finds no call under way is sent at once, alone; those
that come meanwhile are sent together when it has ended. So one thread has the latency of a
call, and many have the server's price for a batch. Threads make two calls at a time, each for
half of them: while those whose call has ended wake each other, the others' call is under way.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import Message

from resultd._effects import Call, Report
from resultd._operations import (
    CALL_BYTES_MAX,
    ELEMENT_BYTES_MIN,
    ELEMENTS_PER_CALL,
    REPORTS_PER_CALL,
    elements_of,
)
from resultd.errors import ClientClosedError, ResultdError, make, own
from resultd.v1 import result_service_pb2

# Calls of threads under way at once: with three, the server has more calls and nobody is sooner.
CALLS_MAX = 2
# Reports a second call carries at least: few threads are sooner with one call at a time.
SECOND_CALL_MIN = 8
# By how much of itself the number of threads that report is thought to be less, with each call,
# than it was seen to be: so many calls later those that left have been forgotten.
FORGET_SHARE = 8


class Ticket:
    """A report on its way, and what came of it."""

    __slots__ = (
        "answer",
        "asleep",
        "end",
        "error",
        "follower",
        "leads",
        "patient",
        "request",
        "size_bytes",
        "timeout",
    )

    def __init__(self, effect: Report) -> None:
        self.request: result_service_pb2.StoreResultRequest = effect.request
        self.timeout = effect.timeout
        self.end = time.monotonic() + effect.timeout
        self.patient = effect.patient
        self.size_bytes = effect.request.ByteSize() + 8  # tag and length
        self.answer: result_service_pb2.StoreResultResponse | None = None
        self.error: BaseException | None = None
        # Of a thread's report: whether it is to make the next call, and what its thread waits
        # on, held until somebody wakes it. (A bare lock: an Event costs several times as much.)
        self.leads = False
        self.asleep: threading.Lock | None = None
        # Whom its thread wakes when it is awake itself.
        self.follower: threading.Lock | None = None

    @property
    def settled(self) -> bool:
        """Whether it is known what came of it."""
        return self.answer is not None or self.error is not None

    def result(self) -> result_service_pb2.StoreResultResponse:
        """Return the server's answer, or raise what came instead."""
        if self.answer is not None:
            return self.answer
        assert self.error is not None, "asked before it was settled"
        raise self.error


def take(waiting: deque[Ticket]) -> list[Ticket]:
    """Take from the front what one call may carry."""
    taken = first(waiting)
    drop(waiting, taken)
    return taken


def first(waiting: deque[Ticket]) -> list[Ticket]:
    """Return what one call may carry, which goes on waiting."""
    found: list[Ticket] = []
    size_bytes = 0
    for ticket in waiting:
        size_bytes += ticket.size_bytes
        if found and (len(found) == REPORTS_PER_CALL or size_bytes > CALL_BYTES_MAX):
            break
        found.append(ticket)
    if size_bytes <= ELEMENTS_PER_CALL * ELEMENT_BYTES_MIN:  # as nearly always
        return found
    upto = itertools.accumulate(elements_of(ticket.request) for ticket in found)
    return found[: max(1, sum(elements <= ELEMENTS_PER_CALL for elements in upto))]


def drop(waiting: deque[Ticket], tickets: list[Ticket]) -> None:
    """Let them, who wait at the front, wait no longer."""
    for _ in tickets:
        waiting.popleft()


def call_for(tickets: list[Ticket], timeout: float) -> Call:
    """Return the call that carries these reports."""
    patient = all(ticket.patient for ticket in tickets)
    if len(tickets) == 1:
        return Call("StoreResult", tickets[0].request, timeout, patient)
    batch = result_service_pb2.BatchStoreResultsRequest(
        reports=[ticket.request for ticket in tickets]
    )
    return Call("BatchStoreResults", batch, timeout, patient)


def settle(tickets: list[Ticket], response: Message) -> None:
    """Give every ticket its part of the answer."""
    if isinstance(response, result_service_pb2.StoreResultResponse):
        tickets[0].answer = response
        return
    assert isinstance(response, result_service_pb2.BatchStoreResultsResponse)
    from resultd import _status  # grpc is imported by then

    for ticket, outcome in zip(tickets, response.outcomes, strict=True):
        if outcome.HasField("error"):
            ticket.error = _status.from_report_error(outcome.error)
        else:
            ticket.answer = outcome.result


def fail(tickets: list[Ticket], error: BaseException) -> None:
    """Tell every ticket that nothing is known; what may succeed later is tried again."""
    if not isinstance(error, Exception):  # Ctrl-C, in whichever thread made the call
        error = make("UNAVAILABLE", f"the call that carried the report was broken off: {error!r}")
    for ticket in tickets:
        if not ticket.settled:
            ticket.error = own(error)


def rouse(asleep: threading.Lock) -> None:
    """Wake who waits on a lock, or will; once or more."""
    try:
        asleep.release()
    except RuntimeError:  # it is awake
        return


def rouse_follower(ticket: Ticket) -> None:
    """Wake the thread that this ticket's is to wake, if any."""
    if ticket.follower is not None:
        rouse(ticket.follower)
        ticket.follower = None


class ThreadReporter:
    """Combines the reports of threads; those of them that lead make the calls for all.

    The second call of two goes out once half of the threads that report wait for it: sooner,
    and calls would carry few.

    A signal's handler may raise between any two steps here: Ctrl-C, or a soft time limit. So
    what a thread has begun is known by its ticket, and is put right by `_end`, which may be
    repeated. What a second exception, in the midst of that, leaves behind lapses with its time.
    """

    def __init__(self, call: Callable[[Call], Any]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._waiting: deque[Ticket] = deque()
        # Who is to lead and has not taken what waits yet; what calls under way carry, by who
        # made them; how many threads reported at a time lately.
        self._appointed: Ticket | None = None
        self._led: dict[Ticket, list[Ticket]] = {}
        self._crowd = 0
        self._inside: set[int] = set()  # threads

    def store(self, effect: Report) -> result_service_pb2.StoreResultResponse:
        """Store a report; returns its answer, or raises.

        Raises:
            ResultdError: it was refused, or the call failed.
        """
        ticket = Ticket(effect)
        thread = threading.get_ident()
        if thread in self._inside:
            # In a signal's handler: what it interrupts goes on when it has ended, not before.
            settle([ticket], self._call(call_for([ticket], ticket.timeout)))
            return ticket.result()
        try:
            self._inside.add(thread)
            self._begin(ticket)
            if ticket.asleep is not None and not ticket.asleep.acquire(timeout=effect.timeout):
                self._give_up(ticket)
            rouse_follower(ticket)
            if ticket.leads and not ticket.settled:
                self._lead(ticket)
        except BaseException:  # Ctrl-C, a soft time limit
            self._end(ticket)
            rouse_follower(ticket)
            raise
        finally:
            self._inside.discard(thread)
        return ticket.result()

    def _begin(self, ticket: Ticket) -> None:
        """Lead, or wait."""
        with self._lock:
            self._waiting.append(ticket)
            self._crowd = max(self._crowd, len(self._waiting) + sum(map(len, self._led.values())))
            self._let_lapse()
            if self._is_time():
                self._waiting.rotate()  # the call that it makes carries it, however many wait
                self._appoint(ticket)
            else:
                asleep = threading.Lock()
                asleep.acquire()
                ticket.asleep = asleep

    def _is_time(self) -> bool:
        """Whether the next call is to be made. Called with the lock, as all that follows."""
        if self._appointed is not None or len(self._led) == CALLS_MAX:
            return False
        enough = max(SECOND_CALL_MIN, -(-self._crowd // CALLS_MAX)) if self._led else 1
        return len(self._waiting) >= enough

    def _appoint(self, ticket: Ticket) -> None:
        """Have its thread make the next call."""
        ticket.leads = True
        self._appointed = ticket

    def _let_lapse(self) -> None:
        """Forget who was to have made a call by now and has not; whom it carried try again."""
        if self._appointed is None and not self._led:
            return
        now = time.monotonic()
        if self._appointed is not None and self._appointed.end < now:
            self._appointed = None
        for leader in [leader for leader in self._led if leader.end < now]:
            self._let_go(leader)

    def _let_go(self, leader: Ticket) -> None:
        """The call it led is over, or is taken for it: whoever has no answer may try again."""
        tickets = self._led.get(leader, [])
        if not all(each.settled for each in tickets):
            fail(tickets, make("UNAVAILABLE", "the call that carried the report was broken off"))
        self._wake(tickets)
        self._led.pop(leader, None)

    def _wake(self, tickets: list[Ticket]) -> None:
        """Have threads woken, one by the other.

        All at once they would want Python's lock at once, and be put to sleep again by it.
        """
        following: threading.Lock | None = None
        for ticket in reversed(tickets):
            if ticket.asleep is not None and not ticket.leads:  # who leads is awake
                ticket.follower, following = following, ticket.asleep
        if following is not None:
            rouse(following)

    def _pass_on(self) -> None:
        """Appoint whoever came first, if it is time."""
        while self._waiting and self._waiting[0].settled:
            self._waiting.popleft()  # a leader was interrupted as it took them
        if self._is_time():
            self._appoint(self._waiting[0])
        if self._appointed is not None and self._appointed.asleep is not None:
            rouse(self._appointed.asleep)  # again, where who appointed it was interrupted

    # Without the lock, from here.

    def _lead(self, ticket: Ticket) -> None:
        """Make one call for what waits, and pass the lead on."""
        with self._lock:
            late = self._appointed is not ticket  # it has lapsed, and another may have it
            if not late:
                tickets = first(self._waiting)
                self._led[ticket] = tickets  # before they wait no longer: nobody is lost
                drop(self._waiting, tickets)
                self._appointed = None
                self._crowd -= self._crowd // FORGET_SHARE
        if late:
            self._give_up(ticket)
            return
        # No longer than who makes it may wait, however patient others are: they try again.
        left = max(ticket.end - time.monotonic(), 0.001)
        try:
            settle(tickets, self._call(call_for(tickets, left)))
        except ResultdError as error:
            fail(tickets, error)
        self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        """End what a thread has begun, however far it came, and pass the lead on."""
        with self._lock:
            ticket.asleep = None  # its thread is awake, and stays so
            if not ticket.settled and ticket in self._waiting:
                self._waiting.remove(ticket)
            if self._appointed is ticket:
                self._appointed = None
            self._let_go(ticket)
            self._pass_on()

    def _give_up(self, ticket: Ticket) -> None:
        """Stop waiting for a call to end. Should the lead be ours by now, another has it."""
        with self._lock:
            ticket.asleep = None  # and wakes nobody that it is not to wake already
            if not ticket.settled:
                ticket.error = make("DEADLINE_EXCEEDED", "the calls before took too long")
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            if self._appointed is ticket:
                self._appointed = None
            self._let_lapse()
            self._pass_on()


class LoopReporter:
    """Combines the reports of the tasks of one event loop."""

    def __init__(
        self,
        call: Callable[[Call], Awaitable[Any]],
        spawn: Callable[[Any], asyncio.Task[None]],
    ) -> None:
        self._call = call
        self._spawn = spawn
        self._waiting: deque[Ticket] = deque()
        self._told: dict[Ticket, asyncio.Future[None]] = {}
        self._sending: asyncio.Task[None] | None = None
        self._call_ends = 0.0  # on the monotonic clock, at the latest

    async def store(self, effect: Report) -> result_service_pb2.StoreResultResponse:
        """Store a report; returns its answer, or raises.

        Raises:
            ResultdError: it was refused, or the call failed.
        """
        ticket = Ticket(effect)
        loop = asyncio.get_running_loop()
        told = self._told[ticket] = loop.create_future()
        self._waiting.append(ticket)
        if self._sending is None:
            # A task of its own: whoever is cancelled takes nobody else's report along.
            self._sending = self._spawn(self._send())
            self._sending.add_done_callback(self._ended)
        timer = loop.call_later(effect.timeout, self._give_up, ticket)
        try:
            await told
        finally:
            timer.cancel()
            self._told.pop(ticket, None)
        return ticket.result()

    async def _send(self) -> None:
        while tickets := take(self._waiting):
            # As long as the most patient of them may wait: the others give up by themselves.
            self._call_ends = max(ticket.end for ticket in tickets)
            left = max(self._call_ends - time.monotonic(), 0.001)
            try:
                settle(tickets, await self._call(call_for(tickets, left)))
            except asyncio.CancelledError:
                fail(tickets, ClientClosedError())
                raise
            except Exception as error:  # noqa: BLE001 (raised by who reports: a missing file, too)
                fail(tickets, error)
            except BaseException as error:
                fail(tickets, error)
                raise
            finally:
                self._tell(tickets)
        self._sending = None  # in the same step as the look that found nothing more

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._sending is not task:
            return
        self._sending = None
        left = list(self._waiting)
        self._waiting.clear()
        if left:  # it was cancelled: the client is being closed, or the whole loop
            fail(left, ClientClosedError())
            self._tell(left)

    def _give_up(self, ticket: Ticket) -> None:
        """Tell a report whose time is over, unless its call ends now as well, and says why."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        elif ticket.end >= self._call_ends:
            return
        if not ticket.settled:
            ticket.error = make("DEADLINE_EXCEEDED", "the calls before took too long")
        self._tell([ticket])

    def _tell(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            told = self._told.get(ticket)
            if told is not None and not told.done():
                told.set_result(None)
