"""The four streams: what each sends, and when it is over."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import stream_pb2, worker_service_pb2
from resultd_server import limits
from resultd_server.core.sources import (
    ChangingSource,
    IterateSource,
    RevocationSource,
    Source,
    WaitForSource,
    WatchSource,
    control,
)
from resultd_server.engine.hints import Subscription
from resultd_server.errors import FieldInvalid, LimitExceeded
from resultd_server.ledger.progress import AS_COMPLETED, Cursor, Step
from resultd_server.ledger.unit import GROUP
from tests.support.stores import HOUR_MS, Clock, Store, make_engine, make_report, task

ALL, FIRST, EXCEPTION = (
    pb.RETURN_WHEN_ALL_COMPLETED,
    pb.RETURN_WHEN_FIRST_COMPLETED,
    pb.RETURN_WHEN_FIRST_EXCEPTION,
)
COMPLETE, GONE = stream_pb2.END_REASON_COMPLETE, stream_pb2.END_REASON_GONE


def wait_for(
    store: Store,
    *task_ids: str,
    return_when: pb.ReturnWhen.ValueType = ALL,
    transitions: bool = False,
    wait_for_gone: bool = False,
) -> WaitForSource:
    """A WaitFor."""
    return WaitForSource(
        store.engine,
        store.namespace,
        task_ids,
        return_when=return_when,
        transitions=transitions,
        wait_for_gone=wait_for_gone,
    )


async def frames(source: Source) -> list[pb.WatchResponse]:
    """All frames that are due now."""
    found = []
    while (frame := await source.next_frame()) is not None:
        found.append(pb.WatchResponse.FromString(frame))
    return found


async def events(source: Source) -> list[str]:
    """The ids of all events that are due now."""
    return [
        event.task.task_id or event.group.group_id
        for frame in await frames(source)
        for event in frame.events
    ]


async def told(source: Source) -> tuple[list[str], stream_pb2.EndReason.ValueType | None]:
    """The ids of all events that are due now, and why the stream is over, once it is."""
    return await events(source), source.end


async def test_all_completed_ends_with_the_last(store: Store) -> None:
    """ALL_COMPLETED is over when every task has ended, failed ones too."""
    source = wait_for(store, "a", "b")
    await store.report("a", "FAILURE")
    assert await told(source) == (["a"], None)
    await store.report("b")
    assert await told(source) == (["b"], COMPLETE)
    source.close()
    assert store.engine.hub.counts() == (0, 0)


async def test_first_completed_ends_with_the_first(store: Store) -> None:
    """FIRST_COMPLETED is over with the first end; all that have ended already are sent."""
    await store.put([make_report("a"), make_report("b", "FAILURE")])
    source = wait_for(store, "a", "b", "c", return_when=FIRST)
    assert source.end is None
    assert await told(source) == (["a", "b"], COMPLETE)


async def test_first_exception_ends_with_the_first_failure(store: Store) -> None:
    """FIRST_EXCEPTION is over with the first failure, or when all have ended without one."""
    failing = wait_for(store, "a", "b", "c", return_when=EXCEPTION)
    clean = wait_for(store, "a", return_when=EXCEPTION)
    await store.report("a")
    assert await told(failing) == (["a"], None)
    assert await told(clean) == (["a"], COMPLETE)
    await store.report("b", "REVOKED")
    assert await told(failing) == (["b"], COMPLETE)


@pytest.mark.parametrize("return_when", [ALL, FIRST, EXCEPTION])
async def test_what_is_gone_ends_the_wait(
    store: Store, return_when: pb.ReturnWhen.ValueType
) -> None:
    """Where what was waited for is gone, the stream ends GONE in every mode."""
    await store.report("t")
    await store.forget("t")
    source = wait_for(store, "t", return_when=return_when)
    assert await told(source) == (["t"], GONE)


@pytest.mark.parametrize("return_when", [ALL, FIRST, EXCEPTION])
async def test_what_is_gone_may_be_waited_for(
    store: Store, return_when: pb.ReturnWhen.ValueType
) -> None:
    """With on_gone WAIT a forgotten task is waited for until it reports again."""
    await store.report("t", "FAILURE")
    await store.forget("t")
    source = wait_for(store, "t", return_when=return_when, wait_for_gone=True)
    assert await told(source) == ([], None)
    await store.report("t", "FAILURE", b"again")
    assert await told(source) == (["t"], COMPLETE)


async def test_a_result_counts_more_than_what_is_gone(store: Store) -> None:
    """FIRST_COMPLETED and FIRST_EXCEPTION that were answered are COMPLETE, gone tasks or not."""
    await store.put([make_report("gone"), make_report("failed", "FAILURE")])
    await store.forget("gone")
    for return_when in (FIRST, EXCEPTION):
        source = wait_for(store, "gone", "failed", "never", return_when=return_when)
        assert (sorted(await events(source)), source.end) == (["failed", "gone"], COMPLETE)
    everything = wait_for(store, "gone", "failed")
    await events(everything)
    assert everything.end == GONE


@pytest.mark.parametrize("transitions", [False, True])
async def test_transitions_are_sent_where_asked_for(store: Store, transitions: bool) -> None:
    """States on the way are sent only with transitions; neither ends the wait."""
    source = wait_for(store, "t", return_when=FIRST, transitions=transitions)
    await store.report("t", "STARTED")
    assert await told(source) == (["t"] if transitions else [], None)
    assert source.says_synced
    assert source.now_ms() == store.clock.now_ms


async def test_iterate_sends_counts_and_where_to_resume(store: Store) -> None:
    """Every frame of Iterate carries the group's counts and `after`; control frames too."""
    await store.create("g", task("a"), task("b"), seal=True)
    source = IterateSource(store.engine, store.namespace, "g", Cursor(AS_COMPLETED))
    assert await frames(source) == []
    heartbeat = source.frame(control(stream_pb2.CONTROL_KIND_HEARTBEAT))
    assert pb.IterateResponse.FromString(heartbeat).counts.members == 2
    await store.report("b")
    (frame,) = await frames(source)
    assert (frame.counts.done, frame.events[0].index, frame.events[0].position) == (1, 1, 1)
    assert source.end is None
    resumed = IterateSource(
        store.engine, store.namespace, "g", Cursor.decode(frame.after, AS_COMPLETED)
    )
    await store.report("a")
    assert await told(source) == (["a"], COMPLETE)
    assert await told(resumed) == (["a"], COMPLETE)


