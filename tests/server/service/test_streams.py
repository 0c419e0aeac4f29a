"""Streams over a socket: what they send, when they end, what they leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2, stream_pb2, worker_service_pb2
from resultd_server import limits
from resultd_server.core.sources import RevocationSource, WatchSource
from resultd_server.service.quotas import Quotas
from resultd_server.service.registry import Call
from resultd_server.service.streams import Streams
from tests.support import frames, reports
from tests.support.frames import END, HEARTBEAT, SYNCED, Frames, control, ids, seconds
from tests.support.in_process import Served, serving, until
from tests.support.refusals import taken_apart

COMPLETE = stream_pb2.END_REASON_COMPLETE
TIMEOUT = stream_pb2.END_REASON_TIMEOUT
MAX_AGE = stream_pb2.END_REASON_MAX_AGE
GONE = stream_pb2.END_REASON_GONE
DRAINING = stream_pb2.END_REASON_DRAINING
SUCCESS, FAILURE = state_pb2.STATE_SUCCESS, state_pb2.STATE_FAILURE
SLOW_READER = (("grpc.http2.bdp_probe", 0), ("grpc.max_receive_message_length", 4 * 2**20))


def wait_for(served: Served, *task_ids: str, **how: Any) -> Frames:
    """A WaitFor."""
    return Frames(served.results.WaitFor(pb.WaitForRequest(task_ids=task_ids, **how)))


async def store(served: Served, *requests: pb.StoreResultRequest) -> None:
    """Reports, one after another."""
    for request in requests:
        await served.results.StoreResult(request)


async def store_big(served: Served, count: int, size_bytes: int = 2**20) -> list[str]:
    """Records with large values; their ids."""
    task_ids = [f"big{n}" for n in range(count)]
    await store(served, *(reports.success(task_id, b"x" * size_bytes) for task_id in task_ids))
    return task_ids


# WaitFor: what it sends.


async def test_what_counts_already_comes_first_then_synced_then_changes(served: Served) -> None:
    """The first frames hold what is terminal already; after SYNCED comes what is new."""
    await store(served, reports.success("a"), reports.failure("b"))
    wait = wait_for(served, "a", "b", "c")
    first = await wait.until(SYNCED)
    assert ids(first) == ["a", "b"]
    await store(served, reports.success("c"))
    assert ids([await wait.next()]) == ["c"]
    assert control((await wait.rest())[-1]) == (END, COMPLETE)
    await served.idle()


async def test_a_state_on_the_way_counts_only_with_transitions(served: Served) -> None:
    """Without `transitions` only terminal states are events; with it the others are too."""
    await store(served, reports.state("t", state_pb2.STATE_STARTED))
    plain, all_states = wait_for(served, "t"), wait_for(served, "t", transitions=True)
    assert ids(await plain.until(SYNCED)) == []
    assert frames.states(await all_states.until(SYNCED)) == [state_pb2.STATE_STARTED]
    await store(served, reports.state("t", state_pb2.STATE_PROGRESS, current=3))
    [event] = (await all_states.next()).events
    assert event.task.progress.current == 3
    await store(served, reports.success("t"))
    assert frames.states(await plain.rest()) == [SUCCESS]
    assert frames.states(await all_states.rest()) == [SUCCESS]


@pytest.mark.parametrize(
    ("return_when", "until_end"),
    [
        (pb.RETURN_WHEN_UNSPECIFIED, ["a", "b", "c"]),
        (pb.RETURN_WHEN_ALL_COMPLETED, ["a", "b", "c"]),
        (pb.RETURN_WHEN_FIRST_COMPLETED, ["a"]),
        (pb.RETURN_WHEN_FIRST_EXCEPTION, ["a", "b"]),
    ],
)
@pytest.mark.parametrize("already", [False, True])
async def test_return_when_says_when_it_is_over(
    served: Served, return_when: pb.ReturnWhen.ValueType, until_end: list[str], already: bool
) -> None:
    """All of them, the first, or the first that failed: then END(COMPLETE)."""
    said = [reports.success("a"), reports.failure("b"), reports.success("c")]
    count = len(until_end)
    if already:
        await store(served, *said[:count])
    wait = wait_for(served, "a", "b", "c", return_when=return_when)
    if not already:
        await wait.until(SYNCED)
        await store(served, *said[:count])
    rest = await wait.rest()
    assert ids(rest) == until_end
    assert control(rest[-1]) == (END, COMPLETE)


async def test_a_revoked_task_counts_as_an_exception(served: Served) -> None:
    """FIRST_EXCEPTION ends with a REVOKED too, and with the last task if none failed."""
    both = [
        wait_for(served, "a", "b", return_when=pb.RETURN_WHEN_FIRST_EXCEPTION),
        wait_for(served, "a", "c", return_when=pb.RETURN_WHEN_FIRST_EXCEPTION),
    ]
    await store(served, reports.success("a"), reports.state("b", state_pb2.STATE_REVOKED))
    await store(served, reports.success("c"))
    assert ids(await both[0].rest()) == ["a", "b"]
    assert ids(await both[1].rest()) == ["a", "c"]


async def test_an_id_that_is_gone_ends_its_wait_unless_asked_to_wait(served: Served) -> None:
    """on_gone END says FORGOTTEN and ends with GONE; WAIT waits for the next report."""
    await store(served, reports.success("t"))
    await served.results.ForgetResults(pb.ForgetResultsRequest(task_ids=["t"]))
    ends = await wait_for(served, "t").rest()
    [event] = ends[0].events
    assert event.task.existence == state_pb2.EXISTENCE_FORGOTTEN
    assert control(ends[-1]) == (END, GONE)
    waits = wait_for(served, "t", on_gone=pb.ON_GONE_WAIT)
    await waits.until(SYNCED)
    await store(served, reports.failure("t"))
    rest = await waits.rest()
    assert frames.states(rest) == [FAILURE]
    assert control(rest[-1]) == (END, COMPLETE)


async def test_repeats_are_collapsed(served: Served) -> None:
    """An id named many times is one wait and one event."""
    await store(served, reports.success("t"))
    rest = await wait_for(served, *["t"] * 10_000).rest()
    assert ids(rest) == ["t"]


async def test_10_000_ids_fit_one_wait(served: Served) -> None:
    """One WaitFor takes 10,000 ids and delivers each once, in frames of at most 256."""
    task_ids = [f"t{n}" for n in range(10_000)]
    for at in range(0, 5_000, 1_000):
        said = [reports.success(task_id) for task_id in task_ids[at : at + 1_000]]
        await served.results.BatchStoreResults(reports.batch(said))
    wait = wait_for(served, *task_ids)
    got = await wait.until(SYNCED)
    for at in range(5_000, 10_000, 1_000):
        said = [reports.success(task_id) for task_id in task_ids[at : at + 1_000]]
        await served.results.BatchStoreResults(reports.batch(said))
    got += await wait.rest()
    assert sorted(ids(got)) == sorted(task_ids)
    assert max(len(frame.events) for frame in got) == limits.FRAME_TASKS_MAX


# Frames.


async def test_frames_hold_about_a_mebibyte(served: Served) -> None:
    """A frame ends before 1 MiB; a record larger than that goes alone."""
    sizes = [300_000, 300_000, 300_000, 300_000, 2_000_000, 10, 10, 3_000_000, 10]
    requests = [reports.success(f"t{n}", b"x" * size) for n, size in enumerate(sizes)]
    await store(served, *requests)
    got = await wait_for(served, *(f"t{n}" for n in range(len(sizes)))).rest()
    assert [len(frame.events) for frame in got] == [3, 1, 1, 2, 1, 1, 0, 0]
    assert ids(got) == [f"t{n}" for n in range(len(sizes))]
    assert max(frame.ByteSize() for frame in got) <= limits.RESPONSE_BYTES_MAX


async def test_the_largest_record_passes_a_clients_default_limit(served: Served) -> None:
    """A record of 3 MiB reaches a client that takes 4 MiB, by every way of reading."""
    request = reports.success("t", group_id="g")
    room = limits.RECORD_BYTES_MAX - 400
    request.meta.value.data = b"x" * room
    await store(served, request)
    for _ in range(2):
        got = await served.results.GetResult(pb.GetResultRequest(task_id="t"))
        assert len(got.meta.value.data) == room
    many = await served.results.BatchGetResults(pb.BatchGetResultsRequest(task_ids=["t", "u"]))
    assert len(many.metas[0].value.data) == room
    waited = await wait_for(served, "t").rest()
    assert len(waited[0].events[0].task.value.data) == room
    iterated = Frames(served.results.Iterate(pb.IterateRequest(group_id="g")))
    assert len((await iterated.next()).events[0].task.value.data) == room
    watch = Frames(served.results.Watch())
    await watch.call.write(pb.WatchRequest(add_task_ids=["t"]))
    assert len((await watch.next()).events[0].task.value.data) == room
    watch.call.cancel()
    iterated.call.cancel()
    await served.idle()


# When a stream is silent, and when it ends.


async def test_a_quiet_stream_is_heard_of_at_the_interval_asked_for(served: Served) -> None:
    """A stream with nothing to say sends HEARTBEATs as often as asked: here every second."""
    watch = Frames(served.results.Watch())
    await watch.call.write(pb.WatchRequest(heartbeat=seconds(1)))
    quiet = [
        wait_for(served, "t", heartbeat=seconds(1)),
        Frames(served.results.Iterate(pb.IterateRequest(group_id="g", heartbeat=seconds(1)))),
        watch,
    ]
    for stream in quiet:
        beats = await stream.until(HEARTBEAT)
        beats += [await stream.next()]
        assert [frame.control.kind for frame in beats[-2:]] == [HEARTBEAT, HEARTBEAT]
        first, second = (f.control.server_time.ToDatetime() for f in beats[-2:])
        assert (second - first).total_seconds() > 0.9
        stream.call.cancel()
    await served.idle()


async def test_hints_that_do_not_count_do_not_keep_the_heartbeat_away(served: Served) -> None:
    """A task that reports progress all the time does not silence a stream that asked for none."""
    wait = wait_for(served, "t", heartbeat=seconds(1))

    async def chatter() -> None:
        for current in range(1, 100_000):
            await store(served, reports.state("t", state_pb2.STATE_PROGRESS, current=current))

    chatting = asyncio.create_task(chatter())
    assert len(await wait.until(HEARTBEAT)) == 2
    chatting.cancel()
    wait.call.cancel()


@pytest.mark.parametrize("timeout_s", [0, 0.2])
async def test_a_timeout_ends_with_timeout(served: Served, timeout_s: float) -> None:
    """A wait that is not over when its time is gets END(TIMEOUT), with status OK."""
    rest = await wait_for(served, "t", timeout=seconds(timeout_s)).rest()
    assert control(rest[-1]) == (END, TIMEOUT)
    iterate = pb.IterateRequest(group_id="g", timeout=seconds(timeout_s))
    assert control((await Frames(served.results.Iterate(iterate)).rest())[-1]) == (END, TIMEOUT)


async def test_a_timeout_of_nothing_still_tells_all_there_is(served: Served) -> None:
    """What counted when the wait began is sent whole, and COMPLETE if that was all of it."""
    task_ids = [f"t{n}" for n in range(500)]
    said = [reports.success(task_id) for task_id in task_ids]
    await served.results.BatchStoreResults(reports.batch(said))
    rest = await wait_for(served, *task_ids, timeout=seconds(0)).rest()
    assert ids(rest) == task_ids
    assert control(rest[-1]) == (END, COMPLETE)
    rest = await wait_for(served, *task_ids, "more", timeout=seconds(0)).rest()
    assert ids(rest) == task_ids
    assert control(rest[-1]) == (END, TIMEOUT)


async def test_a_stream_that_is_old_ends_with_max_age() -> None:
    """Every kind of stream ends with MAX_AGE, even a Watch that never said a word."""
    async with serving(stream_age_s=1) as served:
        streams = [
            wait_for(served, "t"),
            Frames(served.results.Iterate(pb.IterateRequest(group_id="g"))),
            Frames(served.results.Watch()),
            Frames(served.workers.WatchRevocations()),
        ]
        for stream in streams:
            assert control((await stream.rest())[-1]) == (END, MAX_AGE)
        await served.idle()


async def test_draining_ends_streams_with_a_delay(served: Served) -> None:
    """A drain ends every stream with DRAINING and says when to come again."""
    streams = [
        wait_for(served, "t"),
        Frames(served.results.Iterate(pb.IterateRequest(group_id="g"))),
        Frames(served.results.Watch()),
        Frames(served.workers.WatchRevocations()),
    ]
    await until(lambda: served.app.streams.streams == 4)
    draining = asyncio.create_task(served.app.drain())
    for stream in streams:
        last = (await stream.rest())[-1]
        assert control(last) == (END, DRAINING)
        assert last.control.retry_delay.ToTimedelta().total_seconds() == 0.5
    await draining
    assert served.waiting() == (0, 0, 0)


async def test_a_stream_that_is_over_says_complete_even_while_draining(served: Served) -> None:
    """What came about is not hidden behind the reason the stream had to end for."""
    await store(served, reports.success("t"))
    wait = wait_for(served, "t")
    served.app.streams.draining = True
    rest = await wait.rest()
    assert ids(rest) == ["t"]
    assert control(rest[-1]) == (END, COMPLETE)


# Readers that are slow, stalled or gone.


async def test_a_reader_that_pauses_gets_every_terminal_event(served: Served) -> None:
    """Who does not read for a while sees fewer states on the way and every terminal one."""
    async with grpc.aio.insecure_channel(served.address, options=SLOW_READER) as channel:
        other = Served(served.app, served.address, channel)
        task_ids = [f"t{n}" for n in range(20)]
        wait = wait_for(other, *task_ids, transitions=True)
        await wait.until(SYNCED)
        for current in range(1, 6):
            for task_id in task_ids:
                request = reports.state(task_id, state_pb2.STATE_PROGRESS, current=current)
                request.meta.value.data = b"x" * 100_000
                await store(served, request)
        await store(served, *(reports.success(task_id, b"x" * 100_000) for task_id in task_ids))
        rest = await wait.rest()
        done = [e.task.task_id for f in rest for e in f.events if e.task.state == SUCCESS]
        assert sorted(done) == sorted(task_ids)
        assert control(rest[-1]) == (END, COMPLETE)


async def _stalled(served: Served, stream: Frames) -> None:
    await stream.next()
    await until(lambda: _writing(served))


def _writing(served: Served) -> bool:
    """Whether the only stream has written for so long that the socket must be full."""
    [stream] = served.app.streams._running
    now_s = asyncio.get_running_loop().time()
    return stream.writing_since_s is not None and now_s - stream.writing_since_s > 0.2


@pytest.mark.parametrize("kind", ["WaitFor", "Watch"])
async def test_a_stalled_stream_is_dropped_and_told_so(served: Served, kind: str) -> None:
    """A write that has not moved for a minute frees the stream; who wakes up is told to resume."""
    task_ids = await store_big(served, 20)
    async with grpc.aio.insecure_channel(served.address, options=SLOW_READER) as channel:
        other = Served(served.app, served.address, channel)
        if kind == "WaitFor":
            stream = wait_for(other, *task_ids)
        else:
            stream = Frames(other.results.Watch())
            await stream.call.write(pb.WatchRequest(add_task_ids=task_ids))
        await _stalled(served, stream)
        now_s = asyncio.get_running_loop().time()
        served.app.streams.drop_stalled(now_s + limits.STALLED_WRITE_S - 5)
        assert served.app.streams.stalled == 0
        served.app.streams.drop_stalled(now_s + limits.STALLED_WRITE_S + 5)
        await served.idle()
        assert served.app.streams.stalled == 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.rest()
    refusal = taken_apart(caught.value)
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "OVERLOADED")
    assert refusal.retry_delay_s > 0


async def test_cancelling_frees_everything(served: Served) -> None:
    """A thousand streams cancelled at any moment leave no stream, subscription or key."""
    task_ids = await store_big(served, 4, 100_000)
    for number in range(1_000):
        kind = number % 4
        stream: Any
        if kind == 0:
            stream = served.results.WaitFor(pb.WaitForRequest(task_ids=[*task_ids, "never"]))
        elif kind == 1:
            stream = served.results.Iterate(pb.IterateRequest(group_id=f"g{number}"))
        elif kind == 2:
            stream = served.results.Watch()
            await stream.write(pb.WatchRequest(add_task_ids=[*task_ids, "never"]))
        else:
            stream = served.workers.WatchRevocations()
        if number % 3:
            await asyncio.sleep(0)
        if number % 5 == 0 and kind != 3:
            await Frames(stream).next()
        stream.cancel()
    # The last of them has reached the server once a later call was answered.
    await served.results.GetResult(pb.GetResultRequest(task_id="t"))
    await until(lambda: served.app.admission.calls == 0)
    assert served.waiting() == (0, 0, 0)


async def test_a_caller_that_goes_away_leaves_no_trace_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Callers that cancel in the middle of writes cause no error and no traceback."""
    task_ids = await store_big(served, 20)
    for pause_s in [n / 2_000 for n in range(60)]:
        stream = served.results.WaitFor(pb.WaitForRequest(task_ids=task_ids))
        await asyncio.sleep(pause_s)
        stream.cancel()
    await served.idle()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert "Traceback" not in "".join(capsys.readouterr())


