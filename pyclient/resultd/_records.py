"""Between Python values and the messages of the protocol: reports going out, records coming in."""

from __future__ import annotations

import datetime
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from resultd import _failures, _tracing, states
from resultd.errors import ResultdError, SerializationError, TaskError
from resultd.serialization import Registry
from resultd.v1 import group_service_pb2, result_service_pb2, state_pb2, task_pb2

if TYPE_CHECKING:
    from typing_extensions import TypedDict

    class ReportFields(TypedDict, total=False):
        """The keyword arguments of `store_result`; what each means is said in `Report`."""

        traceback: object
        attempt: int
        children: Iterable[Any] | None
        parent_id: str | None
        root_id: str | None
        group_id: str | None
        index: int | None
        progress: Progress | tuple[int, int] | tuple[int, int, str] | None
        ttl: float | datetime.timedelta | None
        name: str | None
        args: Any
        kwargs: Any
        worker: str | None
        queue: str | None
        retries: int
        labels: Mapping[str, str] | None
        claim_scope: str | None
        claim: str | None


_STATE_NUMBERS: dict[str, state_pb2.State.ValueType] = {
    name.removeprefix("STATE_"): number for name, number in state_pb2.State.items() if number
}
del _STATE_NUMBERS["CUSTOM"]  # not a state of its own: custom states have their names
_STATE_NAMES: dict[int, str] = {number: name for name, number in _STATE_NUMBERS.items()}
_EXISTENCES: dict[int, str] = {
    number: name.removeprefix("EXISTENCE_") if number else ""
    for name, number in state_pb2.Existence.items()
}
_FAILURE_STATES = frozenset({states.FAILURE, states.RETRY, states.REVOKED})
_OUTCOME_BYTES_MAX = 32  # kept: answers without groups, and with few of short names
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_INT64_MAX = 2**63 - 1


class Progress(NamedTuple):
    """How far a task has come; `total` is 0 if nobody knows."""

    current: int
    total: int = 0
    message: str = ""


# What a report has in fields of the same name, set only where there is something to say.
_PLAIN_FIELDS = (
    "attempt", "worker", "name", "queue", "retries", "parent_id", "root_id", "group_id",
)  # fmt: skip


@dataclass
class Report:
    """What a worker says about a task: one element of `store_results`.

    Attributes:
        task_id: chosen by the producer: 1 to 255 bytes of UTF-8, no control characters.
        result: the value; with FAILURE, RETRY and REVOKED the exception, or its message.
        state: a state's name; names that Celery does not have are kept as they are.
        traceback: text that goes before the exception's own.
        attempt: 1, 2, ... for each time the task is tried; 0 if nobody counts.
        children: results, ids or tuples of what the task called.
        group_id, index: the group it is a member of, and its place there.
        progress: how far it has come; taken from `result` if that is a dict with ints
            `current` and `total`.
        ttl: seconds to keep the record after this report, `math.inf` for ever, None for the
            server's default of a day.
        labels: for people and filters.
        claim_scope: whose complete groups the answer should name.
        claim: a token of its own, to claim the group it names for 30 s, should that be complete
            with this report: `group.claim(token)` renews it, `group.claim_done(token)` ends it.
    """

    task_id: str
    result: Any = None
    state: str = states.SUCCESS
    traceback: object = None
    attempt: int = 0
    children: Iterable[Any] | None = None
    parent_id: str | None = None
    root_id: str | None = None
    group_id: str | None = None
    index: int | None = None
    progress: Progress | tuple[int, int] | tuple[int, int, str] | None = None
    ttl: float | datetime.timedelta | None = None
    name: str | None = None
    args: Any = None
    kwargs: Any = None
    worker: str | None = None
    queue: str | None = None
    retries: int = 0
    labels: Mapping[str, str] | None = None
    claim_scope: str | None = None
    claim: str | None = None

    @classmethod
    def of(cls, item: Report | Mapping[str, Any] | tuple[Any, ...]) -> Report:
        """Take a report, a mapping of its fields, or a tuple (task_id, result, state)."""
        if isinstance(item, Report):
            return item
        return cls(**item) if isinstance(item, Mapping) else cls(*item[:3])

    def request(self, registry: Registry, serializer: str) -> result_service_pb2.StoreResultRequest:
        """Write the message that stores this report.

        Raises:
            SerializationError: the value cannot be encoded.
            TypeError, ValueError: a field is not what it should be.
        """
        request = result_service_pb2.StoreResultRequest(**ttl_fields(self.ttl))
        meta = request.meta  # written in place: a message that is handed in is copied
        meta.task_id = self.task_id
        for field in _PLAIN_FIELDS:
            if value := getattr(self, field):
                setattr(meta, field, value)
        if self.index is not None:
            meta.index = self.index
        if self.labels:
            meta.labels.update(self.labels)
        if self.children:
            meta.children.extend(map(child, self.children))
        _tracing.stamp(meta)
        self._write_state(meta)
        self._write_outcome(meta, registry, serializer)
        if self.args is not None:
            registry.encode_into(meta.args, self.args, serializer)
        if self.kwargs is not None:
            registry.encode_into(meta.kwargs, self.kwargs, serializer)
        if self.claim_scope:
            request.claim_scope = self.claim_scope
        if self.claim:
            request.claim.token = self.claim
            request.claim.holder = self.worker or ""
        return request

    def _write_state(self, meta: task_pb2.TaskMeta) -> None:
        if not self.state:
            raise ValueError("a report names a state: 'SUCCESS', 'FAILURE', 'STARTED', ...")
        meta.state, meta.custom_state = state_fields(self.state)

    def _write_outcome(self, meta: task_pb2.TaskMeta, registry: Registry, serializer: str) -> None:
        rejected = self.state == states.REJECTED and isinstance(self.result, BaseException)
        if self.state in _FAILURE_STATES or rejected:
            meta.failure.CopyFrom(_failures.failure_from(self.result, self.traceback))
        elif self.state == states.SUCCESS or (
            self.result is not None and self.state != states.IGNORED
        ):
            registry.encode_into(meta.value, self.result, serializer)
        progress = self.progress or _progress_in(self.result)
        if progress is not None:
            current, total, message = Progress(*progress)
            meta.progress.current, meta.progress.total = current, total
            meta.progress.message = message


