"""Streaming a group: what is kept, what is resumed, what is dropped."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resultd import errors
from resultd._core import ClientCore
from resultd._effects import Effect, Open, Receive, Reconnect, iterate
from resultd._iterate import Delivered, Fresh, Progress, frames, members, values
from resultd.v1 import result_service_pb2, state_pb2, stream_pb2

HEARTBEAT = stream_pb2.CONTROL_KIND_HEARTBEAT
END = stream_pb2.CONTROL_KIND_END
RESET = stream_pb2.CONTROL_KIND_RESET


@pytest.fixture
def client() -> ClientCore:
    """Configuration and decoding; nothing is opened."""
    return ClientCore("resultd://h?heartbeat=1")


def frame(*indexes: int, after: bytes = b"", kind: int = 0, **control: Any) -> Any:
    """A frame with members that are done."""
    made = result_service_pb2.IterateResponse(after=after)
    made.control.CopyFrom(stream_pb2.Control(kind=kind, **control))  # type: ignore[arg-type]  # keywords of one message
    for index in indexes:
        event = made.events.add(index=index, position=index + 1)
        event.task.task_id = f"t{index}"
        event.task.state = state_pb2.STATE_SUCCESS
        event.task.value.data = str(index).encode()
    return made


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1) | st.integers(0, 200), st.sampled_from("ab"))))
def test_a_member_is_new_unless_the_same_stood_there(told: list[tuple[int, str]]) -> None:
    """It says what is new: an index where nobody was delivered yet, or somebody else."""
    delivered, model = Delivered(), dict[int, str]()
    for index, id_ in told:
        assert delivered.add(index, id_) == (model.get(index) != id_)
        model[index] = id_


@pytest.mark.parametrize(("stride", "bytes_each"), [(1, 12), (1_000, 850)])
def test_what_was_delivered_grows_with_the_members(stride: int, bytes_each: int) -> None:
    """Eight bytes a member and a little; apart from one another, a block of 512 each."""
    tracemalloc.start()
    try:
        delivered = Delivered()
        for number in range(20_000):
            delivered.add(number * stride, "t")
        assert tracemalloc.get_traced_memory()[0] < 20_000 * bytes_each
    finally:
        tracemalloc.stop()


def test_after_a_reset_only_what_is_new_is_delivered() -> None:
    """The stream starts again; what was delivered is dropped by its index and id."""
    progress = Progress()
    assert [event.index for event in progress.fresh(frame(3, 1, after=b"x")).events] == [3, 1]
    assert progress.after == b"x"
    assert progress.fresh(frame(kind=RESET)).events == []
    assert progress.after == b""
    assert [event.index for event in progress.fresh(frame(3, 2, 1, after=b"y")).events] == [2]
    assert progress.after == b"y"


def test_after_a_reset_who_stands_elsewhere_is_new() -> None:
    """Run again with other members, a group has others at the same indexes: none is dropped."""
    progress = Progress()
    progress.fresh(frame(0, 1, 2, after=b"x"))
    progress.fresh(frame(kind=RESET))
    again = frame(0, 1, 2)
    again.events[1].task.task_id = "other"
    again.events[2].ClearField("task")
    again.events[2].group.group_id = "t2"
    assert [event.index for event in progress.fresh(again).events] == [1, 2]
    assert progress.fresh(again).events == []


def test_who_has_handed_nothing_out_is_told_all_again_after_a_reset() -> None:
    """The same members too: their results may be those of another run."""
    progress = Progress(retold=True)
    assert not progress.fresh(frame(0, 1, after=b"x")).anew
    assert progress.fresh(frame(kind=RESET)).anew
    assert [event.index for event in progress.fresh(frame(0, 1)).events] == [0, 1]
    assert progress.fresh(frame(0, 1)).events == []  # a frame that came twice


def mixed() -> Any:
    """Members of every kind, with what `MemberResult.value` gives of them or raises."""
    made = frame(0)
    failed = made.events.add(index=1).task
    failed.task_id, failed.state = "t1", state_pb2.STATE_FAILURE
    failed.failure.type, failed.failure.module, failed.failure.message = "OSError", "builtins", "no"
    made.events.add(index=2).task.existence = state_pb2.EXISTENCE_FORGOTTEN
    made.events.add(index=3).group.outcome = state_pb2.STATE_SUCCESS
    made.events.add(index=4).group.outcome = state_pb2.STATE_FAILURE
    made.events.add(index=5, gone=True).group.group_id = "g"
    revoked = made.events.add(index=6).task
    revoked.task_id, revoked.state = "t6", state_pb2.STATE_REVOKED
    retried = made.events.add(index=7).task
    retried.state, retried.failure.message = state_pb2.STATE_RETRY, "again"
    broken = made.events.add(index=8).task
    broken.state, broken.value.data = state_pb2.STATE_SUCCESS, b"no JSON"
    for event in made.events:
        if event.HasField("task") and not event.task.existence:
            event.task.existence = state_pb2.EXISTENCE_KNOWN
    return made


@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("index", range(9))
def test_a_value_is_that_of_the_whole_member(
    client: ClientCore, index: int, propagate: bool
) -> None:
    """Read without the rest of the record, it is the same, or the same is raised."""
    fresh = Fresh([mixed().events[index]], mixed().counts)
    (member,) = members(client, fresh)

    def outcome(read: Callable[[], Any]) -> tuple[str, object, str]:
        try:
            found = read()
        except Exception as error:  # noqa: BLE001 (whichever it is: both are to raise it)
            return "raised", type(error), str(error)
        return "given", type(found), str(found)

    assert outcome(lambda: next(values(client, fresh, propagate))) == outcome(
        lambda: member.value(propagate)
    )


class Server:
    """Plays one list of frames for each stream that is opened."""

    def __init__(self, *streams: list[Any]) -> None:
        self.streams = list(streams)
        self.asked: list[bytes] = []
        self.reconnects = 0
        self.cancelled = 0
        self.mailbox: Any = self
        self.generation = 0
        self.items: list[Any] = []

    def __call__(self, effect: Effect) -> Any:
        """Do an effect."""
        if isinstance(effect, Open):
            request = effect.request
            assert isinstance(request, result_service_pb2.IterateRequest)
            self.asked.append(request.after)
            self.items = self.streams.pop(0)
            return self
        if isinstance(effect, Reconnect):
            self.reconnects += 1
            return None
        assert isinstance(effect, Receive)
        if effect.mailbox is not self.mailbox:
            return []
        if not self.items:
            assert effect.timeout is not None
            time.sleep(min(effect.timeout, 3))
            return []
        return [self.items.pop(0)]

    def taken(self) -> None:
        """A frame was taken."""

    def cancel(self) -> None:
        """The call was cancelled."""
        self.cancelled += 1


class WithMailbox(ClientCore):
    """A client whose pauses are waits on a mailbox of nobody's."""

    def watcher(self) -> Any:
        """Stand for the watcher and its port."""
        return self

    @property
    def port(self) -> Any:
        """As above."""
        return self

    def new_mailbox(self) -> object:
        """As above."""
        return object()


