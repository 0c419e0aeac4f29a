"""Events and frames put together from bytes are what protobuf itself would write."""

from __future__ import annotations

import pytest

from resultd.v1 import group_pb2, state_pb2, stream_pb2, task_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server.ledger import wire
from tests.support.frames import event_of


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**14, 2**21, 2**28, 2**32 - 1, 2**63])
def test_a_varint_is_protobufs(number: int) -> None:
    """Numbers are written as protobuf writes them."""
    counts = pb.StoreResultResponse(version=number).SerializeToString()
    assert wire.number_field(4, number) == counts
    assert wire.varint(number) == (counts[1:] or b"\0")


def test_a_task_event_is_read_back() -> None:
    """A record's bytes in an event are its task field, index and position beside it."""
    meta = task_pb2.TaskMeta(task_id="t", state=state_pb2.STATE_SUCCESS)
    encoded = wire.task_event(meta.SerializeToString(), index=300, position=7)
    assert event_of(encoded) == stream_pb2.Event(task=meta, index=300, position=7)
    assert event_of(wire.task_event(b"")) == stream_pb2.Event(task=task_pb2.TaskMeta())


def test_a_group_event_is_read_back() -> None:
    """A group's bytes in an event are its group field, with the word whether it is gone."""
    meta = group_pb2.GroupMeta(group_id="g")
    encoded = wire.group_event(meta.SerializeToString(), index=0, position=2, gone=True)
    assert event_of(encoded) == stream_pb2.Event(group=meta, position=2, gone=True)


def test_frames_number_their_fields_alike() -> None:
    """One frame of bytes is a WaitFor, Iterate and Watch answer at once."""
    event = stream_pb2.Event(task=task_pb2.TaskMeta(task_id="t"), index=3)
    control = stream_pb2.Control(kind=stream_pb2.CONTROL_KIND_SYNCED)
    counts = group_pb2.GroupCounts(members=9)
    frame = wire.frame(
        [wire.task_event(event.task.SerializeToString(), index=3)] * 2,
        control=control.SerializeToString(),
        counts=counts.SerializeToString(),
        after=b"here",
        group_id="g",
    )
    assert pb.WatchResponse.FromString(frame) == pb.WatchResponse(
        events=[event, event], control=control, counts=counts, after=b"here", group_id="g"
    )
    wait_for = pb.WaitForResponse.FromString(frame)
    iterate = pb.IterateResponse.FromString(frame)
    assert (list(wait_for.events), wait_for.control) == ([event, event], control)
    assert (iterate.counts, iterate.after) == (counts, b"here")
    assert wire.frame([]) == b""


@pytest.mark.parametrize("token", ["", "next"])
def test_a_page_is_any_list_answer(token: str) -> None:
    """Rows stand in field 1, the token in field 2, in every List answer."""
    meta = task_pb2.TaskMeta(task_id="t")
    page = wire.page([meta.SerializeToString()], token)
    assert pb.ListResultsResponse.FromString(page) == pb.ListResultsResponse(
        metas=[meta], next_page_token=token
    )


@pytest.mark.parametrize("index", [0, 1, 127, 128, 2**14, 2**28, 2**31 - 1])
@pytest.mark.parametrize("position", [0, 1, 2**14, 2**28, 2**32 - 1])
def test_a_place_is_read_back(index: int, position: int) -> None:
    """Where a member stands is what protobuf would write, and is read back."""
    place = wire.place(index, position)
    assert place == stream_pb2.Event(index=index, position=position).SerializeToString()
    assert wire.read_place(place) == (index, position)


def test_many_events_are_as_one_by_one() -> None:
    """Events made together are those made each by itself, whatever the sizes."""
    sizes = [0, 1, 120, 127, 128, 16_383, 16_384, 3_000_000]
    tasks = [task_pb2.TaskMeta(task_id="t" * size).SerializeToString() for size in sizes]
    places = [(index, 2**index) for index in range(len(sizes))]
    pieces = wire.task_events(tasks, [wire.place(*each) for each in places])
    assert [b"".join(pieces[at : at + 3]) for at in range(0, len(pieces), 3)] == [
        wire.task_event(task, *each) for task, each in zip(tasks, places, strict=True)
    ]
