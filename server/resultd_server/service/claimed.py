"""A group's members, with the answer that grants its claim or before."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from resultd.v1 import group_pb2, result_service_pb2
from resultd.v1 import group_service_pb2 as pb
from resultd_server import limits
from resultd_server.engine.base import Engine
from resultd_server.errors import DomainError
from resultd_server.ledger import wire
from resultd_server.ledger.claiming import ClaimRequest
from resultd_server.ledger.progress import AS_COMPLETED, Cursor, Step

_MEMBERS = pb.ClaimGroupResponse.MEMBERS_FIELD_NUMBER
_AFTER = pb.ClaimedMembers.AFTER_FIELD_NUMBER
_CONTINUED = pb.ClaimedMembers.CONTINUED_FIELD_NUMBER
_AHEAD_MAX = 16
"""So many calls may hold members that were read before their claim is written."""
_AFTER_BYTES_MAX = 1024
"""Of `after`, and of what frames it and the members."""


class Pages(NamedTuple):
    """Frames of a group's members. `continued`: they go on where the asker's end."""

    steps: list[Step]
    continued: bool = False


_NONE = Pages([])
_FIRST = Cursor(AS_COMPLETED)


def asked_after(wanted: result_service_pb2.ClaimOnComplete) -> Cursor:
    """Where the members end that a report's sender has. Raises FieldInvalid."""
    return Cursor.decode(wanted.members_after, AS_COMPLETED, "claim.members_after")


class Ahead:
    """Members are read while the claim is written: a complete group's stay what they are.

    Of so many calls at a time. Those that come together share a commit, and each would hold
    what it has read until that is over.
    """

    def __init__(self) -> None:
        self._under_way = 0

    async def claim(
        self, engine: Engine, namespace: str, request: ClaimRequest
    ) -> tuple[pb.ClaimGroupResponse, Pages]:
        """The answer to a claim, and the group's first members."""
        if self._under_way >= _AHEAD_MAX:
            answer = await engine.group_claim(namespace, request)
            if answer.outcome != pb.CLAIM_OUTCOME_GRANTED:
                return answer, _NONE
            return answer, await first_pages(engine, namespace, request.group_id)
        self._under_way += 1
        try:
            return await asyncio.gather(
                engine.group_claim(namespace, request),
                self._read(engine, namespace, request.group_id),
            )
        finally:
            self._under_way -= 1

    async def _read(self, engine: Engine, namespace: str, group_id: str) -> Pages:
        await asyncio.sleep(0)  # the writer is first
        return await first_pages(engine, namespace, group_id)


async def first_pages(
    engine: Engine, namespace: str, group_id: str, since: Cursor = _FIRST
) -> Pages:
    """A complete group's members as they were done, about 1 MiB; none of another's.

    Those after `since`, or the first where that is of another run or another store's.

    None where they cannot be read, either: the claim is told in any case, and whoever reads them
    by Iterate is told why.
    """
    try:
        found = await _pages(engine, namespace, group_id, since)
        if found is None and since.position:
            since, found = _FIRST, await _pages(engine, namespace, group_id, _FIRST)
    except DomainError:
        return _NONE
    return _NONE if found is None else Pages(found, continued=bool(since.position))


async def _pages(
    engine: Engine, namespace: str, group_id: str, cursor: Cursor
) -> list[Step] | None:
    """None where the cursor does not fit, or the group is not complete (any more)."""
    steps: list[Step] = []
    size_bytes = 0
    while not steps or (steps[-1].more and size_bytes < limits.FRAME_BYTES):
        if steps:
            await asyncio.sleep(0)  # others have their turn
        step = await engine.group_step(namespace, group_id, cursor)
        if step.group is None or not step.group.complete or step.reset:
            return None
        steps.append(step)
        cursor = step.cursor
        size_bytes += len(step.events)
    return steps


async def done_so_far(engine: Engine, namespace: str, group_id: str, since: Cursor) -> bytes | None:
    """ClaimedMembers of a group that is not complete: a frame of those after `since`.

    None where they cannot be read: the report was stored, and is told so.
    """
    try:
        step = await engine.group_step(namespace, group_id, since)
        if step.reset:
            since = _FIRST
            step = await engine.group_step(namespace, group_id, since)
    except DomainError:
        return None
    if step.group is None or step.reset:
        return None
    return _encoded([step], step.cursor, continued=bool(since.position))


def with_members(answer: pb.ClaimGroupResponse, pages: Pages) -> bytes:
    """The answer, serialized, with as many members as have room where the claim is granted."""
    encoded = answer.SerializeToString()
    if answer.outcome != pb.CLAIM_OUTCOME_GRANTED:
        return encoded
    members = _claimed(answer.group, pages, limits.RESPONSE_BYTES_MAX - len(encoded))
    return encoded if members is None else encoded + wire.message_field(_MEMBERS, members)


def _claimed(group: group_pb2.GroupMeta, pages: Pages, room_bytes: int) -> bytes | None:
    """ClaimedMembers that fit; None if none do, or they are another run's."""
    taken: list[Step] = []
    room_bytes -= _AFTER_BYTES_MAX
    for step in pages.steps:
        if step.group is None or step.group.epoch != group.counts.epoch:
            return None
        room_bytes -= len(step.events)
        if room_bytes < 0:
            break
        taken.append(step)
    if not taken:
        return None
    last = taken[-1]
    rest = last.more or last is not pages.steps[-1]
    return _encoded(taken, last.cursor if rest else None, continued=pages.continued)


def _encoded(steps: list[Step], after: Cursor | None, *, continued: bool) -> bytes:
    """ClaimedMembers, serialized."""
    rest = b"" if after is None else wire.message_field(_AFTER, after.encode())
    goes_on = wire.number_field(_CONTINUED, continued)
    return b"".join((*(step.events for step in steps), rest, goes_on))