def stream(server: Server, timeout: float | None = None) -> list[int]:
    """Read a group to its end; gives indexes."""
    client = WithMailbox("resultd://h?heartbeat=1")
    request = result_service_pb2.IterateRequest(group_id="g")
    got = iterate(frames(client, request, timeout), server)
    return [event.index for fresh in got for event in fresh.events]


def test_a_stream_begins_where_it_is_told_to() -> None:
    """The request's own `after` is what is asked for first; a frame's takes its place."""
    gone = errors.make("UNAVAILABLE", "gone")
    server = Server([frame(7, after=b"7"), gone], [COMPLETE])
    client = WithMailbox("resultd://h?heartbeat=1")
    request = result_service_pb2.IterateRequest(group_id="g", after=b"6")
    got = iterate(frames(client, request, 5), server)
    assert [event.index for fresh in got for event in fresh.events] == [7]
    assert server.asked == [b"6", b"7"]


COMPLETE = frame(kind=END, end_reason=stream_pb2.END_REASON_COMPLETE)
SYNCED = frame(kind=stream_pb2.CONTROL_KIND_SYNCED)
UNFINISHED = frame(kind=stream_pb2.CONTROL_KIND_SYNCED)
UNFINISHED.counts.epoch = 1
FINISHED = frame(kind=stream_pb2.CONTROL_KIND_SYNCED)
FINISHED.counts.epoch, FINISHED.counts.complete = 1, True


