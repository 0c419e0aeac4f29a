"""Every field of every request, with what is wrong in it: bad input made from the
descriptors, so that a new RPC or field cannot be forgotten.

`TEMPLATES` holds one sound request for each RPC, with every message in it set; `KINDS`
says for every field what it may hold, and which constant bounds it. Both are complete, or
the tests fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from resultd.v1 import (
    group_pb2,
    group_service_pb2,
    result_service_pb2,
    state_pb2,
    task_pb2,
    value_pb2,
    worker_service_pb2,
)
from resultd_server import limits
from tests.support import bounds
from tests.support.bounds import FIELD, LIMIT, Bound

SERVICES = tuple(
    service
    for module in (result_service_pb2, group_service_pb2, worker_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
METHODS: dict[str, MethodDescriptor] = {
    method.full_name: method for service in SERVICES for method in service.methods
}

Field = Any
"""A FieldDescriptor: there are two of them, in Python and in C, and no common type."""

Wrong = tuple[str, object, str]
"""What is wrong, what to put into the field, the reason it is refused with."""


class Kind(NamedTuple):
    """What may be wrong with a field, and its bounds: beyond them is wrong too.

    `whole`: it has no bound of its own, its bytes count in the request, and in the record that
    holds them.
    """

    wrong: Sequence[Wrong] = ()
    bounds: Sequence[Bound] = ()
    whole: bool = False

    def also(self, *wrong: Wrong) -> Kind:
        """The same, and more that is wrong with it."""
        return self._replace(wrong=(*self.wrong, *wrong))


def _text(bound: Bound, *wrong: Wrong) -> Kind:
    return Kind(wrong, [bound, bounds.wide(bound)])


_CONTROL: list[Wrong] = [
    (f"holds {char!r}", f"a{char}b", FIELD) for char in "\0\n\t\r\x1b\x1f\x7f\x80\x9f"
]
OPTIONAL_ID = _text(bounds.ID, *_CONTROL)
ID = OPTIONAL_ID.also(("is empty", "", FIELD))
IDS = Kind(
    [
        *((f"one {what}", ["t", value], reason) for what, value, reason in ID.wrong),
        ("too many times the same", ["t"] * (limits.IDS_PER_CALL + 1), LIMIT),
    ],
    bounds.IDS,
)
SOME_IDS = IDS.also(("none", [], FIELD))
TEXT = _text(bounds.TEXT)
SCOPE = OPTIONAL_ID
CONTENT = _text(bounds.CONTENT, *_CONTROL)
ENUM = Kind([("unknown value", 99, FIELD), ("negative value", -1, FIELD)])
INDEX = Kind(bounds=[bounds.number("INDEX_MAX")])
TOKEN = Kind([("not base64", "§§", FIELD), ("cut", "abc", FIELD)], whole=True)
AFTER = Kind(
    [
        ("too short", b"\1", FIELD),
        ("of another order", b"\7" + b"\0" * 20 + b"t", FIELD),
        ("not UTF-8", b"\1" + b"\0" * 20 + b"\xff", FIELD),
    ],
    [bounds.AFTER],
)
TIME = Kind(
    [
        ("before 1970", {"seconds": -1}, FIELD),
        ("negative nanoseconds", {"nanos": -1}, FIELD),
        ("a second of nanoseconds", {"nanos": 10**9}, FIELD),
    ],
    [bounds.TIME],
)
LABELS = Kind(bounds=bounds.LABELS)
EXTRA = Kind(bounds=bounds.EXTRA)
MEMBERS = Kind(bounds=[bounds.MEMBERS])
GROUP = ID.also(("unknown", "g", "GROUP_NOT_FOUND"))
ANYTHING = Kind()
"""Any value will do."""
WHOLE = Kind(whole=True)
"""Bytes of any number."""
OUTPUT = Kind()
"""What a report says here is ignored."""
INSIDE = None
"""A message: what may be wrong is wrong inside."""


def _duration(*found: Bound) -> Kind:
    wrong: list[Wrong] = [
        ("negative", {"seconds": -1}, FIELD),
        ("negative nanoseconds", {"seconds": 1, "nanos": -1}, FIELD),
        ("a second of nanoseconds", {"seconds": 1, "nanos": 10**9}, FIELD),
        ("as long as can be said", {"seconds": 2**62}, FIELD),
    ]
    return Kind(wrong, found)


def _page(constant: str) -> Kind:
    return Kind(
        [("as many as can be said", bounds.UINT32_MAX, LIMIT)], [bounds.number(constant, LIMIT)]
    )


_HEARTBEAT = _duration(*bounds.between("HEARTBEAT_MIN_S", "HEARTBEAT_MAX_S"))
_TIMEOUT = _duration(bounds.at_most("TIMEOUT_MAX_S"))
_TTL = _duration(*bounds.between("TTL_MIN_MS", "TTL_MAX_MS"))

KINDS: dict[str, Kind | None] = {
    "StoreResultRequest.meta": INSIDE,
    "StoreResultRequest.ttl": _TTL,
    "StoreResultRequest.no_expiry": Kind([("together with a ttl", True, FIELD)]),
    "StoreResultRequest.claim_scope": SCOPE,
    "StoreResultRequest.claim": INSIDE,
    "ClaimOnComplete.token": ID,
    "ClaimOnComplete.lease": _duration(*bounds.between("LEASE_MIN_MS", "LEASE_MAX_MS")),
    "ClaimOnComplete.holder": TEXT,
    "ClaimOnComplete.with_members": ANYTHING,
    "ClaimOnComplete.members_ahead": ANYTHING,
    "ClaimOnComplete.members_after": AFTER,
    "BatchStoreResultsRequest.reports": Kind(bounds=[bounds.REPORTS]),
    "GetResultRequest.task_id": ID,
    "BatchGetResultsRequest.task_ids": IDS,
    "WaitForRequest.task_ids": SOME_IDS,
    "WaitForRequest.return_when": ENUM,
    "WaitForRequest.transitions": ANYTHING,
    "WaitForRequest.on_gone": ENUM,
    "WaitForRequest.heartbeat": _HEARTBEAT,
    "WaitForRequest.timeout": _TIMEOUT,
    "IterateRequest.group_id": ID,
    "IterateRequest.order": ENUM,
    "IterateRequest.after": AFTER,
    "IterateRequest.require_known": Kind([("with an unknown group", True, "GROUP_NOT_FOUND")]),
    "IterateRequest.heartbeat": _HEARTBEAT,
    "IterateRequest.timeout": _TIMEOUT,
    "WatchRequest.add_task_ids": IDS,
    "WatchRequest.remove_task_ids": IDS,
    "WatchRequest.add_groups": Kind(bounds=[bounds.GROUPS]),
    "WatchRequest.remove_group_ids": IDS,
    "WatchRequest.sequence": ANYTHING,
    "WatchRequest.transitions": ANYTHING,
    "WatchRequest.on_gone": ENUM,
    "WatchRequest.heartbeat": _HEARTBEAT,
    "GroupWatch.group_id": ID,
    "GroupWatch.after": AFTER,
    "ForgetResultsRequest.task_ids": IDS,
    "ListResultsRequest.states": Kind([("an unknown state", [99], FIELD)], [bounds.STATES]),
    "ListResultsRequest.name": TEXT,
    "ListResultsRequest.group_id": OPTIONAL_ID,
    "ListResultsRequest.since": TIME,
    "ListResultsRequest.page_size": _page("PAGE_MAX"),
    "ListResultsRequest.page_token": TOKEN,
    "CreateGroupRequest.group_id": ID,
    "CreateGroupRequest.members": MEMBERS,
    "CreateGroupRequest.continuation": INSIDE,
    "CreateGroupRequest.claim_scope": SCOPE,
    "CreateGroupRequest.ttl": _TTL,
    "CreateGroupRequest.no_expiry": Kind([("together with a ttl", True, FIELD)]),
    "CreateGroupRequest.labels": LABELS,
    "CreateGroupRequest.extra": EXTRA,
    "CreateGroupRequest.seal": ANYTHING,
    "CreateGroupRequest.new_epoch": ANYTHING,
    "AddGroupMembersRequest.group_id": GROUP,
    "AddGroupMembersRequest.members": MEMBERS,
    "AddToTotalRequest.group_id": GROUP,
    "AddToTotalRequest.delta": Kind([("zero", 0, FIELD)], [bounds.number("TOTAL_DELTA_MAX")]),
    "AddToTotalRequest.request_id": ID,
    "SealGroupRequest.group_id": GROUP,
    "SealGroupRequest.expected_total": Kind(bounds=[bounds.number("TOTAL_MAX")]),
    "GetGroupRequest.group_id": ID,
    "ListGroupsRequest.incomplete": ANYTHING,
    "ListGroupsRequest.claimable": ANYTHING,
    "ListGroupsRequest.unchanged_since": TIME,
    "ListGroupsRequest.claim_scope": SCOPE,
    "ListGroupsRequest.page_size": _page("PAGE_MAX"),
    "ListGroupsRequest.page_token": TOKEN,
    "ListGroupMembersRequest.group_id": GROUP,
    "ListGroupMembersRequest.page_size": _page("MEMBERS_PAGE_MAX"),
    "ListGroupMembersRequest.page_token": WHOLE,  # looked at when there is a group
    "DeleteGroupRequest.group_id": ID,
    "ClaimGroupRequest.group_id": GROUP,
    "ClaimGroupRequest.action": ENUM,
    "ClaimGroupRequest.lease": _duration(*bounds.between("LEASE_MIN_MS", "LEASE_MAX_MS")),
    "ClaimGroupRequest.token": ID,
    "ClaimGroupRequest.holder": TEXT,
    "ClaimGroupRequest.with_members": ANYTHING,
    "RevokeTasksRequest.task_ids": SOME_IDS,
    "RevokeTasksRequest.terminate": ANYTHING,
    "RevokeTasksRequest.signal": _text(bounds.SIGNAL, *_CONTROL),
    "RevokeTasksRequest.reason": TEXT,
    "WatchRevocationsRequest.add_task_ids": IDS,
    "WatchRevocationsRequest.remove_task_ids": IDS,
    "WatchRevocationsRequest.heartbeat": _HEARTBEAT,
    "WatchRevocationsRequest.sequence": ANYTHING,
    "GroupMember.index": INDEX,
    "GroupMember.id": ID,
    "GroupMember.kind": ENUM,
    "GroupMember.position": OUTPUT,
    "GroupMember.state": OUTPUT,
    "TaskMeta.task_id": ID,
    "TaskMeta.state": ENUM.also(("not said", 0, FIELD)),
    "TaskMeta.custom_state": _text(bounds.CUSTOM_STATE, ("beside a built-in state", "MINE", FIELD)),
    "TaskMeta.terminal": OUTPUT,
    "TaskMeta.value": INSIDE,
    "TaskMeta.failure": INSIDE,
    "TaskMeta.progress": INSIDE,
    "TaskMeta.attempt": ANYTHING,
    "TaskMeta.worker": TEXT,
    "TaskMeta.name": TEXT,
    "TaskMeta.args": INSIDE,
    "TaskMeta.kwargs": INSIDE,
    "TaskMeta.queue": TEXT,
    "TaskMeta.retries": ANYTHING,
    "TaskMeta.parent_id": OPTIONAL_ID,
    "TaskMeta.root_id": OPTIONAL_ID,
    "TaskMeta.group_id": OPTIONAL_ID.also(("missing beside an index", "", FIELD)),
    "TaskMeta.index": INDEX,
    "TaskMeta.children": Kind(bounds=[bounds.CHILDREN]),
    "TaskMeta.labels": LABELS,
    "TaskMeta.extra": EXTRA,
    "TaskMeta.created_time": OUTPUT,
    "TaskMeta.received_time": TIME,
    "TaskMeta.started_time": TIME,
    "TaskMeta.done_time": TIME,
    "TaskMeta.updated_time": OUTPUT,
    "TaskMeta.expire_time": OUTPUT,
    "TaskMeta.version": OUTPUT,
    "TaskMeta.existence": OUTPUT,
    "TaskMeta.traceparent": Kind(  # of one length
        [
            ("no traceparent", "00-1-2-01", FIELD),
            ("a trace of zeros", f"00-{'0' * 32}-{'1' * 16}-01", FIELD),
        ]
    ),
    "TaskMeta.tracestate": Kind(
        [("beside no traceparent", "a=b", FIELD), *_CONTROL], [bounds.TRACESTATE]
    ),
    "Child.id": ID,
    "Child.kind": ENUM,
    "Payload.content_type": CONTENT,
    "Payload.content_encoding": CONTENT,
    "Payload.data": WHOLE.also(
        ("as large as a record", b"x" * limits.RECORD_BYTES_MAX, "VALUE_TOO_LARGE"),
        ("over gRPC's default limit", b"x" * (5 * limits.MIB), "VALUE_TOO_LARGE"),
    ),
    "Failure.type": TEXT.also(("is empty", "", FIELD)),
    "Failure.module": TEXT,
    "Failure.message": WHOLE,
    "Failure.args": INSIDE,
    "Failure.traceback": WHOLE,  # cut, not refused
    "Failure.cause": Kind(bounds=[bounds.CAUSES]),
    "Failure.language": TEXT,
    "Failure.retryable": ANYTHING,
    "Progress.current": ANYTHING,
    "Progress.total": ANYTHING,
    "Progress.message": WHOLE,
}


def _payload() -> value_pb2.Payload:
    return value_pb2.Payload(data=b"1")


def _report() -> result_service_pb2.StoreResultRequest:
    failure = value_pb2.Failure(type="E", args=_payload())
    failure.cause.type = "Cause"
    failure.cause.args.CopyFrom(_payload())
    # REJECTED: the one state that may carry a value and a failure.
    meta = task_pb2.TaskMeta(task_id="t", state=state_pb2.STATE_REJECTED, value=_payload())
    meta.failure.CopyFrom(failure)
    meta.progress.current = 1
    meta.args.CopyFrom(_payload())
    meta.kwargs.CopyFrom(_payload())
    meta.group_id, meta.index = "g", 0
    meta.children.append(task_pb2.Child(id="child"))
    request = result_service_pb2.StoreResultRequest(meta=meta)
    request.ttl.seconds = 60
    request.claim.token = "secret"
    return request


def _templates() -> dict[str, Message]:
    results, groups, workers = result_service_pb2, group_service_pb2, worker_service_pb2
    member = group_pb2.GroupMember(id="t", index=0)
    create = groups.CreateGroupRequest(group_id="g", members=[member], continuation=_payload())
    create.ttl.seconds = 60
    sound: dict[str, Message] = {
        "ResultService.StoreResult": _report(),
        "ResultService.BatchStoreResults": results.BatchStoreResultsRequest(),
        "ResultService.GetResult": results.GetResultRequest(task_id="t"),
        "ResultService.BatchGetResults": results.BatchGetResultsRequest(task_ids=["t"]),
        "ResultService.WaitFor": results.WaitForRequest(task_ids=["t"]),
        "ResultService.Iterate": results.IterateRequest(group_id="g"),
        "ResultService.Watch": results.WatchRequest(
            add_groups=[results.GroupWatch(group_id="g")], sequence=1
        ),
        "ResultService.ForgetResults": results.ForgetResultsRequest(task_ids=["t"]),
        "ResultService.ListResults": results.ListResultsRequest(),
        "ResultService.GetServerInfo": results.GetServerInfoRequest(),
        "GroupService.CreateGroup": create,
        "GroupService.AddGroupMembers": groups.AddGroupMembersRequest(
            group_id="g", members=[member]
        ),
        "GroupService.AddToTotal": groups.AddToTotalRequest(group_id="g", delta=1, request_id="r"),
        "GroupService.SealGroup": groups.SealGroupRequest(group_id="g"),
        "GroupService.GetGroup": groups.GetGroupRequest(group_id="g"),
        "GroupService.ListGroups": groups.ListGroupsRequest(),
        "GroupService.ListGroupMembers": groups.ListGroupMembersRequest(group_id="g"),
        "GroupService.DeleteGroup": groups.DeleteGroupRequest(group_id="g"),
        "GroupService.ClaimGroup": groups.ClaimGroupRequest(group_id="g", token="secret"),
        "WorkerService.RevokeTasks": workers.RevokeTasksRequest(task_ids=["t"]),
        "WorkerService.WatchRevocations": workers.WatchRevocationsRequest(sequence=1),
    }
    return {f"resultd.v1.{name}": request for name, request in sound.items()}


TEMPLATES = _templates()


class Case(NamedTuple):
    """One bad request."""

    name: str
    method: str
    spoil: Callable[[Message], None]
    reason: str

    def request(self) -> bytes:
        """Its bytes."""
        return _changed(self.method, self.spoil)


class Edge(NamedTuple):
    """One bound of one field of an RPC's request."""

    method: str
    path: tuple[str, ...]
    bound: Bound

    @property
    def name(self) -> str:
        """The field, and what of it."""
        return f"{'.'.join(self.path)} {self.bound.what}"

    def request(self, size: int) -> bytes:
        """The bytes of a request where it has this size."""
        return _changed(self.method, _spoiler(self.path, self.bound.value(size), self.bound.beside))


