"""What a report makes of a record: replaced, filled, given whole."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from resultd.v1 import state_pb2, task_pb2
from resultd_server.ledger import merging, records, wire
from resultd_server.ledger.merging import merge
from resultd_server.ledger.records import report_of
from tests.support.stores import HOUR_MS, Store, make_report


def test_lists_and_payloads_are_given_whole() -> None:
    """A report's children, args and times take the place of those before, never mix with them."""
    old, report = task_pb2.TaskMeta(), task_pb2.TaskMeta(state=state_pb2.STATE_STARTED)
    old.children.add(id="a")
    old.args.data, old.args.content_type = b"old", "text/plain"
    report.children.add(id="b")
    report.args.data = b"new"
    merged = merge(old, report)
    assert [child.id for child in merged.children] == ["b"]
    assert (merged.args.data, merged.args.content_type) == (b"new", "")


UNKNOWN = 1_023
"""The number of a field that this version does not know."""


def _newer(meta: task_pb2.TaskMeta, said: bytes) -> task_pb2.TaskMeta:
    """The message of a client that has one more field."""
    return task_pb2.TaskMeta.FromString(
        meta.SerializeToString() + wire.message_field(UNKNOWN, said)
    )


def _newest(meta: Message) -> list[Any]:
    unknown = UnknownFieldSet(meta)
    fields = [unknown[at] for at in range(len(unknown))]
    return [field.data for field in fields if field.field_number == UNKNOWN]


async def test_fields_of_a_newer_protocol_do_not_pile_up(store: Store) -> None:
    """Of many reports with a field nobody knows here the record keeps the last one's only."""
    for number in range(50):
        report = make_report("t", "PROGRESS", worker="w", args={"data": b"a"}, labels={"a": "1"})
        newer = _newer(report.meta, b"n" * 100 + b"%d" % number)
        await store.put([report_of(newer, HOUR_MS)])
    meta = await store.meta("t")
    assert _newest(meta) == [b"n" * 100 + b"49"]
    assert (meta.worker, meta.args.data, dict(meta.labels)) == ("w", b"a", {"a": "1"})
    await store.report("t")
    assert _newest(await store.meta("t")) == [b"n" * 100 + b"49"], "kept where none is said"


def test_what_is_unknown_inside_of_fields_that_stay_stays() -> None:
    """Replacing unknown fields leaves those of messages that the report does not give."""
    old = _newer(task_pb2.TaskMeta(task_id="t", retries=1), b"old")
    old.args.MergeFromString(wire.message_field(UNKNOWN, b"of args"))
    old.kwargs.SetInParent()
    old.children.add(id="c").MergeFromString(wire.message_field(UNKNOWN, b"of a child"))
    old.extra["e"].data = b"e"
    merged = merge(old, _newer(task_pb2.TaskMeta(state=state_pb2.STATE_STARTED), b"new"))
    assert (_newest(merged), _newest(merged.args)) == ([b"new"], [b"of args"])
    assert [_newest(child) for child in merged.children] == [[b"of a child"]]
    assert (merged.retries, merged.HasField("kwargs")) == (1, True)
    assert merged.extra["e"].data == b"e"


def test_messages_inside_of_a_record_are_given_whole() -> None:
    """No message in a record is merged with the one before: what is unknown there would pile up."""
    whole = {*merging._REPLACED, *records._OUTPUT, *merging._FILLED_WHOLE}
    inside = {
        field.name
        for field in task_pb2.TaskMeta.DESCRIPTOR.fields
        if field.message_type is not None and not field.message_type.GetOptions().map_entry
    }
    assert inside <= whole


def test_the_lists_of_fields_name_fields() -> None:
    """Every field that the merge names exists, and what is output is never taken from a report."""
    fields = set(task_pb2.TaskMeta.DESCRIPTOR.fields_by_name)
    assert {*merging._REPLACED, *records._OUTPUT, *merging._FILLED_WHOLE} <= fields
    assert set(merging.TIME_OF_STATE.values()) <= fields
