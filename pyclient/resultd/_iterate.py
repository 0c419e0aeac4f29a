"""Streaming the members of a group of any size: resumed after breaks, each member once.

What is kept is the server's `after`, and, so that a stream that starts again can be thinned
out, eight bytes for each member delivered: 10 MB for a million.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from resultd import _backoff, _records, states
from resultd._deadline import Deadline
from resultd._effects import Emit, Op, Open, Receive, Reconnect, Stream
from resultd._hub import SILENT_HEARTBEATS
from resultd._pending import read_limit
from resultd.errors import ResultdError, ResultGoneError, TaskError, UnavailableError
from resultd.errors import TimeoutError as WaitTimeout
from resultd.v1 import group_pb2, result_service_pb2, state_pb2, stream_pb2

if TYPE_CHECKING:
    from resultd._core import ClientCore

_FAILED = frozenset({states.FAILURE, states.REVOKED})


@dataclass(frozen=True)
class MemberResult:
    """A member of a group that is done.

    Attributes:
        index: its place in the group.
        id: the task's id, or the group's where a group is the member.
        position: it was the n-th to be done, from 1.
        state: the state it is in; of a group its outcome.
        result: the value, or the exception; of a group None.
        meta: the task's meta, None for a group.
        group: the member group, None for a task.
        gone: its record was forgotten, deleted, or has expired.
        counts: the group's numbers as of this frame.
    """

    index: int
    id: str
    position: int
    state: str
    result: Any
    meta: dict[str, Any] | None
    group: group_pb2.GroupMeta | None
    gone: bool
    counts: group_pb2.GroupCounts

    def value(self, propagate: bool = True) -> Any:
        """Return the result, or raise it if the task failed and `propagate` is true."""
        if propagate and isinstance(self.result, Exception) and self._is_bad():
            raise self.result.with_traceback(None)
        return self.result

    def _is_bad(self) -> bool:
        return self.gone or self.state in _FAILED or self.meta is None


class Delivered:
    """Which members were delivered: who stood at an index, as a hash.

    A stream starts again where its group was run again, or its store restored: another id at
    an index is another member then, and the same one is not. What is kept grows with the
    members, however far apart their indexes are.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, array[int]] = {}

    def add(self, index: int, id_: str) -> bool:
        """Add a member; says whether it is new."""
        block = self._blocks.get(index >> 6)
        if block is None:
            block = self._blocks[index >> 6] = array("q", bytes(64 * 8))
        place, mark = index & 63, hash(id_) | 1  # never 0, which is nobody
        if block[place] == mark:
            return False
        block[place] = mark
        return True


class Fresh(NamedTuple):
    """What a frame brought that was not delivered before, and the group's numbers as of it.

    `anew`: the stream has begun again with it, and with `retold` all before it is void.
    """

    events: list[stream_pb2.Event]
    counts: group_pb2.GroupCounts
    anew: bool = False


class Progress:
    """What a stream over a group has brought so far: the part without I/O.

    `retold`: when the stream begins again, every member is to be delivered again.
    """

    def __init__(self, after: bytes = b"", *, retold: bool = False) -> None:
        self._delivered = Delivered()
        self._retold = retold
        self.after = after
        self.breaks = 0
        #: Whether the server has told all there was to tell, and no end is on its way: it does
        #: not say so of a group that is complete, or gone (nor of one that never was).
        self.synced = False

    def fresh(self, frame: result_service_pb2.IterateResponse) -> Fresh:
        """Take a frame; gives the members in it that were not delivered before."""
        anew = frame.control.kind == stream_pb2.CONTROL_KIND_RESET
        if anew:
            self.after = b""
            if self._retold:
                self._delivered = Delivered()
        add = self._delivered.add
        fresh = [
            event
            for event in frame.events
            # A group is told from a task of the same id.
            if add(event.index, event.task.task_id or f"\0{event.group.group_id}")
        ]
        if frame.after:
            self.after = frame.after
        synced = frame.control.kind == stream_pb2.CONTROL_KIND_SYNCED
        if synced and frame.counts.epoch and not frame.counts.complete:
            self.synced = True
        if frame.events or synced:
            self.breaks = 0
        return Fresh(fresh, frame.counts, anew)


def members(client: ClientCore, fresh: Fresh) -> Iterator[MemberResult]:
    """Read members one by one, with all that is known of them."""
    for event in fresh.events:
        if event.HasField("group"):
            yield _group(event, fresh.counts)
        else:
            yield _task(client, event, fresh.counts)


def values(client: ClientCore, fresh: Fresh, propagate: bool) -> Iterator[Any]:
    """Read the values of members, as `MemberResult.value` gives them, and nothing else."""
    for event in fresh.events:
        task = event.task
        if task.existence == state_pb2.EXISTENCE_KNOWN and not event.HasField("group"):
            state = _records.state_name(task.state, task.custom_state)
            result = _records.result(task, state, client.serializers)
            if propagate and state in _FAILED and isinstance(result, Exception):
                raise result
            yield result
        else:
            yield from (m.value(propagate) for m in members(client, Fresh([event], fresh.counts)))