def _changed(method: str, change: Callable[[Message], None]) -> bytes:
    request = type(TEMPLATES[method])()
    request.CopyFrom(TEMPLATES[method])
    change(request)
    return request.SerializeToString()


def cases() -> Iterator[Case]:
    """Every field of every RPC's request, spoiled in every way its kind has."""
    for method in METHODS:
        short = method.removeprefix("resultd.v1.")
        for path, field in fields(method):
            kind = KINDS[key(field)]
            name = ".".join(path)
            for what, value, reason in kind.wrong if kind is not None else ():
                yield Case(f"{short} {name} {what}", method, _spoiler(path, value), reason)
    for edge in edges():
        short, bound = edge.method.removeprefix("resultd.v1."), edge.bound
        spoil = _spoiler(edge.path, bound.value(bound.beyond()), bound.beside)
        yield Case(f"{short} {edge.name}: {bound.beyond()}", edge.method, spoil, bound.reason)


def edges(method: str = "") -> Iterator[Edge]:
    """Every bound of every field of an RPC's request; without a name, of all of them."""
    for each in [method] if method else METHODS:
        for path, field in fields(each):
            # A message in its like, failures in failures, is bounded where the first one is.
            kind = KINDS[key(field)] if path[-1:] != path[-2:-1] else None
            for bound in kind.bounds if kind is not None else ():
                yield Edge(each, path, bound)