@pytest.mark.parametrize(
    "end",
    [
        errors.make("UNAVAILABLE", "gone"),
        errors.make("INTERNAL", "a proxy"),
        errors.make("UNKNOWN", "a proxy"),
        errors.make("CANCELLED", "?"),
        frame(kind=END, end_reason=stream_pb2.END_REASON_MAX_AGE),
        frame(kind=END, end_reason=stream_pb2.END_REASON_DRAINING),
        frame(kind=END, end_reason=stream_pb2.END_REASON_TIMEOUT),
    ],
)
def test_any_end_but_a_final_one_is_resumed_where_it_was(end: Any) -> None:
    """With the `after` of the last frame."""
    server = Server([frame(0, after=b"1"), end], [frame(1, after=b"2"), COMPLETE])
    assert stream(server) == [0, 1]
    assert server.asked == [b"", b"1"]
    assert server.cancelled == 2


@pytest.mark.parametrize("code", sorted(errors.FINAL_CODES))
def test_hard_errors_are_raised(code: str) -> None:
    """Not resumed."""
    server = Server([frame(0), errors.make(code, "no")])
    with pytest.raises(errors.ResultdError, match="no"):
        stream(server)
    assert server.cancelled == 1


def test_a_deleted_group_is_said() -> None:
    """END for GONE."""
    with pytest.raises(errors.ResultGoneError):
        stream(Server([frame(kind=END, end_reason=stream_pb2.END_REASON_GONE)]))


def test_a_silent_stream_is_given_up_with_its_connection() -> None:
    """After 2.5 heartbeats; a heartbeat is not silence."""
    began = time.monotonic()
    server = Server([frame(0, after=b"1"), frame(kind=HEARTBEAT)], [frame(1), COMPLETE])
    assert stream(server) == [0, 1]
    assert server.reconnects == 1
    assert time.monotonic() - began >= 2.5


def test_a_timeout_is_raised_while_nothing_comes() -> None:
    """And the call is cancelled."""
    server = Server([frame(0)])
    with pytest.raises(errors.TimeoutError):
        stream(server, 0.05)
    assert server.cancelled == 1


@pytest.mark.parametrize("synced", [SYNCED, FINISHED])
def test_what_is_there_is_found_without_any_time(synced: Any) -> None:
    """A timeout of 0 looks once: a group that is complete is read whole."""
    assert stream(Server([frame(0), synced, frame(1), COMPLETE]), 0) == [0, 1]


def test_a_group_that_has_gone_is_said_without_any_time() -> None:
    """Its end follows the word that there is nothing more."""
    gone = frame(kind=END, end_reason=stream_pb2.END_REASON_GONE)
    with pytest.raises(errors.ResultGoneError):
        stream(Server([SYNCED, gone]), 0)


def test_a_timeout_is_raised_while_frames_keep_coming() -> None:
    """From when all that was there is told it counts before each frame, but for the end."""
    client = WithMailbox("resultd://h?heartbeat=1")
    request = result_service_pb2.IterateRequest(group_id="g")
    server = Server([frame(0), UNFINISHED, *(frame(n) for n in range(1, 9)), COMPLETE])
    got = iterate(frames(client, request, 0), server)
    told = [next(got), next(got)]
    with pytest.raises(errors.TimeoutError):
        next(got)
    assert [event.index for fresh in told for event in fresh.events] == [0]
    assert server.cancelled == 1
    assert stream(Server([frame(0), UNFINISHED, COMPLETE]), 0) == [0]