class StoreOutcome(NamedTuple):
    """What became of a report.

    Attributes:
        disposition: "APPLIED", "DUPLICATE" or "SUPERSEDED"; "" where `error` is set.
        state: the record's state now.
        version: the record's version now.
        membership: what the report meant to its group: "COUNTED", "ALREADY", "PENDING",
            "NOT_A_MEMBER", "SEALED", "INDEX_TAKEN"; "" if it names none.
        complete_group_ids: groups of this task that are complete and not acted on yet.
        claimable_group_ids: complete groups of the caller's scope whose claim is free.
        cancel_requested: somebody wants this task to stop.
        groups_omitted: there are groups to name, or a claim to tell, but the answer to the batch
            had no room left: a repeat of the report by itself does.
        error: of a batch: why this report was refused.
        claim: what came of the claim it asked for: "GRANTED", "HELD" by another or "DONE"; ""
            while the group is not complete, or unless the answer to the batch had room.
    """

    disposition: str = ""
    state: str = ""
    version: int = 0
    membership: str = ""
    complete_group_ids: tuple[str, ...] = ()
    claimable_group_ids: tuple[str, ...] = ()
    cancel_requested: bool = False
    groups_omitted: bool = False
    error: ResultdError | None = None
    claim: str = ""


def store_outcome(response: result_service_pb2.StoreResultResponse) -> StoreOutcome:
    """Read the answer to a report."""
    if response.ByteSize() > _OUTCOME_BYTES_MAX:
        return _outcome(response)
    return _outcome_of(response.SerializeToString())


@functools.lru_cache(maxsize=256)  # most reports are answered alike: APPLIED, SUCCESS, version 1
def _outcome_of(response: bytes) -> StoreOutcome:
    return _outcome(result_service_pb2.StoreResultResponse.FromString(response))


def _outcome(response: result_service_pb2.StoreResultResponse) -> StoreOutcome:
    return StoreOutcome(
        disposition=enum_name(result_service_pb2.Disposition, response.disposition),
        state=state_name(response.state, response.custom_state),
        version=response.version,
        membership=enum_name(result_service_pb2.Membership, response.membership),
        complete_group_ids=tuple(response.complete_group_ids),
        claimable_group_ids=tuple(response.claimable_group_ids),
        cancel_requested=response.cancel_requested,
        groups_omitted=response.groups_omitted,
        claim=enum_name(group_service_pb2.ClaimOutcome, response.claim.outcome),
    )


def state_fields(name: str) -> tuple[state_pb2.State.ValueType, str]:
    """Return what stands for a state in a message: its number and its custom name."""
    number = _STATE_NUMBERS.get(name)
    if number is None:
        return state_pb2.STATE_CUSTOM, name
    return number, ""


def state_name(number: int, custom: str = "") -> str:
    """Return a state's name; of a number that a newer server may send, "STATE_<number>"."""
    if number in (state_pb2.STATE_CUSTOM, state_pb2.STATE_UNSPECIFIED):
        return custom or states.PENDING
    return _STATE_NAMES.get(number) or f"STATE_{number}"


def ttl_fields(ttl: float | datetime.timedelta | None) -> dict[str, Any]:
    """Return the fields of a request that say how long to keep something."""
    if ttl is None:
        return {}
    seconds = ttl.total_seconds() if isinstance(ttl, datetime.timedelta) else float(ttl)
    if math.isinf(seconds) and seconds > 0:
        return {"no_expiry": True}
    if not seconds >= 0:
        raise ValueError(f"a ttl is seconds, math.inf for ever, None for a day; not {ttl!r}")
    return {"ttl": duration(seconds)}


