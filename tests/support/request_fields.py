"""Every field of every request, with what is wrong in it: bad input made from the
descriptors, so that a new RPC or field cannot be forgotten.

`TEMPLATES` holds one sound request for each RPC, with every message in it set; `KINDS`
says for every field what it may hold. Both are complete, or the tests fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

FIELD, LIMIT = "FIELD_INVALID", "LIMIT_EXCEEDED"
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


def _too_long(limit: int) -> list[Wrong]:
    # é has two bytes: bytes are counted, not characters.
    wide = "é" * (limit // 2) + "xx"[: 1 + limit % 2]
    return [
        ("one byte too long", "x" * (limit + 1), FIELD),
        ("too many bytes in few characters", wide, FIELD),
    ]


_CONTROL: list[Wrong] = [
    (f"holds {char!r}", f"a{char}b", FIELD) for char in "\0\n\t\r\x1b\x1f\x7f\x80\x9f"
]
OPTIONAL_ID = [*_too_long(limits.ID_BYTES_MAX), *_CONTROL]
ID: list[Wrong] = [("is empty", "", FIELD), *OPTIONAL_ID]
IDS: list[Wrong] = [
    *((f"one {what}", ["t", value], reason) for what, value, reason in ID),
    ("10,001 of them", [f"t{n}" for n in range(limits.IDS_PER_CALL + 1)], LIMIT),
    ("10,001 times the same", ["t"] * (limits.IDS_PER_CALL + 1), LIMIT),
]
SOME_IDS: list[Wrong] = [("none", [], FIELD), *IDS]
TEXT = _too_long(limits.SHORT_TEXT_BYTES_MAX)
SCOPE = [*_too_long(limits.ID_BYTES_MAX), *_CONTROL]
CONTENT = [*_too_long(limits.CONTENT_TYPE_BYTES_MAX), *_CONTROL]
ENUM: list[Wrong] = [("unknown value", 99, FIELD), ("negative value", -1, FIELD)]
INDEX: list[Wrong] = [("too large", 2**31, FIELD)]
TOKEN: list[Wrong] = [("not base64", "§§", FIELD), ("cut", "abc", FIELD)]
MEMBERS_TOKEN: list[Wrong] = [*TOKEN, ("of another list", "YWJj", FIELD)]
AFTER: list[Wrong] = [
    ("too short", b"\1", FIELD),
    ("of another order", b"\7" + b"\0" * 20 + b"t", FIELD),
    ("not UTF-8", b"\1" + b"\0" * 20 + b"\xff", FIELD),
    ("too long", b"\1" + b"\0" * 20 + b"t" * 300, FIELD),
]
TIME: list[Wrong] = [
    ("before 1970", {"seconds": -1}, FIELD),
    ("after year 9999", {"seconds": 253_402_300_800}, FIELD),
    ("negative nanoseconds", {"nanos": -1}, FIELD),
    ("a second of nanoseconds", {"nanos": 10**9}, FIELD),
]
LABELS: list[Wrong] = [
    ("65 of them", {f"k{n}": "v" for n in range(65)}, LIMIT),
    ("over 4 KiB", {"k": "v" * 4_096}, FIELD),
]
EXTRA: list[Wrong] = [
    ("65 of them", {f"k{n}": value_pb2.Payload() for n in range(65)}, LIMIT),
    ("key too long", {"k" * 256: value_pb2.Payload()}, FIELD),
    ("content type too long", {"k": value_pb2.Payload(content_type="x" * 256)}, FIELD),
]
ANYTHING: list[Wrong] = []
"""Any value will do; its size counts only towards the whole."""
OUTPUT: list[Wrong] = []
"""What a report says here is ignored."""
INSIDE = None
"""A message: what may be wrong is wrong inside."""


def between(low_s: float, high_s: float) -> list[Wrong]:
    """A Duration within bounds."""
    low, high = int(low_s * 1000) - 1, int(high_s * 1000) + 1
    return [
        ("a millisecond too short", _duration(low), FIELD),
        ("a millisecond too long", _duration(high), FIELD),
        ("negative", {"seconds": -1}, FIELD),
        ("negative nanoseconds", {"seconds": int(low_s), "nanos": -1}, FIELD),
        ("a second of nanoseconds", {"seconds": int(low_s), "nanos": 10**9}, FIELD),
        ("as long as can be said", {"seconds": 2**62}, FIELD),
    ]


def _duration(ms: int) -> dict[str, int]:
    return {"seconds": int(ms / 1000), "nanos": int(ms % 1000) * 10**6 if ms > 0 else ms * 10**6}


def at_most(limit: int) -> list[Wrong]:
    """A count."""
    return [("one too many", limit + 1, LIMIT), ("as many as can be said", 2**32 - 1, LIMIT)]


_HEARTBEAT = between(1, 240)
_TIMEOUT: list[Wrong] = [wrong for wrong in between(0, 366 * 86_400) if "short" not in wrong[0]]
_TTL: list[Wrong] = between(1, 10 * 366 * 86_400)
_TOO_MANY_MEMBERS: list[Wrong] = [
    ("10,001 of them", [group_pb2.GroupMember(id="t")] * 10_001, LIMIT)
]

KINDS: dict[str, list[Wrong] | None] = {
    "StoreResultRequest.meta": INSIDE,
    "StoreResultRequest.ttl": _TTL,
    "StoreResultRequest.no_expiry": [("together with a ttl", True, FIELD)],
    "StoreResultRequest.claim_scope": SCOPE,
    "BatchStoreResultsRequest.reports": [
        ("1,001 of them", [result_service_pb2.StoreResultRequest()] * 1_001, LIMIT)
    ],
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
    "IterateRequest.require_known": [("with an unknown group", True, "GROUP_NOT_FOUND")],
    "IterateRequest.heartbeat": _HEARTBEAT,
    "IterateRequest.timeout": _TIMEOUT,
    "WatchRequest.add_task_ids": IDS,
    "WatchRequest.remove_task_ids": IDS,
    "WatchRequest.add_groups": [
        ("1,001 of them", [result_service_pb2.GroupWatch(group_id="g")] * 1_001, LIMIT)
    ],
    "WatchRequest.remove_group_ids": IDS,
    "WatchRequest.sequence": ANYTHING,
    "WatchRequest.transitions": ANYTHING,
    "WatchRequest.on_gone": ENUM,
    "WatchRequest.heartbeat": _HEARTBEAT,
    "GroupWatch.group_id": ID,
    "GroupWatch.after": AFTER,
    "ForgetResultsRequest.task_ids": IDS,
    "ListResultsRequest.states": [("an unknown state", [99], FIELD)],
    "ListResultsRequest.name": TEXT,
    "ListResultsRequest.group_id": OPTIONAL_ID,
    "ListResultsRequest.since": TIME,
    "ListResultsRequest.page_size": at_most(1_000),
    "ListResultsRequest.page_token": TOKEN,
    "CreateGroupRequest.group_id": ID,
    "CreateGroupRequest.members": _TOO_MANY_MEMBERS,
    "CreateGroupRequest.continuation": INSIDE,
    "CreateGroupRequest.claim_scope": SCOPE,
    "CreateGroupRequest.ttl": _TTL,
    "CreateGroupRequest.no_expiry": [("together with a ttl", True, FIELD)],
    "CreateGroupRequest.labels": LABELS,
    "CreateGroupRequest.extra": EXTRA,
    "CreateGroupRequest.seal": ANYTHING,
    "CreateGroupRequest.new_epoch": ANYTHING,
    "AddGroupMembersRequest.group_id": [*ID, ("unknown", "g", "GROUP_NOT_FOUND")],
    "AddGroupMembersRequest.members": _TOO_MANY_MEMBERS,
    "AddToTotalRequest.group_id": [*ID, ("unknown", "g", "GROUP_NOT_FOUND")],
    "AddToTotalRequest.delta": [("zero", 0, FIELD), ("too much", 1_000_001, FIELD)],
    "AddToTotalRequest.request_id": ID,
    "SealGroupRequest.group_id": [*ID, ("unknown", "g", "GROUP_NOT_FOUND")],
    "SealGroupRequest.expected_total": INDEX,
    "GetGroupRequest.group_id": ID,
    "ListGroupsRequest.incomplete": ANYTHING,
    "ListGroupsRequest.claimable": ANYTHING,
    "ListGroupsRequest.unchanged_since": TIME,
    "ListGroupsRequest.claim_scope": SCOPE,
    "ListGroupsRequest.page_size": at_most(1_000),
    "ListGroupsRequest.page_token": TOKEN,
    "ListGroupMembersRequest.group_id": [*ID, ("unknown", "g", "GROUP_NOT_FOUND")],
    "ListGroupMembersRequest.page_size": at_most(10_000),
    "ListGroupMembersRequest.page_token": ANYTHING,  # looked at when there is a group
    "DeleteGroupRequest.group_id": ID,
    "ClaimGroupRequest.group_id": [*ID, ("unknown", "g", "GROUP_NOT_FOUND")],
    "ClaimGroupRequest.action": ENUM,
    "ClaimGroupRequest.lease": between(1, 3_600),
    "ClaimGroupRequest.token": ID,
    "ClaimGroupRequest.holder": TEXT,
    "ClaimGroupRequest.with_members": ANYTHING,
    "RevokeTasksRequest.task_ids": SOME_IDS,
    "RevokeTasksRequest.terminate": ANYTHING,
    "RevokeTasksRequest.signal": [*_too_long(32), *_CONTROL],
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
    "TaskMeta.state": [*ENUM, ("not said", 0, FIELD)],
    "TaskMeta.custom_state": [("beside a built-in state", "MINE", FIELD)],
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
    "TaskMeta.group_id": [*OPTIONAL_ID, ("missing beside an index", "", FIELD)],
    "TaskMeta.index": INDEX,
    "TaskMeta.children": [("10,001 of them", [task_pb2.Child(id="t")] * 10_001, LIMIT)],
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
    "TaskMeta.traceparent": [
        ("no traceparent", "00-1-2-01", FIELD),
        ("a trace of zeros", f"00-{'0' * 32}-{'1' * 16}-01", FIELD),
    ],
    "TaskMeta.tracestate": [("beside no traceparent", "a=b", FIELD), *_CONTROL],
    "Child.id": ID,
    "Child.kind": ENUM,
    "Payload.content_type": CONTENT,
    "Payload.content_encoding": CONTENT,
    "Payload.data": [
        ("3 MiB and a bit", b"x" * (3 * limits.MIB + 1), "VALUE_TOO_LARGE"),
        ("over gRPC's default limit", b"x" * (5 * limits.MIB), "VALUE_TOO_LARGE"),
    ],
    "Failure.type": [("is empty", "", FIELD), *TEXT],
    "Failure.module": TEXT,
    "Failure.message": ANYTHING,
    "Failure.args": INSIDE,
    "Failure.traceback": ANYTHING,  # cut, not refused
    "Failure.cause": INSIDE,
    "Failure.language": TEXT,
    "Failure.retryable": ANYTHING,
    "Progress.current": ANYTHING,
    "Progress.total": ANYTHING,
    "Progress.message": ANYTHING,
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
        "ResultService.Watch": results.WatchRequest(add_groups=[results.GroupWatch(group_id="g")]),
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
        "WorkerService.WatchRevocations": workers.WatchRevocationsRequest(),
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
        request = type(TEMPLATES[self.method])()
        request.CopyFrom(TEMPLATES[self.method])
        self.spoil(request)
        return request.SerializeToString()


def cases() -> Iterator[Case]:
    """Every field of every RPC's request, spoiled in every way its kind has."""
    for method, descriptor in METHODS.items():
        template = TEMPLATES[method]
        assert template.DESCRIPTOR.full_name == descriptor.input_type.full_name
        short = method.removeprefix("resultd.v1.")
        for path, field in _fields(template):
            name = ".".join(path)
            for what, value, reason in KINDS[_key(field)] or ():
                yield Case(f"{short} {name} {what}", method, _spoiler(path, value), reason)