class Ending:
    """A call's context: whoever waits for `ended` is told as the END is written."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def write(self, _frame: bytes) -> None:
        """Takes a frame, at once."""
        self.ended.set()


@pytest.mark.parametrize(
    ("kind", "request_type"),
    [
        (WatchSource, pb.WatchRequest),
        (RevocationSource, worker_service_pb2.WatchRevocationsRequest),
    ],
)
async def test_what_is_asked_while_a_stream_ends_is_waited_for_by_nobody(
    served: Served, kind: Any, request_type: Any
) -> None:
    """A request that comes between the END and the call's own end leaves no key."""
    context: Any = Ending()
    source = kind(served.app.engine, "default")
    asked: list[str] = []
    applied: list[Any] = []

    async def requests() -> AsyncIterator[Any]:
        await context.ended.wait()
        for task_id in ("late", "later"):
            asked.append(task_id)
            yield request_type(add_task_ids=[task_id])

    def apply(request: Any) -> None:
        applied.append(request)
        source.apply(request)

    call = Call("Watch", "default", context)
    streams = Streams(age_s=0, quotas=Quotas(waited_ids=10))
    await streams.run_changing(call, source, requests(), apply)
    assert (asked, applied) == (["late"], [])
    assert served.waiting() == (0, 0, 0)