def described(message: Any) -> Iterator[Field]:
    """The fields of a message's descriptor, and those of the messages in it, once each."""
    found, left = set(), [message]
    while left:
        each = left.pop()
        if each.full_name in found:
            continue
        found.add(each.full_name)
        for field in each.fields:
            yield field
            if _is_ours(field):
                left.append(field.message_type)


def fields(method: str) -> Iterator[tuple[tuple[str, ...], Field]]:
    """The fields of an RPC's request, those of the messages in its template too."""
    template = TEMPLATES[method]
    assert template.DESCRIPTOR.full_name == METHODS[method].input_type.full_name
    yield from _fields(template)


def _fields(message: Message) -> Iterator[tuple[tuple[str, ...], Field]]:
    for field in message.DESCRIPTOR.fields:
        yield (field.name,), field
        if not _is_ours(field):
            continue
        inner = getattr(message, field.name)
        if is_repeated(field):
            inner = inner[0] if len(inner) else None
        elif not message.HasField(field.name):
            inner = None
        if inner is not None:
            for path, found in _fields(inner):
                yield (field.name, *path), found


def _spoiler(
    path: tuple[str, ...], value: object, beside: Callable[[Any], None] | None = None
) -> Callable[[Message], None]:
    def spoil(request: Message) -> None:
        holder: Any = request
        for name in path[:-1]:
            holder = getattr(holder, name)
            if not isinstance(holder, Message):  # a repeated field
                holder = holder[0]
        if beside is not None:
            beside(holder)
        name = path[-1]
        present = dict.fromkeys([field.name for field, _ in holder.ListFields()])
        field = holder.DESCRIPTOR.fields_by_name[name]
        composite = is_repeated(field) or field.message_type is not None
        if name in present and composite:
            holder.ClearField(name)
        if not composite:
            setattr(holder, name, value)
        elif isinstance(value, Message):
            getattr(holder, name).CopyFrom(value)
        elif isinstance(value, dict) and not is_repeated(field):
            getattr(holder, name).SetInParent()
            for key, each in value.items():
                setattr(getattr(holder, name), key, each)
        elif isinstance(value, dict):
            _fill_map(getattr(holder, name), value)
        else:
            getattr(holder, name).extend(value)

    return spoil


def _fill_map(field: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Message):
            field[key].CopyFrom(value)
        else:
            field[key] = value


def key(field: Field) -> str:
    """What it is called in `KINDS`."""
    return f"{field.containing_type.name}.{field.name}"


def is_repeated(field: Field) -> bool:
    """Whether a field is repeated; protobuf's own word for it differs by version."""
    said = descriptor_pb2.DescriptorProto()
    field.containing_type.CopyToProto(said)
    [found] = [each for each in said.field if each.name == field.name]
    return found.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED


def _is_ours(field: Field) -> bool:
    """Whether it holds messages of ours; a map is one field."""
    message = field.message_type
    return bool(
        message is not None
        and not message.GetOptions().map_entry
        and message.full_name.startswith("resultd.")
    )
