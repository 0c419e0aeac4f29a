"""Waiting for tasks: what counts now first, then each change; a terminal one is never missed."""

from __future__ import annotations

import asyncio
import sys

import pytest

from resultd.v1 import stream_pb2
from resultd_server import limits
from resultd_server.core.tasks import TaskInterest
from resultd_server.ledger.unit import TASK
from tests.support.frames import event_of
from tests.support.stores import HOUR_MS, SECOND_MS, Store, make_report


class Waiter:
    """A stream's interest in tasks, and what it would send."""

    def __init__(self, store: Store, *task_ids: str, **how: bool) -> None:
        self.subscription = store.engine.subscribe(store.namespace)
        self.tasks = TaskInterest(store.engine, self.subscription, **how)
        self.tasks.add(task_ids)

    async def events(self) -> list[stream_pb2.Event]:
        """The events of the next frame."""
        for _, task_id in self.subscription.take():
            self.tasks.notice(task_id)
        return [event_of(event) for event in await self.tasks.next_events()]

    async def told(self) -> list[tuple[str, int]]:
        """(id, version) of the next frame's events."""
        return [(event.task.task_id, event.task.version) for event in await self.events()]


async def test_what_counts_already_comes_first(store: Store) -> None:
    """A task that ended before anybody waited is told at once; one that has not is not."""
    await store.put([make_report("done"), make_report("running", "STARTED")])
    waiter = Waiter(store, "done", "running", "unknown", "done")
    assert await waiter.told() == [("done", 1)]
    assert set(waiter.tasks.pending) == {"running", "unknown"}
    await store.report("running")
    assert await waiter.told() == [("running", 2)]
    assert await waiter.told() == []


async def test_a_terminal_event_is_told_once(store: Store) -> None:
    """Once its end was told a task is waited for no longer, whatever is reported later."""
    waiter = Waiter(store, "t")
    await store.report("t", "FAILURE")
    assert await waiter.told() == [("t", 1)]
    await store.report("t", "SUCCESS")
    assert await waiter.told() == []
    assert waiter.tasks.pending == {}


async def test_others_have_their_turn_while_nothing_counts(store: Store) -> None:
    """Where hints were lost all that is waited for is read again, and most is as it was."""
    waiter = Waiter(store, *(f"t{number}" for number in range(4 * limits.FRAME_TASKS_MAX)))
    reading = asyncio.ensure_future(waiter.told())
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert reading.result() == []
    assert turns >= 4


async def test_what_was_due_takes_no_room_afterwards(store: Store) -> None:
    """100,000 ids may be, when a stream begins; an emptied dict stays as large as it was."""
    waiter = Waiter(store, *(f"t{number}" for number in range(4 * limits.FRAME_TASKS_MAX)))
    assert await waiter.told() == []
    assert sys.getsizeof(waiter.tasks._due) == sys.getsizeof({})


async def test_transitions_are_told_where_asked_for(store: Store) -> None:
    """With transitions every version that was read is told, each once; without, only ends."""
    every, ends = Waiter(store, "t", transitions=True), Waiter(store, "t")
    for state in ("RECEIVED", "STARTED", "PROGRESS"):
        await store.report("t", state)
        assert len(await every.told()) == 1
        assert await every.told() == []
        assert await ends.told() == []
    await store.report("t", "RECEIVED", group="g")
    assert await every.told() == [("t", 4)]


async def test_a_slow_reader_sees_fewer_states_and_every_end(store: Store) -> None:
    """Who reads late is told the state of now, not those in between, and misses no end."""
    waiter = Waiter(store, "a", "b", transitions=True)
    for state in ("RECEIVED", "STARTED", "PROGRESS", "RETRY"):
        await store.put([make_report("a", state), make_report("b", state)])
    await store.report("b")
    assert sorted(await waiter.told()) == [("a", 4), ("b", 5)]
    await store.report("a")
    assert await waiter.told() == [("a", 5)]