async def test_iterate_says_reset_and_gone(store: Store) -> None:
    """A cursor that does not fit gets RESET; a group that is deleted ends GONE."""
    await store.report("a", group="g")
    stale = (await store.step("g")).cursor._replace(epoch=7)
    source = IterateSource(store.engine, store.namespace, "g", stale)
    reset, again = await frames(source)
    assert reset.control.kind == stream_pb2.CONTROL_KIND_RESET
    assert [event.task.task_id for event in again.events] == ["a"]
    await store.delete_group("g")
    assert (await frames(source), source.end) == ([], GONE)


async def test_watch_serves_many_waits(store: Store) -> None:
    """Tasks and groups come and go on one stream; each request is answered once it is served."""
    source = WatchSource(store.engine, store.namespace)
    assert not source.says_synced
    await store.put([make_report("a"), make_report("m", group="g")])
    request = pb.WatchRequest(add_task_ids=["a", "b"], sequence=1)
    request.add_groups.add(group_id="g")
    source.apply(request)
    assert await source.subscription.wait(0) is False
    tasks, group, synced = await frames(source)
    assert [event.task.task_id for event in tasks.events] == ["a"]
    assert (group.group_id, group.counts.done, group.events[0].task.task_id) == ("g", 1, "m")
    assert (synced.control.kind, synced.control.sequence) == (stream_pb2.CONTROL_KIND_SYNCED, 1)
    source.apply(pb.WatchRequest(remove_task_ids=["b"], remove_group_ids=["g"], sequence=2))
    await store.put([make_report("b"), make_report("n", group="g")])
    (synced,) = await frames(source)
    assert synced.control.sequence == 2
    source.apply(pb.WatchRequest(add_task_ids=["b"]))
    assert await events(source) == ["b"]


