"""Elements of lists and maps are counted in bytes as protobuf would count them."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError, Message

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import task_pb2
from resultd_server import limits
from resultd_server.errors import LimitExceeded
from resultd_server.ledger.wire import message_field
from resultd_server.service import elements
from tests.support import reports
from tests.support.raw_calls import call
from tests.support.refusals import taken_apart
from tests.support.request_fields import METHODS, TEMPLATES, is_repeated

BATCH = "resultd.v1.ResultService.BatchStoreResults"
GROUP = b"\x9b\x08" + b"\x0a\x00" * 50 + b"\x9c\x08"
"""What a group of field 131 looks like, a kind of field that nobody uses any more."""


def counted(message: Message) -> int:
    """The elements of a message that was parsed."""
    found = 0
    for field, value in message.ListFields():
        inner: list[Any] = []
        if is_repeated(field):
            objects = field.type in (field.TYPE_MESSAGE, field.TYPE_STRING, field.TYPE_BYTES)
            found += len(value) if objects else 0
            inner = list(value.values() if hasattr(value, "values") else value)
        elif field.message_type is not None:
            inner = [value]
        found += sum(counted(each) for each in inner if isinstance(each, Message))
    return found


def is_more_than(kind: type[Message], raw: bytes, limit: int, fields: int = 100) -> bool:
    """Whether a request is refused where so many elements are allowed, and fields for each."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(elements, "_FIELDS_PER_ELEMENT", fields)
        patched.setattr(limits, "ELEMENTS_PER_REQUEST", limit)
        try:
            elements.check(kind.DESCRIPTOR, raw)
        except LimitExceeded:
            return True
    return False


def many(*more: bytes) -> bytes:
    """A batch with a bit of everything that is counted, and of what is not."""
    batch = pb.BatchStoreResultsRequest()
    for number in range(5):
        report = reports.success(f"t{number}")
        report.meta.labels.update({f"l{at}": "v" for at in range(number)})
        report.meta.extra[f"e{number}"].data = b"\x0a\x9a\x01\xa2\x01\xaa\x01" * 9
        report.meta.children.extend([task_pb2.Child(id="c")] * 7)
        report.meta.failure.cause.cause.type = "E"
        batch.reports.append(report)
    return b"".join([batch.SerializeToString(), *more])


@pytest.mark.parametrize("method", METHODS)
def test_as_many_are_counted_as_are_parsed(method: str) -> None:
    """A request of every method passes where as many elements are allowed as it has, no fewer."""
    template = TEMPLATES[method]
    raw = template.SerializeToString()
    number = counted(template)
    assert not is_more_than(type(template), raw, number)
    if number:
        assert is_more_than(type(template), raw, number - 1)


@pytest.mark.parametrize(
    "more",
    [
        b"",
        b"\x8a\x80\x00\x00" * 3,  # a tag that is longer than it must be
        b"\x0a\x80\x00",  # a length that is
        b"\xfa\x3f\x02\x0a\x00",  # a field that nobody knows
        b"\xf8\x3f\x0a\xfd\x3f\x0a\x0a\x0a\x0a\xf9\x3f" + b"\x0a" * 8,
        GROUP + b"\x0a\x00",
        message_field(1, message_field(1, b"\x9a\x01\x00") * 2),  # a report's record, twice
    ],
)
def test_bytes_are_read_as_protobuf_reads_them(more: bytes) -> None:
    """However the same is said in other bytes, as many are counted as are there."""
    raw = many(more)
    number = counted(pb.BatchStoreResultsRequest.FromString(raw))
    assert not is_more_than(pb.BatchStoreResultsRequest, raw, number)
    assert is_more_than(pb.BatchStoreResultsRequest, raw, number - 1)


@pytest.mark.parametrize(
    "end", [b"\x0a", b"\x0a\x7f", b"\x0a\xff", b"\x0a" + b"\xff" * 11, b"\x8a" * 11, b"\x09\x01"]
)
def test_what_is_malformed_is_left_to_who_parses(end: bytes) -> None:
    """Up to there elements count; what does not end is no message."""
    with pytest.raises(DecodeError):
        pb.BatchStoreResultsRequest.FromString(many(end))
    number = counted(pb.BatchStoreResultsRequest.FromString(many()))
    assert not is_more_than(pb.BatchStoreResultsRequest, many(end), number + 1)
    assert is_more_than(pb.BatchStoreResultsRequest, many(end), number - 1)


def test_a_value_that_looks_like_tags_is_none() -> None:
    """Large values pass whatever is in them, in one report and in many."""
    value = b"\x9a\x01\x0a\x00" * 100_000
    one = reports.success("t", value)
    batch = pb.BatchStoreResultsRequest(reports=[one] * 7)
    assert not is_more_than(pb.StoreResultRequest, one.SerializeToString(), 1)
    assert not is_more_than(pb.BatchStoreResultsRequest, batch.SerializeToString(), 10)


def test_so_many_fields_are_looked_at() -> None:
    """Fields that nobody knows make the look no longer than it may be."""
    others = b"\xf8\x3f\x00" * 10_000
    batch = others + b"\x0a\x00" * 900
    assert not is_more_than(pb.BatchStoreResultsRequest, batch, 1_000, 11)
    assert is_more_than(pb.BatchStoreResultsRequest, batch + b"\x0a\x00" * 101, 1_000, 11)
    named = b"\xfa\x3f\x01\x0a" * 10_000
    assert is_more_than(pb.BatchStoreResultsRequest, named, 1_000, 3)
    assert not is_more_than(pb.BatchStoreResultsRequest, named, 1_000, 11)
    assert not is_more_than(pb.BatchStoreResultsRequest, others, 1_000, 3)


def test_the_elements_of_a_request_are_bounded(channel: grpc.Channel) -> None:
    """All lists and maps of a request have so many elements together, and one more is refused."""
    report = reports.success("t")
    report.meta.children.extend([task_pb2.Child(id="c")] * (limits.CHILDREN_MAX - 1))
    whole, rest = divmod(limits.ELEMENTS_PER_REQUEST, limits.CHILDREN_MAX)
    one = message_field(1, report.SerializeToString())
    report.meta.task_id = "u"
    del report.meta.children[rest - 1 :]
    last = message_field(1, report.SerializeToString())
    [raw] = call(channel, METHODS[BATCH], one * whole + last)
    assert len(pb.BatchStoreResultsResponse.FromString(raw).outcomes) == whole + 1
    for raw in (one * whole + last + b"\x0a\x00", b"\x0a\x00" * 2**20):
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, METHODS[BATCH], raw)
        refusal = taken_apart(caught.value)
        assert (refusal.reason, refusal.facts["field"]) == ("LIMIT_EXCEEDED", "elements")
        assert "make several calls" in str(caught.value)
