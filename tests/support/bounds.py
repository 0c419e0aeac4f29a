"""Bounds of a request's fields, and the four sizes at which each is looked at.

`resultd_server.limits` has the numbers; here stands which constant bounds what, and a value
of any size for it. `tests.support.request_fields` says which field has which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from resultd.v1 import group_pb2, result_service_pb2, state_pb2, task_pb2, value_pb2
from resultd_server import limits

FIELD, LIMIT = "FIELD_INVALID", "LIMIT_EXCEEDED"
UINT32_MAX = 2**32 - 1


class Bound(NamedTuple):
    """What bounds a field.

    `value`: the field's content at a size, in the constant's unit (milliseconds, where the
    constant counts seconds). `beside`: what the message around needs to be sound with it.
    `least`: less is refused, not more. `sayable`: the most that a request can say, where that
    is less than ten times as much.
    """

    what: str
    constant: str
    value: Callable[[int], object]
    reason: str = FIELD
    beside: Callable[[Any], None] | None = None
    least: bool = False
    sayable: int | None = None
    per_unit: int = 1

    def points(self) -> dict[str, tuple[int, str]]:
        """Size and reason of the refusal, "" for none, at L-1, L, L+1 and 10 L."""
        limit = int(getattr(limits, self.constant) * self.per_unit)
        far = min(10 * limit, self.sayable or 10 * limit)
        if self.least:
            near = {"L-1": (limit - 1, self.reason), "L": (limit, ""), "L+1": (limit + 1, "")}
            return {**near, "10L": (far, "")}
        near = {"L-1": (limit - 1, ""), "L": (limit, ""), "L+1": (limit + 1, self.reason)}
        return {**near, "10L": (far, self.reason)}

    def beyond(self) -> int:
        """The nearest size that is refused."""
        return self.points()["L-1" if self.least else "L+1"][0]


def text(constant: str, beside: Callable[[Any], None] | None = None) -> Bound:
    """Bytes of a text."""
    return Bound("bytes", constant, "x".__mul__, beside=beside)


def wide(bound: Bound) -> Bound:
    """The same of a text whose characters have two bytes: bytes are counted."""
    return bound._replace(what=f"{bound.what} of é", value=_wide)


def _wide(size: int) -> str:
    return "é" * (size // 2) + "x" * (size % 2)


def number(constant: str, reason: str = FIELD) -> Bound:
    """A number that is said."""
    return Bound("number", constant, int, reason, sayable=UINT32_MAX)


def many(constant: str, value: Callable[[int], object]) -> Bound:
    """How many."""
    return Bound("count", constant, value, LIMIT)


def duration(ms: int) -> dict[str, int]:
    """A Duration's fields."""
    return {"seconds": int(ms / 1000), "nanos": int(ms % 1000) * 10**6 if ms > 0 else ms * 10**6}


def between(least: str, most: str) -> tuple[Bound, Bound]:
    """A Duration from one constant to another."""
    return Bound("least time", least, duration, least=True, per_unit=_ms(least)), at_most(most)


def at_most(constant: str) -> Bound:
    """A Duration, however short."""
    return Bound("time", constant, duration, per_unit=_ms(constant))


def _ms(constant: str) -> int:
    return 1 if constant.endswith("_MS") else 1_000


def _payloads(count: int) -> dict[str, value_pb2.Payload]:
    return {f"k{number}": value_pb2.Payload() for number in range(count)}


def _groups(count: int) -> list[result_service_pb2.GroupWatch]:
    return [result_service_pb2.GroupWatch(group_id=f"g{number}") for number in range(count)]


def _members(count: int) -> list[group_pb2.GroupMember]:
    return [group_pb2.GroupMember(id=f"t{number}") for number in range(count)]


def _causes(levels: int) -> value_pb2.Failure:
    """The cause of a failure that makes, with it, so many."""
    inmost = value_pb2.Failure(type="E")
    for _ in range(levels - 2):
        inmost = value_pb2.Failure(type="E", cause=inmost)
    return inmost


def _custom(meta: task_pb2.TaskMeta) -> None:
    meta.ClearField("failure")
    meta.state = state_pb2.STATE_CUSTOM


def _traced(meta: task_pb2.TaskMeta) -> None:
    meta.traceparent = f"00-{'1' * 32}-{'1' * 16}-01"


ID = text("ID_BYTES_MAX")
IDS = (
    Bound("bytes of one", "ID_BYTES_MAX", lambda size: ["t", "x" * size]),
    Bound("bytes of one of é", "ID_BYTES_MAX", lambda size: ["t", _wide(size)]),
    many("IDS_PER_CALL", lambda count: [f"t{number}" for number in range(count)]),
)
TEXT = text("SHORT_TEXT_BYTES_MAX")
CONTENT = text("CONTENT_TYPE_BYTES_MAX")
SIGNAL = text("SIGNAL_BYTES_MAX")
CUSTOM_STATE = text("CUSTOM_STATE_BYTES_MAX", _custom)
TRACESTATE = text("TRACESTATE_CHARS_MAX", _traced)
TIME = Bound("seconds", "TIME_MAX_S", lambda seconds: {"seconds": seconds})
AFTER = Bound("bytes of its id", "ID_BYTES_MAX", lambda size: b"\1" + b"\0" * 20 + b"t" * size)
LABELS = (
    many("LABELS_MAX", lambda count: {f"k{number}": "v" for number in range(count)}),
    Bound("bytes", "LABELS_BYTES_MAX", lambda size: {"key": "v" * (size - len("key"))}),
)
EXTRA = (
    many("EXTRA_MAX", _payloads),
    Bound("bytes of a key", "ID_BYTES_MAX", lambda size: {"k" * size: value_pb2.Payload()}),
    Bound(
        "bytes of a content type",
        "CONTENT_TYPE_BYTES_MAX",
        lambda size: {"k": value_pb2.Payload(content_type="x" * size)},
    ),
    Bound(
        "bytes of a content encoding",
        "CONTENT_TYPE_BYTES_MAX",
        lambda size: {"k": value_pb2.Payload(content_encoding="x" * size)},
    ),
)
CHILDREN = many("CHILDREN_MAX", lambda count: [task_pb2.Child(id="c")] * count)
MEMBERS = many("IDS_PER_CALL", _members)
GROUPS = many("WATCHED_GROUPS_PER_MESSAGE", _groups)
REPORTS = many("REPORTS_PER_BATCH", lambda count: [result_service_pb2.StoreResultRequest()] * count)
STATES = many("STATES_PER_CALL", lambda count: [state_pb2.STATE_SUCCESS] * count)
# protobuf takes no more than 100 levels apart, nor puts them together.
CAUSES = Bound("levels", "CAUSES_MAX", _causes, LIMIT, sayable=90)
