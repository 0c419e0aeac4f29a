"""The four streams: what each sends, and when it is over. Paced by `service.streams`."""

from __future__ import annotations

import abc
import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import islice

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import stream_pb2, worker_service_pb2
from resultd_server import limits
from resultd_server.core.groups import GroupInterest
from resultd_server.core.tasks import TaskInterest
from resultd_server.engine.base import Engine
from resultd_server.errors import LimitExceeded
from resultd_server.ledger import wire
from resultd_server.ledger.progress import AS_COMPLETED, Cursor
from resultd_server.ledger.unit import GROUP, REVOCATION, TASK

EndReason = stream_pb2.EndReason


def control(
    kind: stream_pb2.ControlKind.ValueType, *, sequence: int = 0, group_id: str = ""
) -> stream_pb2.Control:
    """A control message."""
    return stream_pb2.Control(kind=kind, sequence=sequence, group_id=group_id)


class Source(abc.ABC):
    """What one stream has to say."""

    heartbeat_s = limits.HEARTBEAT_DEFAULT_S

    def __init__(self, engine: Engine, namespace: str) -> None:
        self._engine = engine
        self.subscription = engine.subscribe(namespace)

    @abc.abstractmethod
    async def next_frame(self) -> bytes | None:
        """A serialized frame of what counts now, or None if nothing does."""

    @property
    @abc.abstractmethod
    def end(self) -> EndReason.ValueType | None:
        """Why the stream is over, once it is."""

    def frame(self, message: stream_pb2.Control) -> bytes:
        """A serialized frame that carries a control message."""
        return wire.frame((), control=message.SerializeToString())

    @property
    def says_synced(self) -> bool:
        """Whether the driver is to say SYNCED once what counted has been sent."""
        return True

    def now_ms(self) -> int:
        """The server's clock."""
        return self._engine.clock()

    def close(self) -> None:
        """Frees everything."""
        self.subscription.close()


class WaitForSource(Source):
    """Tasks by id, until all, one, or one that failed."""

    def __init__(
        self,
        engine: Engine,
        namespace: str,
        task_ids: Sequence[str],
        *,
        return_when: pb.ReturnWhen.ValueType,
        transitions: bool,
        wait_for_gone: bool,
    ) -> None:
        super().__init__(engine, namespace)
        self._return_when = return_when
        self._tasks = TaskInterest(
            engine, self.subscription, transitions=transitions, wait_for_gone=wait_for_gone
        )
        self._tasks.add(task_ids)

    async def next_frame(self) -> bytes | None:
        for _, task_id in self.subscription.take():
            self._tasks.notice(task_id)
        events = await self._tasks.next_events()
        return wire.frame(events) if events else None

    @property
    def end(self) -> EndReason.ValueType | None:
        tasks = self._tasks
        first = self._return_when == pb.RETURN_WHEN_FIRST_COMPLETED and tasks.settled
        failed = self._return_when == pb.RETURN_WHEN_FIRST_EXCEPTION and tasks.excepted
        if not (first or failed or not tasks.pending):
            return None
        gone = tasks.gone and not failed and not (first and tasks.settled > tasks.gone)
        return stream_pb2.END_REASON_GONE if gone else stream_pb2.END_REASON_COMPLETE


class IterateSource(Source):
    """The members of one group."""

    def __init__(self, engine: Engine, namespace: str, group_id: str, cursor: Cursor) -> None:
        super().__init__(engine, namespace)
        self._group = GroupInterest(engine, namespace, group_id, cursor)
        self.subscription.add(GROUP, (group_id,))

    async def next_frame(self) -> bytes | None:
        if self.subscription.take():
            self._group.notice()
        found = await self._group.next_frame()
        if found is None:
            return None
        if found.reset:
            return self.frame(control(stream_pb2.CONTROL_KIND_RESET))
        group = self._group
        return wire.frame((found.events,), counts=group.counts, after=group.after)

    def frame(self, message: stream_pb2.Control) -> bytes:
        group = self._group
        return wire.frame(
            (), control=message.SerializeToString(), counts=group.counts, after=group.after
        )

    @property
    def end(self) -> EndReason.ValueType | None:
        if self._group.gone:
            return stream_pb2.END_REASON_GONE
        return stream_pb2.END_REASON_COMPLETE if self._group.complete else None


class ChangingSource(Source):
    """A source whose set of keys the client changes while it runs."""

    def __init__(self, engine: Engine, namespace: str) -> None:
        super().__init__(engine, namespace)
        self._sequences: deque[int] = deque()
        self._room = asyncio.Event()
        self.begun = False
        self.closing = False

    @property
    def says_synced(self) -> bool:
        return False

    @property
    def congested(self) -> bool:
        """Whether requests wait to be answered: read no more of them for now."""
        return len(self._sequences) >= limits.FRAME_TASKS_MAX

    async def answered(self) -> None:
        """Until one of the requests that wait has been answered."""
        self._room.clear()
        await self._room.wait()

    def _applied(self, sequence: int) -> None:
        """A request has taken effect."""
        self.begun = True
        if sequence:
            self._sequences.append(sequence)
        self.subscription.wake()

    def _synced(self) -> bytes | None:
        """What counted has been sent: answers the next request that asked."""
        if not self._sequences:
            return None
        sequence = self._sequences.popleft()
        self._room.set()
        return self.frame(control(stream_pb2.CONTROL_KIND_SYNCED, sequence=sequence))

    @property
    def end(self) -> EndReason.ValueType | None:
        """Over once the client has closed its side and nothing is waited for."""
        if self.closing and not any(self.subscription.noted.values()):
            return stream_pb2.END_REASON_COMPLETE
        return None


