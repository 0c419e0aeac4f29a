"""Reports of one process that share calls: what queued while calls ran goes out with the next.

Nobody waits for company. A report that finds no call under way is sent at once, alone; those
that come meanwhile are sent together when it has ended. So one thread has the latency of a
call, and many have the server's price for a batch. Threads make two calls at a time, each for
half of them: while those whose call has ended wake each other, the others' call is under way.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import Message

from resultd._effects import Call, Report
from resultd._operations import CALL_BYTES_MAX, REPORTS_PER_CALL
from resultd.errors import ResultdError, UnavailableError, make
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
    taken: list[Ticket] = []
    room = CALL_BYTES_MAX
    while waiting and len(taken) < REPORTS_PER_CALL:
        if taken and waiting[0].size_bytes > room:
            break
        room -= waiting[0].size_bytes
        taken.append(waiting.popleft())
    return taken


def call_for(tickets: list[Ticket]) -> Call:
    """Return the call that carries these reports."""
    timeout = max(ticket.timeout for ticket in tickets)
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
    if not isinstance(error, ResultdError):  # Ctrl-C, in whichever thread made the call
        error = make("UNAVAILABLE", f"the call that carried the report was broken off: {error!r}")
    for ticket in tickets:
        if not ticket.settled:
            ticket.error = error


def wake_follower(ticket: Ticket) -> None:
    """Wake the thread that this ticket's is to wake, if any; once."""
    follower, ticket.follower = ticket.follower, None
    if follower is not None:
        follower.release()


class ThreadReporter:
    """Combines the reports of threads; those of them that lead make the calls for all.

    The second call of two goes out once half of the threads that report wait for it: sooner,
    and calls would carry few.
    """

    def __init__(self, call: Callable[[Call], Any]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._waiting: deque[Ticket] = deque()
        # Whether somebody is to lead and has not taken what waits yet; how many calls are under
        # way, and how many reports they carry; how many threads reported at a time lately.
        self._appointed = False
        self._calls = 0
        self._carried = 0
        self._crowd = 0

    def store(self, effect: Report) -> result_service_pb2.StoreResultResponse:
        """Store a report; returns its answer, or raises.

        Raises:
            ResultdError: it was refused, or the call failed.
        """
        ticket = Ticket(effect)
        with self._lock:
            self._waiting.append(ticket)
            self._crowd = max(self._crowd, self._carried + len(self._waiting))
            if self._is_time():
                ticket.leads = self._appointed = True
                self._waiting.rotate()  # the call that it makes carries it, however many wait
            else:
                ticket.asleep = threading.Lock()
                ticket.asleep.acquire()
        try:
            if ticket.asleep is not None and not ticket.asleep.acquire(timeout=effect.timeout):
                self._give_up(ticket)
            wake_follower(ticket)
            if ticket.leads and not ticket.settled:
                self._lead()
        except BaseException:  # Ctrl-C
            self._give_up(ticket)
            wake_follower(ticket)
            raise
        return ticket.result()

    def _is_time(self) -> bool:
        """Whether the next call is to be made. Called with the lock."""
        if self._appointed or self._calls == CALLS_MAX:
            return False
        enough = max(SECOND_CALL_MIN, -(-self._crowd // CALLS_MAX)) if self._calls else 1
        return len(self._waiting) >= enough

    def _lead(self) -> None:
        """Make one call for what waits, and pass the lead on."""
        with self._lock:
            tickets = take(self._waiting)
            self._appointed = False
            self._calls += 1
            self._carried += len(tickets)
            self._crowd -= self._crowd // FORGET_SHARE
        try:
            settle(tickets, self._call(call_for(tickets)))
        except BaseException as error:
            fail(tickets, error)
            if not isinstance(error, ResultdError):
                raise
        finally:
            with self._lock:
                self._calls -= 1
                self._carried -= len(tickets)
                self._wake(tickets)
                self._pass_on()

    def _wake(self, tickets: list[Ticket]) -> None:
        """Have threads woken, one by the other. Called with the lock.

        All at once they would want Python's lock at once, and be put to sleep again by it.
        """
        following: threading.Lock | None = None
        for ticket in reversed(tickets):
            if ticket.asleep is not None and not ticket.leads:  # who leads is awake
                ticket.follower, following = following, ticket.asleep
        if following is not None:
            following.release()

    def _pass_on(self) -> None:
        """Appoint whoever came first, if it is time. Called with the lock."""
        if self._is_time():
            self._appointed = True
            following = self._waiting[0]
            following.leads = True
            if following.asleep is not None:
                following.asleep.release()

    def _give_up(self, ticket: Ticket) -> None:
        """Stop waiting for a call to end. Should the lead be ours by now, another has it."""
        with self._lock:
            ticket.asleep = None  # and wakes nobody that it is not to wake already
            if ticket.settled:
                return
            ticket.error = make("DEADLINE_EXCEEDED", "the calls before took too long")
            if ticket not in self._waiting:
                return  # under way with others'
            self._waiting.remove(ticket)
            if ticket.leads:
                self._appointed = False
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

    async def store(self, effect: Report) -> result_service_pb2.StoreResultResponse:
        """Store a report; returns its answer, or raises.

        Raises:
            ResultdError: it was refused, or the call failed.
        """
        ticket = Ticket(effect)
        told = self._told[ticket] = asyncio.get_running_loop().create_future()
        self._waiting.append(ticket)
        if self._sending is None:
            # A task of its own: whoever is cancelled takes nobody else's report along.
            self._sending = self._spawn(self._send())
            self._sending.add_done_callback(self._ended)
        try:
            await told
        finally:
            self._told.pop(ticket, None)
        return ticket.result()

    async def _send(self) -> None:
        while tickets := take(self._waiting):
            try:
                settle(tickets, await self._call(call_for(tickets)))
            except ResultdError as error:
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
        if left:  # it was cancelled: the client is being closed
            fail(left, UnavailableError("the client was closed"))
            self._tell(left)

    def _tell(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            told = self._told.get(ticket)
            if told is not None and not told.done():
                told.set_result(None)