def _task(
    client: ClientCore, event: stream_pb2.Event, counts: group_pb2.GroupCounts
) -> MemberResult:
    meta = client.meta_of(event.task)
    task_id, state, result = meta["task_id"], meta["status"], meta["result"]
    gone = event.task.existence in (state_pb2.EXISTENCE_FORGOTTEN, state_pb2.EXISTENCE_EXPIRED)
    if gone:
        why = meta["existence"].lower()
        result = ResultGoneError(f"the result of {task_id} counted and is {why} now")
    return MemberResult(
        event.index, task_id, event.position, state, result, meta, None, gone, counts
    )


def _group(event: stream_pb2.Event, counts: group_pb2.GroupCounts) -> MemberResult:
    group = event.group
    result: Exception | None = None
    state = _records.state_name(group.outcome)
    if event.gone:
        result = ResultGoneError(f"the group {group.group_id} was deleted or has expired")
    elif state == states.FAILURE:
        result = TaskError("GroupFailed", f"a member of the group {group.group_id} failed")
    return MemberResult(
        event.index, group.group_id, event.position, state, result, None, group,
        event.gone, counts,
    )  # fmt: skip


def frames(
    client: ClientCore,
    request: result_service_pb2.IterateRequest,
    timeout: float | None,
    *,
    retold: bool = False,
) -> Op[None]:
    """Emit what each frame brings, every member once, until the group is complete.

    Begins after `request.after`. What is done already is looked for as long as a read may take,
    even if the timeout is shorter. With `retold` members come again where the stream begins
    again (see `Fresh`): for who hands nothing out before the end.

    Raises:
        TimeoutError: the time ran out before that.
        GroupNotFoundError: `require_known` and there is no such group.
        ResultGoneError: the group was deleted, or expired.
    """
    progress = Progress(request.after, retold=retold)
    limits = _Limits(timeout, progress)
    heartbeat = client.url.heartbeat
    request.heartbeat.FromNanoseconds(int(heartbeat * 1e9))
    pause: float | None = 0.0
    while pause is not None:
        if pause:
            mailbox = client.watcher().port.new_mailbox()
            yield Receive(mailbox, limits.now.within(pause))
        limits.now.check()
        request.after = progress.after
        stream: Stream = yield Open("Iterate", request)
        try:
            pause = yield from _read(stream, progress, limits, heartbeat)
        except ResultdError as error:
            if error.final or isinstance(error, (WaitTimeout, ResultGoneError)):
                raise
            pause = _backoff.full_jitter(progress.breaks, error.retry_delay)
            progress.breaks += 1
        finally:
            stream.cancel()


class _Limits:
    """How long a group is read: until there is nothing more to be told at once as long as any
    read, and to the wait's deadline from then on.
    """

    def __init__(self, timeout: float | None, progress: Progress) -> None:
        self._deadline = Deadline(timeout)
        self._first_look = Deadline(read_limit(self._deadline))
        self._progress = progress

    @property
    def now(self) -> Deadline:
        """What counts as things stand."""
        return self._deadline if self._progress.synced else self._first_look


def _read(
    stream: Stream, progress: Progress, limits: _Limits, heartbeat: float
) -> Op[float | None]:
    """Read one stream to its end; gives the seconds until the next, None if all is done."""
    silent_at = time.monotonic() + SILENT_HEARTBEATS * heartbeat
    while True:
        left = limits.now.within(max(0.0, silent_at - time.monotonic()))
        items = yield Receive(stream.mailbox, left)
        if not items:
            limits.now.check()
            if time.monotonic() >= silent_at:
                yield Reconnect(stream.generation)
                raise UnavailableError("the server fell silent; the stream is opened again")
        for frame in items:
            if isinstance(frame, ResultdError):
                raise frame
            end = frame.control
            if end.kind != stream_pb2.CONTROL_KIND_END:
                limits.now.check()  # frames may come without a pause, however late it is
            yield Emit(progress.fresh(frame))
            # Only now: a slow user keeps the server from sending more.
            stream.taken()
            if end.kind == stream_pb2.CONTROL_KIND_END:
                return _after_end(end, progress)
        # Counted from here: however long the user took, the stream was not listened to.
        silent_at = time.monotonic() + SILENT_HEARTBEATS * heartbeat


def _after_end(end: stream_pb2.Control, progress: Progress) -> float | None:
    if end.end_reason == stream_pb2.END_REASON_COMPLETE:
        return None
    if end.end_reason == stream_pb2.END_REASON_GONE:
        raise ResultGoneError("the group was deleted, or has expired, before it was complete")
    if end.end_reason == stream_pb2.END_REASON_DRAINING:
        progress.breaks += 1
        delay = end.retry_delay.seconds + end.retry_delay.nanos / 1e9
        return _backoff.full_jitter(progress.breaks, delay)
    return 0.0
