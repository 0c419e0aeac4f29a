"""`client.group(id)`: a group on the server, of any size, held by its name only."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from resultd import _iterate, _records
from resultd._effects import Op, each, spread
from resultd._operations import IDS_PER_CALL
from resultd.errors import SerializationError
from resultd.v1 import (
    group_pb2,
    group_service_pb2,
    result_service_pb2,
    state_pb2,
    task_pb2,
)

if TYPE_CHECKING:
    from resultd._core import ClientCore

Order = Literal["completed", "member"]
_ORDERS: Mapping[str, result_service_pb2.MemberOrder.ValueType] = {
    "completed": result_service_pb2.MEMBER_ORDER_AS_COMPLETED,
    "member": result_service_pb2.MEMBER_ORDER_MEMBER,
}


class GroupInfo(NamedTuple):
    """A group as it was when the server answered.

    Attributes:
        exists: whether there is such a group.
        sealed: whether no members may be added, but for those still expected.
        total: how many members it is to have once sealed, 0 before.
        members, done, succeeded, failed, revoked, ignored, gone: how many.
        complete: sealed, as many known as expected, and all done.
        epoch: 1, 2, ... for each time the group was run.
        outcome: "SUCCESS" or "FAILURE" once complete, "" before.
        continuation: what is to be done when it is complete, decoded.
        labels: for people and filters.
        created_time, updated_time, completed_time: when, in UTC; None if not yet.
        meta: the whole message.
    """

    exists: bool
    sealed: bool
    total: int
    members: int
    done: int
    succeeded: int
    failed: int
    revoked: int
    ignored: int
    gone: int
    complete: bool
    epoch: int
    outcome: str
    continuation: Any
    labels: dict[str, str]
    created_time: datetime.datetime | None
    updated_time: datetime.datetime | None
    completed_time: datetime.datetime | None
    meta: group_pb2.GroupMeta


class ClaimOutcome(NamedTuple):
    """What came of a claim: `outcome` is "GRANTED", "HELD", "DONE", "INCOMPLETE" or "LOST"."""

    outcome: str
    token: str
    group: GroupInfo

    @property
    def granted(self) -> bool:
        """Whether the caller has what was asked for."""
        return self.outcome == "GRANTED"


class GroupHandleCore:
    """The operations on a group; a handle holds its id and nothing else."""

    def __init__(self, client: ClientCore, group_id: str) -> None:
        self.client = client
        self.id = group_id

    def __repr__(self) -> str:
        return f"<group {self.id} at {self.client.url.shown}>"

    def _create(
        self,
        members: Iterable[Any],
        continuation: Any,
        claim_scope: str,
        ttl: float | datetime.timedelta | None,
        labels: Mapping[str, str] | None,
        seal: bool,
        new_epoch: bool,
    ) -> Op[GroupInfo]:
        operations = self.client.operations
        request = group_service_pb2.CreateGroupRequest(
            group_id=self.id,
            claim_scope=claim_scope,
            labels=labels or {},
            new_epoch=new_epoch,
            **_records.ttl_fields(ttl),
        )
        if continuation is not None:
            request.continuation.CopyFrom(
                self.client.serializers.encode(continuation, operations.serializer)
            )
        group = yield from operations.declare_group(request, [], seal=False)
        total = 0
        for page in _pages(members, start=0):
            added = yield from operations.add_members(self.id, page)
            group = added if added is not None else group
            total += len(page)
        if seal:
            group = yield from operations.seal(self.id, total or None)
        return self._info(group)

    def _add(self, members: Iterable[Any], start: int | None) -> Op[GroupInfo]:
        group: group_pb2.GroupMeta | None = None
        for page in _pages(members, start):
            group = yield from self.client.operations.add_members(self.id, page)
        if group is None:
            return (yield from self._read())
        return self._info(group)

    def _add_to_total(self, delta: int, request_id: str | None) -> Op[GroupInfo]:
        request = group_service_pb2.AddToTotalRequest(
            group_id=self.id, delta=delta, request_id=request_id or os.urandom(16).hex()
        )
        response = yield from self.client.operations.call("AddToTotal", request)
        return self._info(response.group)

    def _seal(self, total: int | None) -> Op[GroupInfo]:
        return self._info((yield from self.client.operations.seal(self.id, total)))

    def _read(self) -> Op[GroupInfo]:
        return self._info((yield from self.client.operations.group(self.id)))

    def _delete(self) -> Op[bool]:
        return (yield from self.client.operations.delete_group(self.id))

    def _claim(
        self, action: str, token: str | None, lease: float | None, holder: str
    ) -> Op[ClaimOutcome]:
        chosen = token or os.urandom(16).hex()
        request = group_service_pb2.ClaimGroupRequest(
            group_id=self.id,
            action=group_service_pb2.ClaimAction.Value(f"CLAIM_ACTION_{action}"),
            lease=None if lease is None else _records.duration(lease),
            token=chosen,
            holder=holder,
        )
        response = yield from self.client.operations.call("ClaimGroup", request)
        outcome = _records.enum_name(group_service_pb2.ClaimOutcome, response.outcome)
        return ClaimOutcome(outcome, chosen, self._info(response.group))

    def _members(self) -> Op[None]:
        yield from self.client.operations.group_members(self.id)

    def _frames(
        self,
        timeout: float | None,
        order: Order,
        require_known: bool,
        *,
        retold: bool = False,
    ) -> Op[None]:
        if order not in _ORDERS:
            raise ValueError(f"order is 'completed' or 'member', not {order!r}")
        request = result_service_pb2.IterateRequest(
            group_id=self.id, order=_ORDERS[order], require_known=require_known
        )
        yield from _iterate.frames(self.client, request, timeout, retold=retold)

    def _as_completed(self, timeout: float | None, order: Order, require_known: bool) -> Op[None]:
        op = self._frames(timeout, order, require_known)
        yield from spread(op, lambda fresh: _iterate.members(self.client, fresh))

    def _iterate(
        self, timeout: float | None, propagate: bool, order: Order, require_known: bool
    ) -> Op[None]:
        op = self._frames(timeout, order, require_known)
        yield from spread(op, lambda fresh: _iterate.values(self.client, fresh, propagate))

    def _get(self, timeout: float | None, propagate: bool, require_known: bool) -> Op[list[Any]]:
        found: dict[int, Any] = {}
        op = self._frames(timeout, "member", require_known, retold=True)

        def keep(fresh: _iterate.Fresh) -> None:
            if fresh.anew:
                found.clear()  # the group was run again: no two runs make one answer
            values = _iterate.values(self.client, fresh, propagate)
            for event, value in zip(fresh.events, values, strict=True):
                found[event.index] = value

        yield from each(op, keep)
        return list(found.values())

    def _info(self, group: group_pb2.GroupMeta) -> GroupInfo:
        counts = group.counts
        continuation = None
        if group.HasField("continuation"):
            try:
                continuation = self.client.serializers.decode(group.continuation)
            except SerializationError as error:
                continuation = error
        return GroupInfo(
            exists=group.existence == state_pb2.EXISTENCE_KNOWN,
            sealed=counts.sealed,
            total=counts.expected_total,
            members=counts.members,
            done=counts.done,
            succeeded=counts.succeeded,
            failed=counts.failed,
            revoked=counts.revoked,
            ignored=counts.ignored,
            gone=counts.gone,
            complete=counts.complete,
            epoch=counts.epoch,
            outcome=_records.state_name(group.outcome) if group.outcome else "",
            continuation=continuation,
            labels=dict(group.labels),
            created_time=_records.moment(group, "created_time"),
            updated_time=_records.moment(group, "updated_time"),
            completed_time=_records.moment(group, "completed_time"),
            meta=group,
        )


def _pages(members: Iterable[Any], start: int | None) -> Iterator[list[group_pb2.GroupMember]]:
    """Cut members into messages without ever holding all of them."""
    page: list[group_pb2.GroupMember] = []
    for offset, member in enumerate(members):
        page.append(_member(member, None if start is None else start + offset))
        if len(page) == IDS_PER_CALL:
            yield page
            page = []
    if page:
        yield page


def _member(member: Any, index: int | None) -> group_pb2.GroupMember:
    if isinstance(member, group_pb2.GroupMember):
        return member
    is_group = isinstance(member, GroupHandleCore) or hasattr(member, "results")
    return group_pb2.GroupMember(
        index=index,
        id=member if isinstance(member, str) else member.id,
        kind=task_pb2.MEMBER_KIND_GROUP if is_group else task_pb2.MEMBER_KIND_TASK,
    )
