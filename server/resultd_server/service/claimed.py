"""The first members of a group, with the answer that grants its claim."""

from __future__ import annotations

import asyncio

from resultd.v1 import group_pb2
from resultd.v1 import group_service_pb2 as pb
from resultd_server import limits
from resultd_server.engine.base import Engine
from resultd_server.errors import DomainError
from resultd_server.ledger import wire
from resultd_server.ledger.claiming import ClaimRequest
from resultd_server.ledger.progress import AS_COMPLETED, Cursor, Step

_MEMBERS = pb.ClaimGroupResponse.MEMBERS_FIELD_NUMBER
_AFTER = pb.ClaimedMembers.AFTER_FIELD_NUMBER
_AHEAD_MAX = 16
"""So many calls may hold members that were read before their claim is written."""
_AFTER_BYTES_MAX = 1024
"""Of `after`, and of what frames it and the members."""


class Ahead:
    """Members are read while the claim is written: a complete group's stay what they are.

    Of so many calls at a time. Those that come together share a commit, and each would hold
    what it has read until that is over.
    """

    def __init__(self) -> None:
        self._under_way = 0

    async def claim(
        self, engine: Engine, namespace: str, request: ClaimRequest
    ) -> tuple[pb.ClaimGroupResponse, list[Step]]:
        """The answer to a claim, and the group's first members."""
        if self._under_way >= _AHEAD_MAX:
            answer = await engine.group_claim(namespace, request)
            if answer.outcome != pb.CLAIM_OUTCOME_GRANTED:
                return answer, []
            return answer, await first_pages(engine, namespace, request.group_id)
        self._under_way += 1
        try:
            return await asyncio.gather(
                engine.group_claim(namespace, request),
                first_pages(engine, namespace, request.group_id),
            )
        finally:
            self._under_way -= 1


async def first_pages(engine: Engine, namespace: str, group_id: str) -> list[Step]:
    """A complete group's first members as they were done, about 1 MiB; none of another's.

    None where they cannot be read, either: the claim is told in any case, and whoever reads them
    by Iterate is told why.
    """
    try:
        return await _first_pages(engine, namespace, group_id)
    except DomainError:
        return []


async def _first_pages(engine: Engine, namespace: str, group_id: str) -> list[Step]:
    pages: list[Step] = []
    cursor, size_bytes = Cursor(AS_COMPLETED), 0
    while not pages or (pages[-1].more and size_bytes < limits.FRAME_BYTES):
        # Others have their turn; at first the writer, for the claim.
        await asyncio.sleep(0)
        step = await engine.group_step(namespace, group_id, cursor)
        if step.group is None or not step.group.complete or step.reset:
            return []
        pages.append(step)
        cursor = step.cursor
        size_bytes += len(step.events)
    return pages


def with_members(answer: pb.ClaimGroupResponse, pages: list[Step]) -> bytes:
    """The answer, serialized, with as many members as have room where the claim is granted."""
    encoded = answer.SerializeToString()
    if answer.outcome != pb.CLAIM_OUTCOME_GRANTED:
        return encoded
    members = _claimed(answer.group, pages, limits.RESPONSE_BYTES_MAX - len(encoded))
    return encoded if members is None else encoded + wire.message_field(_MEMBERS, members)


def _claimed(group: group_pb2.GroupMeta, pages: list[Step], room_bytes: int) -> bytes | None:
    """ClaimedMembers that fit; None if none do, or they are another run's."""
    taken: list[bytes] = []
    room_bytes -= _AFTER_BYTES_MAX
    last: Step | None = None
    for page in pages:
        if page.group is None or page.group.epoch != group.counts.epoch:
            return None
        room_bytes -= len(page.events)
        if room_bytes < 0:
            break
        taken.append(page.events)
        last = page
    if last is None:
        return None
    if last is pages[-1] and not last.more:
        return b"".join(taken)
    return b"".join(taken) + wire.message_field(_AFTER, last.cursor.encode())