def _fields(message: Message) -> Iterator[tuple[tuple[str, ...], Field]]:
    for field in message.DESCRIPTOR.fields:
        yield (field.name,), field
        if field.message_type is None or _is_map(field) or _foreign(field.message_type):
            continue
        inner = getattr(message, field.name)
        if is_repeated(field):
            inner = inner[0] if len(inner) else None
        elif not message.HasField(field.name):
            inner = None
        if inner is not None:
            for path, found in _fields(inner):
                yield (field.name, *path), found


def _spoiler(path: tuple[str, ...], value: object) -> Callable[[Message], None]:
    def spoil(request: Message) -> None:
        holder: Any = request
        for name in path[:-1]:
            holder = getattr(holder, name)
            if not isinstance(holder, Message):  # a repeated field
                holder = holder[0]
        name = path[-1]
        present = dict.fromkeys([field.name for field, _ in holder.ListFields()])
        field = holder.DESCRIPTOR.fields_by_name[name]
        composite = is_repeated(field) or field.message_type is not None
        if name in present and composite:
            holder.ClearField(name)
        if not composite:
            setattr(holder, name, value)
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


def _key(field: Field) -> str:
    return f"{field.containing_type.name}.{field.name}"


def is_repeated(field: Field) -> bool:
    """Whether a field is repeated; protobuf's own word for it differs by version."""
    said = descriptor_pb2.DescriptorProto()
    field.containing_type.CopyToProto(said)
    [found] = [each for each in said.field if each.name == field.name]
    return found.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED


def _is_map(field: Field) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _foreign(message: Any) -> bool:
    return not message.full_name.startswith("resultd.")