class WatchSource(ChangingSource):
    """Tasks and groups that come and go."""

    def __init__(self, engine: Engine, namespace: str) -> None:
        super().__init__(engine, namespace)
        self._tasks = TaskInterest(engine, self.subscription)
        self._groups: dict[str, GroupInterest] = {}
        self._due_groups: dict[str, None] = {}

    def apply(self, request: pb.WatchRequest) -> None:
        """Changes what is waited for; the first request says how.

        Raises LimitExceeded, FieldInvalid.
        """
        if not self.begun:
            self._tasks.transitions = request.transitions
            self._tasks.wait_for_gone = request.on_gone == pb.ON_GONE_WAIT
        _check_room("watched ids", self._tasks.pending, request.add_task_ids,
                    limits.WATCHED_IDS_PER_STREAM)  # fmt: skip
        _check_room("watched groups", self._groups, [g.group_id for g in request.add_groups],
                    limits.WATCHED_GROUPS_PER_STREAM)  # fmt: skip
        cursors = [Cursor.decode(group.after, AS_COMPLETED) for group in request.add_groups]
        self._tasks.remove(request.remove_task_ids)
        for group_id in request.remove_group_ids:
            self._drop_group(group_id)
        self._tasks.add(request.add_task_ids)
        namespace = self.subscription.namespace
        for group, cursor in zip(request.add_groups, cursors, strict=True):
            interest = GroupInterest(self._engine, namespace, group.group_id, cursor)
            self._groups[group.group_id] = interest
            self._due_groups[group.group_id] = None
        self.subscription.add(GROUP, [group.group_id for group in request.add_groups])
        self._applied(request.sequence)

    def _drop_group(self, group_id: str) -> None:
        self._groups.pop(group_id, None)
        self._due_groups.pop(group_id, None)
        self.subscription.discard(GROUP, (group_id,))

    async def next_frame(self) -> bytes | None:
        while True:
            for kind, id_ in self.subscription.take():
                if kind == TASK:
                    self._tasks.notice(id_)
                elif id_ in self._groups:
                    self._groups[id_].notice()
                    self._due_groups[id_] = None
            events = await self._tasks.next_events()
            if events:
                return wire.frame(events)
            while self._due_groups:
                frame = await self._next_group_frame(next(iter(self._due_groups)))
                if frame is not None:
                    return frame
            # Asked for while a group was read: before the word that all has been sent.
            if not self._tasks.due:
                return self._synced()

    async def _next_group_frame(self, group_id: str) -> bytes | None:
        group = self._groups[group_id]
        found = await group.next_frame()
        if self._groups.get(group_id) is not group:
            return None  # dropped, or asked for anew, while it was read
        if found is not None:
            # To the end of the row: a large group does not hold up the others.
            self._due_groups[group_id] = self._due_groups.pop(group_id)
            message = b""
            if found.reset:
                reset = control(stream_pb2.CONTROL_KIND_RESET, group_id=group_id)
                message = reset.SerializeToString()
            return wire.frame(
                (found.events,),
                control=message,
                counts=group.counts,
                after=group.after,
                group_id=group_id,
            )
        self._due_groups.pop(group_id, None)
        if not group.over:
            return None
        self._drop_group(group_id)
        over = control(stream_pb2.CONTROL_KIND_END, group_id=group_id)
        over.end_reason = (
            stream_pb2.END_REASON_GONE if group.gone else stream_pb2.END_REASON_COMPLETE
        )
        return wire.frame(
            (), control=over.SerializeToString(), counts=group.counts, group_id=group_id
        )


class RevocationSource(ChangingSource):
    """Which of the tasks a worker runs are to stop."""

    def __init__(self, engine: Engine, namespace: str) -> None:
        super().__init__(engine, namespace)
        self._due: dict[str, None] = {}

    def apply(self, request: worker_service_pb2.WatchRevocationsRequest) -> None:
        """Changes what is watched. Raises LimitExceeded."""
        running = self.subscription.noted.get(REVOCATION, {})
        _check_room("running tasks", running, request.add_task_ids, limits.WATCHED_IDS_PER_STREAM)
        self.subscription.discard(REVOCATION, request.remove_task_ids)
        for task_id in request.remove_task_ids:
            self._due.pop(task_id, None)
        self.subscription.add(REVOCATION, request.add_task_ids)
        self._due.update(dict.fromkeys(request.add_task_ids))
        self._applied(request.sequence)

    async def next_frame(self) -> bytes | None:
        self._due.update((task_id, None) for _, task_id in self.subscription.take())
        while self._due:
            ids = list(islice(self._due, limits.FRAME_TASKS_MAX))
            for task_id in ids:
                del self._due[task_id]
            if not self._due:
                self._due = {}  # as `TaskInterest`: one that held many keeps their room
            found = await self._engine.revoked(self.subscription.namespace, ids)
            wishes = [wish for wish in found if wish is not None]
            if wishes:
                return wire.repeated(1, wishes)
            if self._due:
                await asyncio.sleep(0)  # as `TaskInterest.next_events`
        return self._synced()


def _check_room(
    what: str, there: dict[str, int] | dict[str, GroupInterest], new: Sequence[str], limit: int
) -> None:
    if len(there) + len(new) <= limit:
        return
    count = len(there) + sum(id_ not in there for id_ in set(new))
    if count > limit:
        raise LimitExceeded(what, count, limit, "open another stream")