async def test_watch_ends_each_group_by_itself(store: Store) -> None:
    """A group that is complete or gone is said to be over; the stream goes on."""
    source = WatchSource(store.engine, store.namespace)
    await store.create("full", task("a"), seal=True)
    await store.create("gone", task("b"))
    request = pb.WatchRequest()
    for name in ("full", "gone"):
        request.add_groups.add(group_id=name)
    source.apply(request)
    assert await frames(source) == []
    await store.report("a")
    await store.delete_group("gone")
    found = await frames(source)
    ends = {frame.group_id: frame.control.end_reason for frame in found if not frame.events}
    assert ends == {"full": COMPLETE, "gone": GONE}
    assert source.end is None
    source.closing = True
    assert source.end == COMPLETE


async def test_watch_resumes_and_resets_a_group(store: Store) -> None:
    """A group is watched from its `after`; one that does not fit gets a RESET of its own."""
    await store.put([make_report("a", group="g"), make_report("b", group="g")])
    source = WatchSource(store.engine, store.namespace)
    request = pb.WatchRequest()
    after_a = (await store.step("g")).cursor._replace(position=1, id="a")
    request.add_groups.add(group_id="g", after=after_a.encode())
    source.apply(request)
    assert await events(source) == ["b"]
    again = pb.WatchRequest()
    again.add_groups.add(group_id="g", after=after_a._replace(id="x").encode())
    source.apply(again)
    reset, everything = await frames(source)
    assert (reset.control.kind, reset.group_id) == (stream_pb2.CONTROL_KIND_RESET, "g")
    assert len(everything.events) == 2
    malformed = pb.WatchRequest(add_task_ids=["t"])
    malformed.add_groups.add(group_id="h", after=b"x")
    with pytest.raises(FieldInvalid):
        source.apply(malformed)
    assert "t" not in source.subscription.noted.get("task", {})


async def test_a_request_costs_what_it_asks_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what others asked for that nobody could be told yet."""
    source = WatchSource(store.engine, store.namespace)
    asked: list[str] = []
    add = Subscription.add

    def noting(subscription: Subscription, kind: str, ids: Collection[str]) -> None:
        if kind == GROUP:
            asked.extend(ids)
        add(subscription, kind, ids)

    monkeypatch.setattr(Subscription, "add", noting)
    for group_id in ("g", "h", "i"):
        source.apply(pb.WatchRequest(add_groups=[pb.GroupWatch(group_id=group_id)]))
    assert asked == ["g", "h", "i"]
    source.close()


async def test_the_first_request_of_a_watch_says_how(store: Store) -> None:
    """Transitions and on_gone count in the first request only."""
    source = WatchSource(store.engine, store.namespace)
    source.apply(pb.WatchRequest(transitions=True, on_gone=pb.ON_GONE_WAIT, add_task_ids=["t"]))
    source.apply(pb.WatchRequest())
    await store.report("t", "STARTED")
    assert await events(source) == ["t"]
    await store.forget("t")
    assert await events(source) == []


async def test_what_one_stream_watches_is_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More tasks or groups than a stream may watch are refused; repeats are not counted."""
    monkeypatch.setattr(limits, "WATCHED_IDS_PER_STREAM", 2)
    monkeypatch.setattr(limits, "WATCHED_GROUPS_PER_STREAM", 1)
    source = WatchSource(store.engine, store.namespace)
    source.apply(pb.WatchRequest(add_task_ids=["a", "b", "a"]))
    source.apply(pb.WatchRequest(add_task_ids=["a"]))
    with pytest.raises(LimitExceeded, match="another stream"):
        source.apply(pb.WatchRequest(add_task_ids=["c"]))
    request = pb.WatchRequest()
    for name in ("g", "h"):
        request.add_groups.add(group_id=name)
    with pytest.raises(LimitExceeded):
        source.apply(request)


async def test_a_worker_hears_what_is_to_stop(store: Store) -> None:
    """Wishes there already come first, later ones as they come; only for tasks it runs."""
    await store.put([make_report("a", "STARTED"), make_report("b", "STARTED")])
    await store.revoke("a")
    source = RevocationSource(store.engine, store.namespace)
    source.apply(worker_service_pb2.WatchRevocationsRequest(add_task_ids=["a", "b"], sequence=3))

    async def wishes() -> list[str]:
        answer = worker_service_pb2.WatchRevocationsResponse
        found = [answer.FromString(frame) for frame in [await source.next_frame()] if frame]
        return [wish.task_id for each in found for wish in each.revocations]

    assert await wishes() == ["a"]
    (synced,) = await frames(source)
    assert synced.control.sequence == 3
    await store.revoke("b", "c")
    assert await wishes() == ["b"]
    source.apply(worker_service_pb2.WatchRevocationsRequest(remove_task_ids=["a", "b"]))
    await store.revoke("a")
    assert await wishes() == []
    source.closing = True
    assert source.end == COMPLETE


