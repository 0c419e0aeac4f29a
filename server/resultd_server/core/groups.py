"""Following a group: its completion log, or its members in their order."""

from __future__ import annotations

from typing import NamedTuple

from resultd.v1 import group_pb2
from resultd_server import limits
from resultd_server.engine.base import Engine
from resultd_server.ledger import progress, records
from resultd_server.ledger.progress import Cursor


class GroupFrame(NamedTuple):
    """What to send of a group: events, or the word that it starts again."""

    events: bytes
    reset: bool


class GroupInterest:
    """One stream's place in one group."""

    def __init__(self, engine: Engine, namespace: str, group_id: str, cursor: Cursor) -> None:
        self._engine = engine
        self._namespace = namespace
        self.group_id = group_id
        self._cursor = cursor
        self._count_max = limits.FRAME_EVENTS_MAX
        self._due = True
        # Who resumes has seen it, however long ago.
        self._seen = cursor.position > 0
        self.counts = b""
        self.complete = False
        self.gone = False

    def notice(self) -> None:
        """A hint came: the group is due."""
        self._due = True

    @property
    def after(self) -> bytes:
        """Where to resume: opaque."""
        return self._cursor.encode() if self._cursor.position else b""

    @property
    def over(self) -> bool:
        """Whether there is nothing more to come."""
        return self.complete or self.gone

    async def next_frame(self) -> GroupFrame | None:
        """The next events, or None if there are none now."""
        if not self._due or self.over:
            return None
        self._due = False
        step = await self._engine.group_step(
            self._namespace, self.group_id, self._cursor, self._count_max
        )
        if step.group is None:
            # A group that was there, or of which a tombstone tells, does not come back.
            self.gone = self._seen or step.existence != records.UNKNOWN
            return None
        self._seen = True
        self._cursor = step.cursor
        # A hint that came while the step was read stays.
        self._due = self._due or step.more or step.reset
        if step.more:
            # Of large records few make a frame: that many rows of the log need not be read.
            self._count_max = min(2 * step.event_count, limits.FRAME_EVENTS_MAX)
        self.counts = _encode(step.group.to_message())
        self.complete = not step.more and progress.finished(step.group, step.cursor)
        if step.reset:
            return GroupFrame(b"", reset=True)
        return GroupFrame(step.events, reset=False) if step.events else None


def _encode(counts: group_pb2.GroupCounts) -> bytes:
    return counts.SerializeToString()
