"""Bad input, refused at the door: field, problem, remedy. Nothing is stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from resultd.v1 import (
    group_service_pb2,
    result_service_pb2,
    state_pb2,
    task_pb2,
    value_pb2,
    worker_service_pb2,
)
from resultd_server import limits
from resultd_server.errors import FieldInvalid, LimitExceeded, ValueTooLarge
from resultd_server.ledger.claiming import ClaimRequest
from resultd_server.ledger.records import Report, Traits, report_of, traits_of
from resultd_server.ledger.times import to_ms
from resultd_server.ledger.transitions import RANK
from resultd_server.service import claimed, traces

_field_of = itemgetter(0)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CUT = "\n… cut by resultd: {} bytes in all\n"
# CUSTOM and UNSPECIFIED are no states but words of the protocol: whoever likes them may have them.
_BUILT_IN_NAMES = frozenset(name.removeprefix("STATE_") for name in state_pb2.State.keys()) - {
    "CUSTOM",
    "UNSPECIFIED",
}

MEMBER_KINDS = frozenset(task_pb2.MemberKind.values())

_CARRY_FAILURE = frozenset(
    {
        state_pb2.STATE_FAILURE,
        state_pb2.STATE_RETRY,
        state_pb2.STATE_REVOKED,
        state_pb2.STATE_REJECTED,
    }
)


_Expiring = result_service_pb2.StoreResultRequest | group_service_pb2.CreateGroupRequest
_Paced = (
    result_service_pb2.WaitForRequest
    | result_service_pb2.IterateRequest
    | result_service_pb2.WatchRequest
    | worker_service_pb2.WatchRevocationsRequest
)
_Claiming = group_service_pb2.ClaimGroupRequest | result_service_pb2.ClaimOnComplete
_Timed = result_service_pb2.WaitForRequest | result_service_pb2.IterateRequest


def text(field: str, value: str, limit_bytes: int = limits.SHORT_TEXT_BYTES_MAX) -> str:
    """Short text for people."""
    if len(value) > limit_bytes or len(value.encode()) > limit_bytes:
        raise FieldInvalid(field, f"has more than {limit_bytes} bytes of UTF-8", "shorten it")
    return value


def _plain(value: str, limit_bytes: int) -> bool:
    """Whether text is short, ASCII and without control characters: most is, and this is quick."""
    return len(value) <= limit_bytes and value.isascii() and value.isprintable()


def id_(field: str, value: str, remedy: str = "name the task or group") -> str:
    """An id of a task or group. `remedy`: where it is empty."""
    if value and _plain(value, limits.ID_BYTES_MAX):
        return value
    if not value:
        raise FieldInvalid(field, "is empty", remedy)
    text(field, value, limits.ID_BYTES_MAX)
    if _CONTROL.search(value):
        raise FieldInvalid(field, "holds control characters", "use printable characters")
    return value


def ids(field: str, values: Sequence[str], *, empty: bool = False) -> list[str]:
    """Ids of a call, repeats collapsed."""
    if not values and not empty:
        raise FieldInvalid(field, "is empty", "name at least one")
    if len(values) > limits.IDS_PER_CALL:
        raise LimitExceeded(field, len(values), limits.IDS_PER_CALL, "make several calls")
    for value in values:
        id_(field, value)
    return list(dict.fromkeys(values))


def duration_ms(field: str, value: Duration, low_ms: int, high_ms: int) -> int:
    """A Duration within bounds, in milliseconds."""
    in_range = 0 <= value.nanos < 1_000_000_000 and low_ms <= to_ms(value) <= high_ms
    if not in_range:
        raise FieldInvalid(
            field,
            f"is not between {low_ms / 1000:.12g} s and {high_ms / 1000:.12g} s",
            "choose one",
        )
    return to_ms(value)


def ttl_ms(request: _Expiring) -> int:
    """How long to keep something, in milliseconds; 0 for ever."""
    if request.no_expiry:
        if request.HasField("ttl"):
            raise FieldInvalid("ttl", "contradicts no_expiry", "set one of them")
        return 0
    if not request.HasField("ttl"):
        return limits.TTL_DEFAULT_MS
    return duration_ms("ttl", request.ttl, limits.TTL_MIN_MS, limits.TTL_MAX_MS)


def heartbeat_s(request: _Paced) -> float:
    """How often to hear from a quiet stream, in seconds."""
    if not request.HasField("heartbeat"):
        return limits.HEARTBEAT_DEFAULT_S
    low, high = int(limits.HEARTBEAT_MIN_S * 1000), int(limits.HEARTBEAT_MAX_S * 1000)
    return duration_ms("heartbeat", request.heartbeat, low, high) / 1000


def timeout_s(request: _Timed) -> float | None:
    """How long a stream may wait, in seconds; None for no limit of its own."""
    if not request.HasField("timeout"):
        return None
    return duration_ms("timeout", request.timeout, 0, int(limits.TIMEOUT_MAX_S * 1000)) / 1000


def page_size(value: int, default: int = 100, limit: int = limits.PAGE_MAX) -> int:
    """Rows of a page."""
    if value > limit:
        raise LimitExceeded("page_size", value, limit, "ask for smaller pages")
    return value or default


def known_enum(field: str, value: int, values: Iterable[int]) -> None:
    """An enum's number that this version knows."""
    if value not in values:
        raise FieldInvalid(field, f"has the unknown value {value}", "use one the protocol lists")


