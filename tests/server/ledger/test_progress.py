"""What a stream over a group sends next, from where it stands."""

from __future__ import annotations

import pytest

from resultd_server import limits
from resultd_server.errors import FieldInvalid
from resultd_server.ledger.progress import AS_COMPLETED, MEMBER, Cursor, finished
from tests.support.frames import event_of, events_of
from tests.support.stores import Store, make_report, task


async def test_member_order_stops_at_the_lowest_that_is_not_terminal(store: Store) -> None:
    """In member order nothing is sent past a member that is not terminal."""
    await store.create("g", *(task(name) for name in "abcd"), seal=True)
    sent = []
    for name in "bda":
        await store.report(name)
        sent.append([event.index for event in await store.events("g", MEMBER)])
    assert sent == [[], [], [0, 1]]
    await store.report("c")
    assert [event.position for event in await store.events("g", MEMBER)] == [3, 1, 4, 2]


async def test_a_gap_may_still_be_filled(store: Store) -> None:
    """Member order waits at an index nobody holds until the group is complete."""
    await store.put([make_report(f"t{n}", group="g", index=n) for n in (0, 2, 5)])
    assert [event.index for event in await store.events("g", MEMBER)] == [0]
    step = await store.step("g", Cursor(MEMBER))
    assert step.group is not None
    assert not finished(step.group, step.cursor)
    await store.report("t1", group="g", index=1)
    assert [event.index for event in await store.events("g", MEMBER)] == [0, 1, 2]
    await store.seal("g")
    step = await store.step("g", step.cursor)
    assert [event.index for event in events_of(step.events)] == [1, 2, 5]
    assert step.group is not None
    assert finished(step.group, step.cursor)


async def test_frames_are_filled(store: Store) -> None:
    """A step takes at most a frame of events, and says whether there are more."""
    await store.put([make_report(f"t{n:03}", group="g") for n in range(600)])
    sizes, cursor = [], Cursor(AS_COMPLETED)
    more = True
    while more:
        step = await store.step("g", cursor)
        sizes.append((step.event_count, step.more))
        cursor, more = step.cursor, step.more
    assert sizes == [(480, True), (120, False)]
    assert (await store.step("g", cursor)).events == b""


async def test_frames_are_bounded_in_bytes(store: Store) -> None:
    """A step ends before the event that would take it over 1 MiB, unless it is the only one."""
    sizes = [400_000, 400_000, 400_000, 3_000_000, 10]
    for number, size in enumerate(sizes):
        await store.report(f"t{number}", value=bytes(size), group="g")
    counts: list[int] = []
    cursor = Cursor(AS_COMPLETED)
    while sum(counts) < len(sizes):
        step = await store.step("g", cursor)
        assert len(step.events) <= limits.RESPONSE_BYTES_MAX
        counts.append(step.event_count)
        cursor = step.cursor
    assert counts == [2, 1, 1, 1]


@pytest.mark.parametrize("order", [AS_COMPLETED, MEMBER])
async def test_a_cursor_that_fits_goes_on(store: Store, order: int) -> None:
    """A cursor, encoded and decoded, goes on after the last event sent."""
    await store.put([make_report(f"t{n}", group="g", index=n) for n in range(3)])
    first = await store.step("g", Cursor(order))
    cursor = Cursor.decode(first.cursor.encode(), order)
    assert cursor == first.cursor
    await store.report("t3", group="g", index=3)
    event = event_of((await store.step("g", cursor)).events)
    assert event.task.task_id == "t3"


@pytest.mark.parametrize("order", [AS_COMPLETED, MEMBER])
@pytest.mark.parametrize("position", [2, 7, 2**32 - 1, 2**32, 2**64 - 1])
async def test_a_cursor_of_another_store_is_reset(store: Store, order: int, position: int) -> None:
    """A cursor whose entry is not there, or another's, or elsewhere, starts from the beginning."""
    await store.report("t", group="g")
    fits = (await store.step("g", Cursor(order))).cursor
    assert not (await store.step("g", fits)).reset
    for cursor in (
        fits._replace(position=position),
        fits._replace(id="u"),
        fits._replace(epoch=9),
        fits._replace(run=b"restored"),
    ):
        step = await store.step("g", Cursor.decode(cursor.encode(), order))
        assert (step.reset, step.events, step.cursor) == (True, b"", Cursor(order))


@pytest.mark.parametrize(
    "after",
    [
        b"x",
        b"\x01short",
        Cursor(MEMBER, 1, 1, "t").encode(),
        Cursor(AS_COMPLETED, 1, 1, "t" * 256).encode(),
        Cursor(AS_COMPLETED, 1, 1).encode() + b"\xff",
    ],
)
def test_a_cursor_that_is_none_is_refused(after: bytes) -> None:
    """What is not a cursor of this order raises FieldInvalid."""
    with pytest.raises(FieldInvalid, match="members received, or nothing"):
        Cursor.decode(after, AS_COMPLETED)


def test_nothing_is_the_beginning() -> None:
    """An empty `after` begins at the beginning."""
    assert Cursor.decode(b"", MEMBER) == Cursor(MEMBER)


async def test_another_tenants_cursor_is_reset(store: Store) -> None:
    """Though its group has the same id, members and epoch, and began in the same millisecond."""
    other = Store(store.engine, store.clock, "other")
    for each in (store, other):
        await each.create("g", task("a"))
        await each.report("a")
    theirs = (await other.step("g")).cursor
    assert theirs.position == 1
    assert (await store.step("g", theirs)).reset
    assert not (await other.step("g", theirs)).reset


async def test_a_cursor_says_nothing_of_other_tenants(store: Store) -> None:
    """Not how many groups they have begun, either."""
    runs = []
    for others in range(2):
        for number in range(5 * others):
            await Store(store.engine, store.clock, "other").create(f"g{number}", task("x"))
        await store.create("g", task("a"), new_epoch=bool(others))
        await store.report("a")
        runs.append((await store.step("g")).cursor.run)
    assert runs[0] == runs[1]