# Bounds.


async def test_streams_beyond_the_bound_are_overloaded() -> None:
    """Beyond its number of streams the server says OVERLOADED and when to come again."""
    async with serving(streams_max=3) as served:
        kept = [wait_for(served, f"t{n}") for n in range(3)]
        for stream in kept:
            await stream.until(SYNCED)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wait_for(served, "one too many").next()
        refusal = taken_apart(caught.value)
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "OVERLOADED")
        assert refusal.retry_delay_s > 0
        assert (await served.results.GetResult(pb.GetResultRequest(task_id="t"))).meta.task_id
        kept[0].call.cancel()
        await until(lambda: served.app.streams.streams == 2)
        await wait_for(served, "room again").until(SYNCED)


async def test_a_connection_has_at_most_1_000_streams(served: Served) -> None:
    """The 1,001st stream of one connection waits until another has ended."""
    streams = [wait_for(served, f"t{n}") for n in range(limits.STREAMS_PER_CONNECTION)]
    for stream in streams:
        await stream.until(SYNCED)
    last = wait_for(served, "last")
    waiting = asyncio.create_task(last.until(SYNCED))
    async with grpc.aio.insecure_channel(
        served.address, options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        other = Served(served.app, served.address, channel)
        await wait_for(other, "other").until(SYNCED)
        assert not waiting.done()
        assert served.app.streams.streams == limits.STREAMS_PER_CONNECTION + 1
        streams[0].call.cancel()
        await waiting