def claim(
    group_id: str, action: group_service_pb2.ClaimAction.ValueType, said: _Claiming, prefix: str
) -> ClaimRequest:
    """What is asked about a claim. `prefix`: of its fields' names."""
    lease_ms = limits.LEASE_DEFAULT_MS
    if said.HasField("lease"):
        lease_ms = duration_ms(
            f"{prefix}lease", said.lease, limits.LEASE_MIN_MS, limits.LEASE_MAX_MS
        )
    token = id_(f"{prefix}token", said.token, "make one up for each claim, a UUID for instance")
    return ClaimRequest(group_id, action, token, text(f"{prefix}holder", said.holder), lease_ms)


def _claim_of(request: result_service_pb2.StoreResultRequest) -> ClaimRequest:
    group_id = request.meta.group_id
    if not group_id:
        raise FieldInvalid("claim", "has no group", "name meta.group_id too")
    claimed.asked_after(request.claim)
    return claim(group_id, group_service_pb2.CLAIM_ACTION_ACQUIRE, request.claim, "claim.")


def report(request: result_service_pb2.StoreResultRequest) -> Report:
    """A report that makes sense. Cuts what is to be cut."""
    meta = request.meta
    # Every access to a message costs: its fields are asked for once, all together.
    given = meta.ListFields()
    shape = _shape(meta.state, tuple(map(_field_of, given)))
    for position, check, name in shape.checks:
        check(name, given[position][1])
    claim_scope = request.claim_scope
    if claim_scope:
        scope("claim_scope", claim_scope)
    wanted = _claim_of(request) if request.HasField("claim") else None
    found = report_of(meta, ttl_ms(request), claim_scope, shape.traits, wanted)
    if len(found.wire) > limits.RECORD_BYTES_MAX:
        raise ValueTooLarge(
            f"The record of {found.task_id!r}", len(found.wire), limits.RECORD_BYTES_MAX
        )
    return found


def _children(field: str, children: Sequence[task_pb2.Child]) -> None:
    if len(children) > limits.CHILDREN_MAX:
        raise LimitExceeded(field, len(children), limits.CHILDREN_MAX, "put them into a group")
    # All of them together, for there may be many: one by one it takes four times as long.
    found = [child.id for child in children]
    together = "".join(found)
    plain = together.isascii() and together.isprintable() and all(found)
    if not plain or max(map(len, found)) > limits.ID_BYTES_MAX:
        for each in found:
            id_(f"{field}.id", each)
    for kind in {child.kind for child in children}:
        known_enum(f"{field}.kind", kind, MEMBER_KINDS)