def duration(seconds: float) -> Duration:
    """Write seconds as a message."""
    whole = int(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def timestamp(when: datetime.datetime | float) -> Timestamp:
    """Write a time as a message; a datetime without zone is local time, as Python has it."""
    seconds = when.timestamp() if isinstance(when, datetime.datetime) else when
    return Timestamp(seconds=math.floor(seconds), nanos=int(seconds % 1 * 1e9))


def moment(message: Any, field: str) -> datetime.datetime | None:
    """Read a time of a message, in UTC; None if it is not set."""
    if not message.HasField(field):
        return None
    stamp = getattr(message, field)
    return _EPOCH + datetime.timedelta(0, stamp.seconds, stamp.nanos // 1000)


def meta_dict(meta: task_pb2.TaskMeta, registry: Registry) -> dict[str, Any]:
    """Read a record into the dict that Celery calls a task's meta, and some keys more.

    A value that cannot be decoded stands as the error that says why, so that one bad record
    does not spoil a batch; `get()` raises it.
    """
    state = state_name(meta.state, meta.custom_state)
    failure = meta.failure if meta.HasField("failure") else None
    found: dict[str, Any] = {
        "task_id": meta.task_id,
        "status": state,
        "result": result(meta, state, registry),
        "traceback": (failure.traceback or None) if failure else None,
        "children": [(child.id, child.kind) for child in meta.children],
        "date_done": moment(meta, "done_time"),
        "terminal": meta.terminal,
        "existence": _EXISTENCES.get(meta.existence, ""),
        "progress": None,
        "attempt": meta.attempt,
        "version": meta.version,
        "labels": dict(meta.labels) if meta.labels else {},
        "traceparent": meta.traceparent or None,
        "tracestate": meta.tracestate or None,
        "index": meta.index if meta.HasField("index") else None,
        "name": meta.name or None,
        "worker": meta.worker or None,
        "queue": meta.queue or None,
        "parent_id": meta.parent_id or None,
        "root_id": meta.root_id or None,
        "group_id": meta.group_id or None,
        "args": _decoded(meta.args, registry) if meta.HasField("args") else None,
        "kwargs": _decoded(meta.kwargs, registry) if meta.HasField("kwargs") else None,
    }
    found["retries"] = meta.retries if found["existence"] == "KNOWN" else None
    if meta.HasField("progress"):
        shown = meta.progress
        found["progress"] = Progress(shown.current, shown.total, shown.message)
    return found


def result(meta: task_pb2.TaskMeta, state: str, registry: Registry) -> Any:
    """Read a record's value or, as exceptions, what went wrong: with it, or with reading it."""
    if state == states.REVOKED:
        return _failures.revoked_from(meta.failure if meta.HasField("failure") else None, registry)
    if meta.HasField("failure"):
        return _failures.exception_from(meta.failure, registry)
    if state in (states.FAILURE, states.RETRY):
        return TaskError("UnknownError", f"the {state} report said nothing more")
    return _decoded(meta.value, registry) if meta.HasField("value") else None


def _decoded(payload: Any, registry: Registry) -> Any:
    try:
        return registry.decode(payload)
    except SerializationError as error:
        return error


def child(item: Any) -> task_pb2.Child:
    """Read a child given as a result, an id, an (id, kind) pair, or a result's tuple."""
    kind = task_pb2.MEMBER_KIND_TASK
    if isinstance(item, (tuple, list)) and len(item) == 2:
        head, nodes = item
        if isinstance(nodes, int):
            kind = task_pb2.MemberKind.ValueType(nodes)
        elif nodes is not None:
            kind = task_pb2.MEMBER_KIND_GROUP
        item = head[0] if isinstance(head, (tuple, list)) else head
    elif hasattr(item, "results"):
        kind = task_pb2.MEMBER_KIND_GROUP
    return task_pb2.Child(id=item if isinstance(item, str) else item.id, kind=kind)


def _progress_in(result: object) -> Progress | None:
    if type(result) is str or not isinstance(result, Mapping):  # the first spares the second
        return None
    current, total = result.get("current"), result.get("total")
    for number in (current, total):
        if type(number) is not int or abs(number) > _INT64_MAX:  # bool is no number here
            return None
    return Progress(current, total)  # type: ignore[arg-type]  # checked in the loop


@functools.lru_cache(maxsize=256)
def enum_name(enum: Any, number: int) -> str:
    """Return an enum value's name without its prefix, "" for 0 and unknown numbers."""
    value = enum.DESCRIPTOR.values_by_number.get(number)
    if value is None or number == 0:
        return ""
    zero: str = enum.DESCRIPTOR.values_by_number[0].name
    name: str = value.name
    return name.removeprefix(zero.removesuffix("UNSPECIFIED"))


def is_group(kind: int) -> bool:
    """Whether a member or child of this kind is a group."""
    return kind == task_pb2.MEMBER_KIND_GROUP