async def test_others_have_their_turn_while_nothing_is_to_stop(store: Store) -> None:
    """However many tasks a worker runs."""
    source = RevocationSource(store.engine, store.namespace)
    names = [f"t{number}" for number in range(4 * limits.FRAME_TASKS_MAX)]
    source.apply(worker_service_pb2.WatchRevocationsRequest(add_task_ids=names))
    reading = asyncio.ensure_future(source.next_frame())
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 4
    assert sys.getsizeof(source._due) == sys.getsizeof({})


async def test_many_running_tasks_are_looked_at(store: Store) -> None:
    """However many tasks a worker runs, each wish is found among them."""
    names = [f"t{number}" for number in range(300)]
    await store.put([make_report(name, "STARTED") for name in names])
    await store.revoke(names[-1])
    source = RevocationSource(store.engine, store.namespace)
    source.apply(worker_service_pb2.WatchRevocationsRequest(add_task_ids=names))
    frame = await source.next_frame()
    assert frame is not None
    found = worker_service_pb2.WatchRevocationsResponse.FromString(frame)
    assert [wish.task_id for wish in found.revocations] == [names[-1]]
    assert await source.next_frame() is None


async def test_requests_wait_for_their_answers(store: Store) -> None:
    """A client that asks more than it reads is congested until an answer was sent."""
    source: ChangingSource = WatchSource(store.engine, store.namespace)
    assert isinstance(source, WatchSource)
    for sequence in range(1, limits.FRAME_TASKS_MAX + 1):
        assert not source.congested
        source.apply(pb.WatchRequest(sequence=sequence))
    assert source.congested
    answered = asyncio.ensure_future(source.answered())
    await asyncio.sleep(0)
    assert not answered.done()
    await source.next_frame()
    await answered
    assert not source.congested


async def test_subscribing_while_it_finishes_never_hangs(clock: Clock, tmp_path: Path) -> None:
    """Twenty thousand times a task ends while somebody begins to wait: each is told, once."""
    engine = make_engine("lmdb", clock, tmp_path)
    await engine.start()
    store = Store(engine, clock)
    choose = random.Random(7)

    async def waits(task_id: str, turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        source = wait_for(store, task_id)
        told = 0
        while source.end is None:
            found = await events(source)
            told += len(found)
            if not found and source.end is None:
                assert await source.subscription.wait(30), task_id
        source.close()
        return told

    async def finishes(task_id: str, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await store.report(task_id, ttl_ms=HOUR_MS)

    tries, at_once = 20_000, 100
    for first in range(0, tries, at_once):
        names = [f"t{number}" for number in range(first, first + at_once)]
        both = [waits(name, choose.randrange(8)) for name in names]
        reports = [finishes(name, choose.randrange(8)) for name in names]
        told = (await asyncio.gather(*both, *reports))[:at_once]
        assert told == [1] * at_once
    assert engine.hub.counts() == (0, 0)
    await engine.close()


async def test_what_is_asked_while_a_group_is_read_comes_before_its_sync(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SYNCED follows all that counts of its request, though that came while a read went on."""
    await store.report("t")
    source = WatchSource(store.engine, store.namespace)
    read = store.engine.group_step

    async def slow_read(namespace: str, group_id: str, cursor: Cursor, count_max: int) -> Step:
        source.apply(pb.WatchRequest(add_task_ids=["t"], sequence=2))
        return await read(namespace, group_id, cursor, count_max)

    monkeypatch.setattr(store.engine, "group_step", slow_read)
    source.apply(pb.WatchRequest(add_groups=[pb.GroupWatch(group_id="g")]))
    event, synced = await frames(source)
    assert [each.task.task_id for each in event.events] == ["t"]
    assert synced.control.sequence == 2
    source.close()
