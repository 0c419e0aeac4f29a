"""Waiting for tasks: ids and versions, never payloads.

Subscribe, then read, then send what counts; on a hint read again. A record is read when
there is room to send it, so a slow reader sees fewer intermediate states and never
misses a terminal one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from resultd.v1 import state_pb2
from resultd_server import limits
from resultd_server.engine.base import Engine
from resultd_server.engine.hints import Subscription
from resultd_server.ledger import records, wire
from resultd_server.ledger.records import Record
from resultd_server.ledger.unit import TASK

EXCEPTIONS = frozenset({state_pb2.STATE_FAILURE, state_pb2.STATE_REVOKED})
_GONE = frozenset({records.EXPIRED, records.FORGOTTEN})


class TaskInterest:
    """One stream's interest in tasks.

    `settled`, `excepted`, `gone` count the ids whose wait is over, those of them that
    failed or were revoked, and those that have no record any more.
    """

    def __init__(
        self,
        engine: Engine,
        subscription: Subscription,
        *,
        transitions: bool = False,
        wait_for_gone: bool = False,
    ) -> None:
        self._engine = engine
        self._subscription = subscription
        self.transitions = transitions
        self.wait_for_gone = wait_for_gone
        self._due: dict[str, None] = {}
        self.settled = 0
        self.excepted = 0
        self.gone = 0

    def add(self, task_ids: Iterable[str]) -> None:
        """Waits for these too. What they are now is due at once."""
        ids = dict.fromkeys(task_ids)
        self._subscription.add(TASK, ids)
        self._due.update(ids)

    def remove(self, task_ids: Iterable[str]) -> None:
        """Waits for these no longer."""
        ids = list(task_ids)
        self._subscription.discard(TASK, ids)
        for task_id in ids:
            self._due.pop(task_id, None)

    def notice(self, task_id: str) -> None:
        """A hint came: the record is due."""
        if task_id in self.pending:
            self._due[task_id] = None

    @property
    def due(self) -> bool:
        """Whether there are records to read."""
        return bool(self._due)

    @property
    def pending(self) -> dict[str, int]:
        """Ids still waited for, with the version last sent."""
        return self._subscription.noted.get(TASK, {})

    async def next_events(self) -> list[bytes]:
        """Events that count, as they stand in a frame, up to one; none if nothing does now."""
        events: list[bytes] = []
        size_bytes = 0
        while self._due and len(events) < limits.FRAME_TASKS_MAX:
            ids = self._take(limits.FRAME_TASKS_MAX - len(events))
            found = await self._engine.get(
                self._subscription.namespace, ids, budget_bytes=limits.FRAME_BYTES
            )
            if len(found) < len(ids):
                self._due = dict.fromkeys(ids[len(found) :]) | self._due
            for at, (task_id, record) in enumerate(zip(ids, found, strict=False)):
                noted = self.pending.get(task_id)
                if noted is None or not self._counts(record, noted):
                    continue
                if events and size_bytes + len(record.wire) > limits.FRAME_BYTES:
                    # No room: read again for the next frame, before what came later.
                    self._due = dict.fromkeys(ids[at : len(found)]) | self._due
                    return events
                size_bytes += len(record.wire)
                events.append(wire.task_event(record.wire))
                self._sent(task_id, record)
            if self._due and not events:
                await asyncio.sleep(0)  # hints were lost, say: of 100,000 none may have changed
        return events

    def _take(self, count: int) -> list[str]:
        ids = []
        for task_id in self._due:
            ids.append(task_id)
            if len(ids) == count:
                break
        for task_id in ids:
            del self._due[task_id]
        if not self._due:
            self._due = {}  # one that held many keeps their room
        return ids

    def _counts(self, record: Record, noted: int) -> bool:
        if record.existence in _GONE:
            return not self.wait_for_gone
        if record.existence != records.KNOWN:
            return False
        return record.terminal or (self.transitions and record.version != noted)

    def _sent(self, task_id: str, record: Record) -> None:
        gone = record.existence in _GONE
        if not gone and not record.terminal:
            self.pending[task_id] = record.version
            return
        self._subscription.discard(TASK, (task_id,))
        self.settled += 1
        self.gone += gone
        self.excepted += not gone and record.state in EXCEPTIONS