def no_control(field: str, value: str) -> None:
    """Text that becomes part of a key."""
    if _CONTROL.search(value):
        raise FieldInvalid(field, "holds control characters", "use printable characters")


def scope(field: str, value: str) -> None:
    """A claim scope; empty for none."""
    text(field, value, limits.ID_BYTES_MAX)
    no_control(field, value)


def index(field: str, value: int) -> int:
    """A member's index."""
    if value > limits.INDEX_MAX:
        raise FieldInvalid(field, f"is more than {limits.INDEX_MAX}", "count from 0")
    return value


def timestamp(field: str, value: Timestamp) -> None:
    """A Timestamp as protobuf defines one, after 1970."""
    if not (0 <= value.seconds <= limits.TIME_MAX_S and 0 <= value.nanos < 1_000_000_000):
        raise FieldInvalid(field, "is not a time since 1970", "leave it out, or send a valid one")


def labels(field: str, values: Mapping[str, str]) -> None:
    """Labels, bounded."""
    if len(values) > limits.LABELS_MAX:
        raise LimitExceeded(field, len(values), limits.LABELS_MAX, "keep fewer")
    size_bytes = len("".join((*values, *values.values())).encode())
    if size_bytes > limits.LABELS_BYTES_MAX:
        raise FieldInvalid(
            field, f"have more than {limits.LABELS_BYTES_MAX} bytes together", "shorten them"
        )


def extra(field: str, values: Mapping[str, value_pb2.Payload]) -> None:
    """What a task system keeps besides, bounded."""
    if len(values) > limits.EXTRA_MAX:
        raise LimitExceeded(field, len(values), limits.EXTRA_MAX, "keep fewer")
    for key, value in values.items():
        if not _plain(key, limits.ID_BYTES_MAX):
            text(f"{field} key", key, limits.ID_BYTES_MAX)
        if value.content_type or value.content_encoding:
            payload(f"{field}[{key!r}]", value)


def payload(field: str, value: value_pb2.Payload) -> None:
    """A payload's description; its bytes are its producer's."""
    content_type, content_encoding = value.content_type, value.content_encoding
    if content_type:
        _content_word(f"{field}.content_type", content_type)
    if content_encoding:
        _content_word(f"{field}.content_encoding", content_encoding)


def _content_word(field: str, value: str) -> None:
    if not _plain(value, limits.CONTENT_TYPE_BYTES_MAX):
        text(field, value, limits.CONTENT_TYPE_BYTES_MAX)
        no_control(field, value)


def _custom_state(field: str, value: str) -> None:
    text(field, value, limits.CUSTOM_STATE_BYTES_MAX)
    no_control(field, value)
    if value in _BUILT_IN_NAMES:
        raise FieldInvalid(
            field, f"is the built-in state {value}", f"say STATE_{value} in meta.state"
        )


def _failure(name: str, failure: value_pb2.Failure) -> None:
    cause, whose = failure, name
    for _ in range(limits.CAUSES_MAX):
        if not cause.type:
            raise FieldInvalid(f"{whose}.type", "is empty", "name the exception's class")
        for field, value in (("type", cause.type), ("module", cause.module),
                             ("language", cause.language)):  # fmt: skip
            text(f"{whose}.{field}", value)
        payload(f"{whose}.args", cause.args)
        cut_traceback(cause)
        if not cause.HasField("cause"):
            return
        cause, whose = cause.cause, f"{whose}.cause"
    raise LimitExceeded(
        f"{name}.cause", limits.CAUSES_MAX + 1, limits.CAUSES_MAX, "keep the newest causes"
    )


