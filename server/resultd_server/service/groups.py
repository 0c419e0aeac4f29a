"""GroupService: declare, add, seal, read, list, delete, claim."""

from __future__ import annotations

from collections.abc import Sequence

from resultd.v1 import group_pb2, task_pb2
from resultd.v1 import group_service_pb2 as pb
from resultd_server import limits
from resultd_server.engine.base import Engine
from resultd_server.errors import FieldInvalid, LimitExceeded
from resultd_server.ledger import claiming, keys, wire
from resultd_server.ledger.groups import Declaration, NewMember
from resultd_server.service import claimed, validate
from resultd_server.service.registry import Call


class GroupService:
    """Thin: every method validates, asks the engine, and answers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ahead = claimed.Ahead()

    async def create_group(
        self, request: pb.CreateGroupRequest, call: Call
    ) -> pb.CreateGroupResponse:
        group_id = validate.id_("group_id", request.group_id)
        validate.scope("claim_scope", request.claim_scope)
        validate.labels("labels", request.labels)
        validate.extra("extra", request.extra)
        validate.payload("continuation", request.continuation)
        said = group_pb2.GroupMeta(claim_scope=request.claim_scope, labels=request.labels)
        if request.HasField("continuation"):
            said.continuation.CopyFrom(request.continuation)
        for key, value in request.extra.items():
            said.extra[key].CopyFrom(value)
        declared = Declaration(
            group_id,
            _members(request.members, group_id),
            said,
            validate.ttl_ms(request),
            request.seal,
            request.new_epoch,
        )
        group = await self._engine.group_create(call.namespace, declared)
        return pb.CreateGroupResponse(group=group)

    async def add_group_members(
        self, request: pb.AddGroupMembersRequest, call: Call
    ) -> pb.AddGroupMembersResponse:
        group_id = validate.id_("group_id", request.group_id)
        members = _members(request.members, group_id)
        group, indexes = await self._engine.group_add(call.namespace, group_id, members)
        return pb.AddGroupMembersResponse(group=group, indexes=indexes)

    async def add_to_total(
        self, request: pb.AddToTotalRequest, call: Call
    ) -> pb.AddToTotalResponse:
        group_id = validate.id_("group_id", request.group_id)
        validate.id_("request_id", request.request_id, "name the addition")
        if not 1 <= request.delta <= limits.TOTAL_DELTA_MAX:
            raise FieldInvalid(
                "delta", f"is not between 1 and {limits.TOTAL_DELTA_MAX}", "add in several calls"
            )
        group = await self._engine.group_add_to_total(
            call.namespace, group_id, request.delta, request.request_id
        )
        return pb.AddToTotalResponse(group=group)

    async def seal_group(self, request: pb.SealGroupRequest, call: Call) -> pb.SealGroupResponse:
        group_id = validate.id_("group_id", request.group_id)
        total = request.expected_total if request.HasField("expected_total") else None
        if total is not None and total > limits.TOTAL_MAX:
            raise FieldInvalid(
                "expected_total", f"is more than {limits.TOTAL_MAX}", "make several groups"
            )
        group = await self._engine.group_seal(call.namespace, group_id, total)
        return pb.SealGroupResponse(group=group)

    async def get_group(self, request: pb.GetGroupRequest, call: Call) -> pb.GetGroupResponse:
        group_id = validate.id_("group_id", request.group_id)
        return pb.GetGroupResponse(group=await self._engine.group_get(call.namespace, group_id))

    async def list_groups(self, request: pb.ListGroupsRequest, call: Call) -> bytes:
        request.page_size = validate.page_size(request.page_size)
        validate.scope("claim_scope", request.claim_scope)
        if request.HasField("unchanged_since"):
            validate.timestamp("unchanged_since", request.unchanged_since)
        page = await self._engine.group_list(call.namespace, request)
        return wire.page(page.rows, page.next_token)

    async def list_group_members(self, request: pb.ListGroupMembersRequest, call: Call) -> bytes:
        group_id = validate.id_("group_id", request.group_id)
        size = validate.page_size(request.page_size, 1_000, limits.MEMBERS_PAGE_MAX)
        page = await self._engine.group_members(call.namespace, group_id, size, request.page_token)
        return wire.page(page.rows, page.next_token)

    async def delete_group(
        self, request: pb.DeleteGroupRequest, call: Call
    ) -> pb.DeleteGroupResponse:
        group_id = validate.id_("group_id", request.group_id)
        deleted = await self._engine.group_delete(call.namespace, group_id)
        return pb.DeleteGroupResponse(deleted=deleted)

    async def claim_group(
        self, request: pb.ClaimGroupRequest, call: Call
    ) -> pb.ClaimGroupResponse | bytes:
        group_id = validate.id_("group_id", request.group_id)
        validate.known_enum("action", request.action, pb.ClaimAction.values())
        claim = validate.claim(group_id, request.action, request, "")
        if not request.with_members or request.action in claiming.ENDS:
            return await self._engine.group_claim(call.namespace, claim)
        answer, pages = await self._ahead.claim(self._engine, call.namespace, claim)
        return claimed.with_members(answer, pages)


def _members(members: Sequence[group_pb2.GroupMember], group_id: str) -> list[NewMember]:
    if len(members) > limits.IDS_PER_CALL:
        raise LimitExceeded(
            "members", len(members), limits.IDS_PER_CALL, "add the rest with AddGroupMembers"
        )
    return [_member(member, group_id) for member in members]


def _member(member: group_pb2.GroupMember, group_id: str) -> NewMember:
    validate.id_("members.id", member.id)
    validate.known_enum("members.kind", member.kind, validate.MEMBER_KINDS)
    is_group = member.kind == task_pb2.MEMBER_KIND_GROUP
    if is_group and member.id == group_id:
        raise FieldInvalid("members.id", "is the group itself", "leave it out")
    index = validate.index("members.index", member.index) if member.HasField("index") else None
    return NewMember(keys.GROUP if is_group else keys.TASK, member.id, index)
