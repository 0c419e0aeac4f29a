"""Following a group: its log or its members, resumed, reset and ended."""

from __future__ import annotations

import pytest

from resultd.v1 import group_pb2
from resultd_server import limits
from resultd_server.core.groups import GroupInterest
from resultd_server.ledger.progress import AS_COMPLETED, MEMBER, Cursor, Step
from tests.support.frames import events_of
from tests.support.stores import HOUR_MS, Store, make_report, task


def follow(store: Store, order: int = AS_COMPLETED, after: bytes = b"") -> GroupInterest:
    """A stream's place in group "g"."""
    return GroupInterest(store.engine, store.namespace, "g", Cursor.decode(after, order))


async def read(interest: GroupInterest) -> list[str]:
    """The ids of all events that are due; RESET where it starts again."""
    found: list[str] = []
    interest.notice()
    while (frame := await interest.next_frame()) is not None:
        found += ["RESET"] if frame.reset else []
        found += [event.task.task_id for event in events_of(frame.events)]
    return found


async def test_a_group_is_read_when_it_is_due(store: Store) -> None:
    """Without a hint nothing is read; with one, what is new is sent."""
    await store.create("g", task("a"), task("b"), seal=True)
    interest = follow(store)
    assert await read(interest) == []
    await store.report("a")
    assert await interest.next_frame() is None
    assert await read(interest) == ["a"]
    assert await read(interest) == []
    assert not interest.over
    await store.report("b")
    assert await read(interest) == ["b"]
    assert (interest.complete, interest.gone) == (True, False)
    assert group_pb2.GroupCounts.FromString(interest.counts).done == 2


async def test_an_unknown_group_is_waited_for(store: Store) -> None:
    """A group nobody has heard of is waited for; its first report is told."""
    interest = follow(store)
    assert await read(interest) == []
    assert not interest.over
    await store.report("a", group="g")
    assert await read(interest) == ["a"]


async def test_a_group_that_goes_is_gone(store: Store) -> None:
    """A group deleted or expired while it is followed, or before, ends the stream GONE."""
    await store.create("g", task("a"), ttl_ms=HOUR_MS)
    interest = follow(store)
    await read(interest)
    store.clock.advance(HOUR_MS)
    assert await read(interest) == []
    assert (interest.gone, interest.over, interest.complete) == (True, True, False)
    assert await interest.next_frame() is None
    late = follow(store)
    await read(late)
    assert late.gone


@pytest.mark.parametrize("order", [AS_COMPLETED, MEMBER])
async def test_a_stream_is_resumed_where_it_stood(store: Store, order: int) -> None:
    """`after` of any frame resumes behind it: every event comes once over both streams."""
    names = [f"t{number:03}" for number in range(100)]
    await store.put([make_report(name, group="g", index=n) for n, name in enumerate(names)])
    first = follow(store, order)
    assert first.after == b""
    frame = await first.next_frame()
    assert frame is not None
    rest = follow(store, order, first.after)
    assert await read(rest) == names[len(events_of(frame.events)) :]


@pytest.mark.parametrize("order", [AS_COMPLETED, MEMBER])
async def test_a_new_epoch_starts_the_stream_again(store: Store, order: int) -> None:
    """A cursor of an old epoch gets RESET and then everything of the new run."""
    await store.create("g", task("a"), seal=True)
    await store.report("a")
    old = follow(store, order)
    assert await read(old) == ["a"]
    await store.create("g", task("a"), task("b"), seal=True, new_epoch=True)
    await store.report("b")
    resumed = follow(store, order, old.after)
    assert await read(resumed) == ["RESET", "a", "b"]
    assert resumed.complete


async def test_a_stream_that_was_sent_nothing_needs_no_reset(store: Store) -> None:
    """A new epoch under a stream that has sent nothing is simply followed."""
    await store.create("g", task("a"))
    interest = follow(store)
    await read(interest)
    await store.create("g", task("b"), new_epoch=True)
    await store.report("b")
    assert await read(interest) == ["b"]


@pytest.mark.parametrize("order", [AS_COMPLETED, MEMBER])
async def test_an_empty_group_is_complete_at_once(store: Store, order: int) -> None:
    """A group sealed with no members has nothing to send and is over."""
    await store.create("g", seal=True)
    interest = follow(store, order)
    assert await read(interest) == []
    assert interest.complete


async def test_who_resumes_a_group_that_is_long_gone_is_told(store: Store) -> None:
    """Even where its tombstone is gone too, a stream that had events of it ends GONE."""
    await store.create("g", task("a"), task("b"), seal=True)
    await store.report("a")
    interest = follow(store)
    assert await read(interest) == ["a"]
    await store.engine.group_delete(store.namespace, "g")
    store.clock.advance(2 * HOUR_MS)
    resumed = follow(store, after=interest.after)
    assert await read(resumed) == []
    assert resumed.gone


async def test_of_large_records_few_are_asked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a frame that was full in bytes, a step asks for twice as many as that held."""
    await store.put([make_report(f"t{n}", group="g", value=bytes(400_000)) for n in range(5)])
    asked, read_step = [], store.engine.group_step

    async def noted(namespace: str, group_id: str, cursor: Cursor, count_max: int) -> Step:
        asked.append(count_max)
        return await read_step(namespace, group_id, cursor, count_max)

    monkeypatch.setattr(store.engine, "group_step", noted)
    assert await read(follow(store)) == [f"t{n}" for n in range(5)]
    assert asked == [limits.FRAME_EVENTS_MAX, 4, 4]