def cut_traceback(failure: value_pb2.Failure) -> None:
    """Cuts a traceback to 64 KiB of UTF-8, its end kept: that is where it happened."""
    if len(failure.traceback) * 4 <= limits.TRACEBACK_BYTES_MAX:
        return
    encoded = failure.traceback.encode()
    if len(encoded) <= limits.TRACEBACK_BYTES_MAX:
        return
    mark = _CUT.format(len(encoded)).encode()
    room = limits.TRACEBACK_BYTES_MAX - len(mark)
    head, tail = encoded[: room // 4], encoded[-(room - room // 4) :]
    kept = head.decode(errors="ignore") + mark.decode() + tail.decode(errors="ignore")
    failure.traceback = kept


_FIELDS = task_pb2.TaskMeta.DESCRIPTOR.fields_by_name

_CHECKS: dict[FieldDescriptor, Callable[[str, Any], object]] = {
    _FIELDS[name]: check
    for check, names in (
        (id_, ("task_id", "parent_id", "root_id", "group_id")),
        (_custom_state, ("custom_state",)),
        (text, ("worker", "name", "queue")),
        (index, ("index",)),
        (_children, ("children",)),
        (labels, ("labels",)),
        (extra, ("extra",)),
        (payload, ("value", "args", "kwargs")),
        (_failure, ("failure",)),
        (traces.parent, (traces.PARENT,)),
        (traces.state, (traces.STATE,)),
        (timestamp, ("received_time", "started_time", "done_time")),
    )
    for name in names
}
"""What is asked of the fields that a report has, one by one."""


class _Shape(NamedTuple):
    """What is asked of reports with the same state and the same fields.

    `checks`: (the field's position among them, check, name).
    """

    checks: tuple[tuple[int, Callable[[str, Any], object], str], ...]
    traits: Traits


@lru_cache(maxsize=1_024)  # most reports are like many others
def _shape(state: int, fields: tuple[FieldDescriptor, ...]) -> _Shape:
    """What is to be asked; what state and fields say to each other is found sound here."""
    if state not in RANK:
        problem = f"has the unknown value {state}" if state else "is not said"
        raise FieldInvalid("meta.state", problem, "use a state the protocol lists")
    names = [field.name for field in fields]
    _together(state, names)
    checks = [
        (position, _CHECKS[field], f"meta.{field.name}")
        for position, field in enumerate(fields)
        if field in _CHECKS
    ]
    return _Shape(tuple(checks), traits_of(state, fields))


def _together(state: int, names: Sequence[str]) -> None:
    """What a report must have, and may not, beside its state and its other fields."""
    state_name = state_pb2.State.Name(state)  # type: ignore[arg-type]  # known: it has a rank
    carries_failure = state in _CARRY_FAILURE
    custom = state == state_pb2.STATE_CUSTOM
    rules = (
        ("task_id" not in names, "task_id", "is empty", "name the task or group"),
        (custom and "custom_state" not in names, "custom_state", "is empty", "name the state"),
        (
            not custom and "custom_state" in names,
            *("custom_state", "goes with STATE_CUSTOM only"),
            "clear it, or say STATE_CUSTOM",
        ),
        (
            carries_failure and state != state_pb2.STATE_REJECTED and "value" in names,
            *("value", f"contradicts {state_name}"),
            "say what went wrong in meta.failure",
        ),
        (
            state == state_pb2.STATE_SUCCESS and "value" not in names,
            *("value", "is missing"),
            "a SUCCESS has a value: JSON null where there is none",
        ),
        (
            not carries_failure and "failure" in names,
            *("failure", f"contradicts {state_name}"),
            "report FAILURE, RETRY, REVOKED or REJECTED with it",
        ),
        (
            state == state_pb2.STATE_FAILURE and "failure" not in names,
            *("failure", "is missing"),
            "a FAILURE says why: type and message",
        ),
        (
            traces.STATE in names and traces.PARENT not in names,
            *(traces.STATE, "has no traceparent"),
            "send both, or none",
        ),
        (
            "index" in names and "group_id" not in names,
            *("index", "has no group"),
            "name meta.group_id too",
        ),
    )
    for wrong, name, problem, remedy in rules:
        if wrong:
            raise FieldInvalid(f"meta.{name}", problem, remedy)