async def test_a_forgotten_task_is_gone(store: Store) -> None:
    """A task forgotten or expired ends the wait for it, with the word why."""
    await store.report("old", ttl_ms=SECOND_MS)
    await store.report("t", "STARTED", ttl_ms=HOUR_MS)
    store.clock.advance(SECOND_MS)
    waiter = Waiter(store, "old", "t")
    assert [event.task.existence for event in await waiter.events()] == [3]
    await store.forget("t")
    assert [event.task.existence for event in await waiter.events()] == [4]
    assert (waiter.tasks.settled, waiter.tasks.gone, waiter.tasks.excepted) == (2, 2, 0)


async def test_forgotten_between_two_reports_the_end_still_comes(store: Store) -> None:
    """A waiter that holds an older version is told the end of a task forgotten in between."""
    waiter = Waiter(store, "t", transitions=True, wait_for_gone=True)
    await store.report("t", "RECEIVED")
    await store.report("t", "STARTED")
    assert await waiter.told() == [("t", 2)]
    await store.forget("t")
    assert await waiter.told() == []
    await store.report("t", "SUCCESS")
    assert await waiter.told() == [("t", 3)]


async def test_an_end_is_told_whatever_its_version(store: Store) -> None:
    """Versions thin out only what is not terminal: an end with an older version is told too."""
    waiter = Waiter(store, "t", transitions=True, wait_for_gone=True)
    for state in ("RECEIVED", "STARTED"):
        await store.report("t", state)
    assert await waiter.told() == [("t", 2)]
    await store.forget("t")
    store.clock.advance(limits.TOMBSTONE_MS)
    await store.report("t", "RECEIVED")
    await store.report("t", "SUCCESS")
    assert await waiter.told() == [("t", 2)]


async def test_frames_are_bounded(store: Store) -> None:
    """A frame holds at most 256 events; every task comes in one of them."""
    names = [f"t{number}" for number in range(600)]
    await store.put([make_report(name) for name in names])
    waiter = Waiter(store, *names)
    frames = [await waiter.told() for _ in range(4)]
    assert [len(frame) for frame in frames] == [256, 256, 88, 0]
    assert [name for frame in frames for name, _ in frame] == names


async def test_frames_are_bounded_in_bytes(store: Store) -> None:
    """A frame ends before the event that would take it over 1 MiB; none is lost or repeated."""
    sizes = {"a": 600_000, "b": 600_000, "c": 3_000_000, "d": 10, "e": 10}
    await store.put([make_report(name, value=bytes(size)) for name, size in sizes.items()])
    waiter = Waiter(store, *sizes)
    frames = []
    while waiter.tasks.pending:
        events = await waiter.events()
        assert sum(event.ByteSize() for event in events) < limits.RESPONSE_BYTES_MAX
        frames.append("".join(event.task.task_id for event in events))
    assert frames == ["a", "b", "c", "de"]


async def test_after_a_loss_everything_is_read_again(store: Store) -> None:
    """A loss of hints makes every task due: what ended meanwhile is told."""
    waiter = Waiter(store, "a", "b", "c")
    assert await waiter.told() == []
    subscription = waiter.subscription
    await store.put([make_report("a"), make_report("b")])
    subscription._noticed.clear()
    assert await waiter.told() == []
    store.engine.hub.lose()
    assert await subscription.wait(0)
    assert await waiter.told() == [("a", 1), ("b", 1)]


async def test_what_is_removed_is_not_told(store: Store) -> None:
    """A task taken out is told no more, even if its end was due; added again it is."""
    waiter = Waiter(store, "a", "b")
    await store.put([make_report("a"), make_report("b")])
    waiter.tasks.remove(["a", "nobody"])
    assert await waiter.told() == [("b", 1)]
    waiter.tasks.notice("a")
    assert await waiter.told() == []
    waiter.tasks.add(["a"])
    assert await waiter.told() == [("a", 1)]


@pytest.mark.parametrize(
    ("state", "excepted"), [("SUCCESS", 0), ("IGNORED", 0), ("FAILURE", 1), ("REVOKED", 1)]
)
async def test_what_is_an_exception(store: Store, state: str, excepted: int) -> None:
    """FAILURE and REVOKED are exceptions, SUCCESS and IGNORED are not."""
    waiter = Waiter(store, "t")
    await store.report("t", state)
    await waiter.events()
    assert (waiter.tasks.settled, waiter.tasks.excepted) == (1, excepted)
    assert waiter.subscription.noted == {TASK: {}}
