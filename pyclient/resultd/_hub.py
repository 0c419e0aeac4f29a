"""What a process waits for, kept on one `Watch` stream: a state machine without I/O.

The hub knows which ids are waited for and by whom, what the server has been told of it, and
when silence has lasted too long. Whoever drives it holds a lock around every call, carries
requests and frames, and says what time it is.

    hub.add(waiter, ["t1"])            # ... take_requests() -> what to send
    hub.opened(now)                    # a stream was opened: everything is to be sent again
    hub.received(frame, now)           # -> deliveries, and what becomes of the stream
    hub.broken(error)                  # -> seconds until the next try, or None: give it up

`add`, `discard` and `take_requests` are called in the main thread, too, where a signal's handler
may raise between any two steps. A wait that was broken off so is discarded, or was going to be:
that may be repeated, and nobody else is waited for in vain meanwhile.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from resultd import _backoff, _ids
from resultd.errors import InvalidArgumentError, ResultdError
from resultd.v1 import result_service_pb2, stream_pb2, task_pb2

IDS_PER_MESSAGE = 10_000
IDS_MAX = 100_000  # the server's limit for one Watch
SILENT_HEARTBEATS = 2.5  # a stream silent for so many is dead, whatever TCP thinks


class Waiter(Protocol):
    """Somebody who waits for ids; identity is what counts."""

    transitions: bool

    def deliver(self, metas: list[task_pb2.TaskMeta]) -> None:
        """Take records: terminal ones once each, others only with `transitions`."""

    def fail(self, error: ResultdError) -> None:
        """Learn that waiting is refused for good."""


class Fate(enum.Enum):
    """What becomes of a stream after a frame."""

    GOES_ON = enum.auto()
    RESUME = enum.auto()  # the server ended it in order: open another one


@dataclass
class Outcome:
    """What a frame brought."""

    deliveries: list[tuple[Waiter, list[task_pb2.TaskMeta]]] = field(default_factory=list)
    fate: Fate = Fate.GOES_ON
    delay: float = 0.0


class Hub:
    """The waits of a process and the stream that serves them."""

    def __init__(self, heartbeat: float = 20.0) -> None:
        self._heartbeat = heartbeat
        # Both directions of "who waits for what", in the order of arrival. Ids that were added
        # together share one tuple: thousands with a container each would be megabytes.
        self._waiters: dict[str, tuple[Waiter, ...]] = {}
        self._ids: dict[Waiter, set[str]] = {}
        # What the server is to be told on the open stream, not yet sent.
        self._adding: dict[str, None] = {}
        self._removing: dict[str, None] = {}
        self._open = False
        self._with_transitions = False
        self._begun = False  # the first request was sent
        self._sequence = 0
        self._synced = 0
        self._heard = 0.0
        self._breaks = 0

    @property
    def wanted(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters)

    @property
    def synced(self) -> bool:
        """Whether all that already counted when it was asked for has arrived."""
        return self._open and self._synced == self._sequence and not self._adding

    @property
    def needs_transitions(self) -> bool:
        """Whether the open stream lacks what a waiter wants: it has to be opened again."""
        if not self._open or self._with_transitions:
            return False
        return any(waiter.transitions for waiter in self._ids)

    def add(self, waiter: Waiter, ids: Iterable[str]) -> None:
        """Wait for more ids on behalf of a waiter.

        Raises:
            InvalidArgumentError: an id is none, or more ids would be waited for than one
                stream may carry.
        """
        fresh = dict.fromkeys(ids)
        for task_id in fresh:
            _check(task_id)
        total = len(self._waiters) + sum(1 for task_id in fresh if task_id not in self._waiters)
        if total > IDS_MAX:
            raise InvalidArgumentError(
                f"{total} results would be waited for at once, and one process may wait for "
                f"{IDS_MAX}: put them into a group and use client.group(id).iterate()"
            )
        self._ids.setdefault(waiter, set()).update(fresh)
        alone = (waiter,)
        for task_id in fresh:
            others = self._waiters.get(task_id)
            if others is None:
                self._tell(task_id, self._adding)  # before another waiter relies on it
                self._waiters[task_id] = alone
            elif waiter not in others:
                self._waiters[task_id] = (*others, waiter)

    def discard(self, waiter: Waiter) -> None:
        """Stop waiting on behalf of a waiter. Idempotent."""
        for task_id in list(self._ids.get(waiter, ())):
            waiting = self._waiters.get(task_id, ())
            left = tuple(other for other in waiting if other is not waiter)
            if left:
                self._waiters[task_id] = left
            else:
                self._tell(task_id, self._removing)
                self._waiters.pop(task_id, None)
        self._ids.pop(waiter, None)

    @property
    def waiters(self) -> list[Waiter]:
        """Whoever waits for something here."""
        return list(self._ids)

    def opened(self, now: float) -> None:
        """Begin again on a new stream, with everything waited for."""
        self._open = True
        self._heard = now
        self._begun = False
        self._sequence = self._synced = 0
        self._with_transitions = any(waiter.transitions for waiter in self._ids)
        self._adding = dict.fromkeys(self._waiters)
        self._removing.clear()

    def take_requests(self) -> Iterator[result_service_pb2.WatchRequest]:
        """Give what is to be sent now; nothing while no stream is open.

        What was given counts as sent when the next is asked for: it is to be sent before that.
        """
        # Removals in messages of their own and first: an id removed and added again ends up
        # added, and one whose terminal event is on its way here is asked for again.
        while self._open and (self._removing or self._adding):
            self._sequence += 1
            request = result_service_pb2.WatchRequest(sequence=self._sequence)
            if not self._begun:
                request.transitions = self._with_transitions
                request.on_gone = result_service_pb2.ON_GONE_WAIT
                request.heartbeat.FromNanoseconds(int(self._heartbeat * 1e9))
            todo = self._removing or self._adding
            ids = list(itertools.islice(todo, IDS_PER_MESSAGE))
            told = request.remove_task_ids if todo is self._removing else request.add_task_ids
            told.extend(ids)
            yield request
            self._begun = True
            for task_id in ids:
                todo.pop(task_id, None)

    def received(self, frame: result_service_pb2.WatchResponse, now: float) -> Outcome:
        """Take a frame; says whom to tell what, and whether the stream goes on."""
        self._heard = now
        outcome = Outcome(self._deliveries(frame.events))
        control = frame.control
        if control.kind == stream_pb2.CONTROL_KIND_SYNCED:
            self._synced = max(self._synced, control.sequence)
            self._breaks = 0  # only a stream that has done its work ends a row of breaks
        elif control.kind == stream_pb2.CONTROL_KIND_END and not control.group_id:
            self._open = False
            outcome.fate = Fate.RESUME
            if control.end_reason == stream_pb2.END_REASON_DRAINING:
                pause = control.retry_delay.seconds + control.retry_delay.nanos / 1e9
                outcome.delay = _backoff.full_jitter(self._breaks, pause)
                self._breaks += 1
        return outcome

    def silence_left(self, now: float) -> float:
        """Seconds until the stream has been silent for too long; 0 if it has."""
        return max(0.0, self._heard + SILENT_HEARTBEATS * self._heartbeat - now)

    def closed(self) -> None:
        """Note that the stream was closed on purpose."""
        self._open = False

    def broken(self, error: ResultdError) -> float | None:
        """Note that the stream broke; gives the seconds before the next try.

        None says that it must not be tried again: every waiter is to be told, and dropped.
        """
        self._open = False
        if error.final:
            return None
        delay = _backoff.full_jitter(self._breaks, error.retry_delay)
        self._breaks += 1
        return delay

    def clear(self) -> list[Waiter]:
        """Drop every wait; gives whose they were."""
        waiters = list(self._ids)
        self._ids.clear()
        self._waiters.clear()
        self._adding.clear()
        self._removing.clear()
        self._breaks = 0
        return waiters

    def _tell(self, task_id: str, how: dict[str, None]) -> None:
        """Note a change for the open stream."""
        if not self._open:
            return
        if how is self._removing and task_id in self._adding:
            del self._adding[task_id]  # never sent, nothing to take back
        else:
            how[task_id] = None

    def _deliveries(
        self, events: Iterable[stream_pb2.Event]
    ) -> list[tuple[Waiter, list[task_pb2.TaskMeta]]]:
        by_waiter: dict[Waiter, list[task_pb2.TaskMeta]] = {}
        for event in events:
            meta = event.task
            if meta.terminal:
                # The server has ended its wait for this id, so do we: told once, for good.
                self._adding.pop(meta.task_id, None)
                for waiter in self._waiters.pop(meta.task_id, ()):
                    self._forget(waiter, meta.task_id)
                    by_waiter.setdefault(waiter, []).append(meta)
            else:
                for waiter in self._waiters.get(meta.task_id, ()):
                    if waiter.transitions:
                        by_waiter.setdefault(waiter, []).append(meta)
        return list(by_waiter.items())

    def _forget(self, waiter: Waiter, task_id: str) -> None:
        ids = self._ids[waiter]
        ids.discard(task_id)
        if not ids:
            del self._ids[waiter]


def _check(task_id: object) -> None:
    """Refuse what the server would: it would end the stream that everybody waits on."""
    if not isinstance(task_id, str):
        raise InvalidArgumentError(f"a task's id is text, not {task_id!r}")
    if not _ids.fits(task_id):
        raise InvalidArgumentError(
            f"a task's id has 1 to {_ids.ID_BYTES_MAX} bytes of UTF-8 and no control characters: "
            f"{task_id[:300]!r} is none"
        )
