"""Groups: declared, added to, sealed, deleted; the whole request is checked first."""

from __future__ import annotations

import pytest

from resultd.v1 import group_pb2, state_pb2
from resultd_server import limits
from resultd_server.errors import (
    GroupConflict,
    GroupSealed,
    GroupTotalMismatch,
    LimitExceeded,
    ValueTooLarge,
)
from resultd_server.ledger.groups import Declaration
from resultd_server.ledger.progress import AS_COMPLETED, MEMBER, Cursor
from tests.support.stores import DAY_MS, HOUR_MS, NEVER, Store, group, task


async def test_a_declaration_made_twice_changes_nothing(store: Store) -> None:
    """CreateGroup is idempotent, with members that name their index and with those that do not."""
    for _ in range(2):
        made = await store.create("g", task("a"), task("b", 7), task("a"), seal=True)
        assert made.counts.members == 3
    assert [(each.index, each.id) for each in await store.members("g")] == [
        (7, "b"),
        (8, "a"),
        (9, "a"),
    ]


async def test_created_after_its_reports_a_group_keeps_its_members(store: Store) -> None:
    """A group declared after reports named it finds the members they brought, counted."""
    await store.report("b", group="g", index=1)
    await store.report("x", group="g")
    made = await store.create("g", task("a"), task("b"), task("x"), seal=True)
    assert (made.counts.members, made.counts.done, made.counts.expected_total) == (3, 2, 3)
    assert [(each.index, each.id) for each in await store.members("g")] == [
        (1, "b"),
        (2, "x"),
        (3, "a"),
    ]


async def test_an_empty_group_sealed_is_complete(store: Store) -> None:
    """Sealed with no members a group is complete at once, and a success."""
    made = await store.create("g", seal=True)
    assert (made.counts.complete, made.outcome) == (True, state_pb2.STATE_SUCCESS)
    assert made.completed_time.seconds == store.clock.now_ms // 1000


async def test_members_without_an_index_take_the_next_free_one(store: Store) -> None:
    """Indexes of an answer are in the order of the request; named ones come first."""
    await store.create("g", task("a", 3))
    assert await store.add("g", task("b"), task("c", 9), task("d")) == [10, 9, 11]
    assert await store.add("g", task("b"), task("c", 9), task("a", 3)) == [10, 9, 3]


async def test_an_index_of_another_is_a_conflict(store: Store) -> None:
    """A taken index refuses the whole request, whoever took it."""
    await store.create("g", task("a", 0))
    for members in ([task("b", 1), task("c", 0)], [task("b", 1), task("c", 1)], [group("a", 0)]):
        with pytest.raises(GroupConflict, match="belongs to another member"):
            await store.add("g", *members)
    assert (await store.counts("g"))["members"] == 1
    with pytest.raises(GroupConflict):
        await store.create("new", task("a", 0), task("b", 0))
    assert await store.existence("new") == "UNKNOWN"


async def test_a_sealed_group_takes_no_declared_members(store: Store) -> None:
    """AddGroupMembers to a sealed group is refused, even while it is short of its total."""
    await store.create("g", task("a"))
    await store.seal("g", 2)
    with pytest.raises(GroupSealed, match="AddToTotal"):
        await store.add("g", task("b"))
    assert await store.add("g", task("a")) == [0]


async def test_sealed_groups_keep_their_continuation(store: Store) -> None:
    """A declaration with another continuation or scope is refused once the group is sealed."""
    await store.create("g", continuation=b"one", scope="s")
    await store.create("g", continuation=b"two", scope="s", seal=True)
    await store.create("g", continuation=b"two", scope="s")
    for said in ({"continuation": b"three", "scope": "s"}, {"continuation": b"two"}):
        with pytest.raises(GroupConflict, match="new_epoch"):
            await store.create("g", **said)
    assert (await store.group("g")).continuation.data == b"two"


async def test_totals_must_agree(store: Store) -> None:
    """A second seal with another total is refused, and one below the members known."""
    await store.create("g", task("a"), task("b"))
    with pytest.raises(GroupTotalMismatch, match="2 members already"):
        await store.seal("g", 1)
    await store.seal("g", 3)
    assert (await store.seal("g", 3)).counts.expected_total == 3
    assert (await store.seal("g")).counts.expected_total == 3
    with pytest.raises(GroupTotalMismatch, match="same total"):
        await store.seal("g", 2)


async def test_a_total_is_raised_once_per_request(store: Store) -> None:
    """AddToTotal repeated with one request id adds nothing, before and after the sealing."""
    await store.create("g", task("a"))
    for _ in range(2):
        await store.add_to_total("g", 2, "r1")
    assert (await store.seal("g", 1)).counts.expected_total == 3
    for _ in range(2):
        await store.add_to_total("g", 1, "r2")
    assert (await store.counts("g"))["expected_total"] == 4
    assert (await store.seal("g", 1)).counts.expected_total == 4
    for name in "abcd":
        await store.report(name, group="g")
    await store.add_to_total("g", 1, "r2")
    with pytest.raises(GroupSealed, match="new epoch"):
        await store.add_to_total("g", 1, "r3")


async def test_sealing_without_a_total_means_as_many_as_are_known(store: Store) -> None:
    """However a group is sealed without a total, it expects the members it has."""
    for name in ("sealed", "created"):
        await store.create(name, task("a"), task("b"))
        await store.add_to_total(name, 1, "r")
    assert (await store.seal("sealed")).counts.expected_total == 2
    assert (await store.create("created", seal=True)).counts.expected_total == 2
    await store.create("more")
    await store.add_to_total("more", 5, "r")
    assert (await store.create("more", task("a"), seal=True)).counts.expected_total == 5


async def test_totals_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A total beyond the limit is refused, and nothing of the request is kept."""
    await store.create("g")
    monkeypatch.setattr(limits, "TOTAL_MAX", 10)
    with pytest.raises(LimitExceeded):
        await store.seal("g", 11)
    with pytest.raises(LimitExceeded):
        await store.add_to_total("g", 11, "r")
    assert await store.counts("g") == {"epoch": 1}


async def test_requests_of_totals_are_remembered_so_far(store: Store) -> None:
    """The last 64 request ids of AddToTotal are remembered, and the first of them too."""
    await store.create("g")
    for number in range(64):
        await store.add_to_total("g", 1, f"r{number}")
    await store.add_to_total("g", 1, "r0")
    assert (await store.seal("g", 0)).counts.expected_total == 64


async def test_indexes_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that would stand beyond the last index are refused together."""
    monkeypatch.setattr(limits, "INDEX_MAX", 5)
    await store.create("g", task("a", 4))
    with pytest.raises(LimitExceeded):
        await store.add("g", task("b"), task("c"))
    assert await store.add("g", task("b")) == [5]


async def test_places_of_one_id_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request cannot give an id more places than it may have."""
    monkeypatch.setattr(limits, "GROUPS_PER_MEMBER", 3)
    with pytest.raises(LimitExceeded, match="delete some"):
        await store.create("g", *(task("a", index) for index in range(4)))
    await store.create("g", *(task("a", index) for index in range(3)))
    await store.add("g", task("a", 2), task("b"))
    with pytest.raises(LimitExceeded):
        await store.add("g", task("a", 9))


async def test_a_new_epoch_does_not_count_the_run_it_ends(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members with as many places as they may have are declared again, and not with one more."""
    monkeypatch.setattr(limits, "GROUPS_PER_MEMBER", 3)
    await store.create("other", task("a"))
    for _ in range(3):
        await store.create("g", task("a"), task("a"), new_epoch=True)
    with pytest.raises(LimitExceeded):
        await store.create("g", *(task("a") for _ in range(3)), new_epoch=True)
    assert (await store.counts("g"))["epoch"] == 3


async def test_what_a_group_carries_is_bounded(store: Store) -> None:
    """A group over the record's limit is refused by name."""
    said = group_pb2.GroupMeta()
    said.continuation.data = bytes(limits.RECORD_BYTES_MAX)
    with pytest.raises(ValueTooLarge, match="'g'"):
        await store.engine.group_create("default", Declaration("g", [], said, 0, False, False))


async def test_a_new_epoch_is_an_empty_run(store: Store) -> None:
    """new_epoch puts an empty group of the same name in the place of the last run."""
    await store.create("g", task("a"), seal=True, scope="s")
    await store.report("a")
    await store.claim("g", "token", "ACQUIRE")
    made = await store.create("g", task("b"), new_epoch=True)
    assert (made.counts.epoch, made.counts.members, made.counts.done) == (2, 1, 0)
    assert await store.claim("g", "token") == "INCOMPLETE"
    assert (await store.report("x", scope="s")).claimable_group_ids == []
    await store.sweep()
    assert [member.id for member in await store.members("g")] == ["b"]
    await store.report("a", "FAILURE")
    assert "done" not in await store.counts("g")
    assert (await store.create("fresh", new_epoch=True)).counts.epoch == 1


@pytest.mark.parametrize("order", [AS_COMPLETED, MEMBER])
async def test_a_cursor_of_the_last_epoch_is_reset(store: Store, order: int) -> None:
    """A stream that stood in the last run is told to start again, and then sees the new one."""
    await store.create("g", task("a"))
    await store.report("a")
    before = (await store.step("g", Cursor(order))).cursor
    assert before.position == 1
    await store.create("g", task("b"), task("a"), new_epoch=True)
    await store.report("b")
    step = await store.step("g", before)
    assert (step.reset, step.events, step.cursor) == (True, b"", Cursor(order))
    assert (await store.step("g", step.cursor)).event_count == 2


@pytest.mark.parametrize("order", [AS_COMPLETED, MEMBER])
async def test_a_cursor_of_a_run_that_nothing_is_remembered_of_is_reset(
    store: Store, order: int
) -> None:
    """Its epoch is the first again then, and its first member may be the same."""
    await store.create("g", task("a"))
    await store.report("a")
    before = (await store.step("g", Cursor(order))).cursor
    for _ in range(3):  # the group goes, then what is left of it
        store.clock.advance(2 * 24 * HOUR_MS)
        await store.sweep()
    group = await store.create("g", task("a"))
    assert group.counts.epoch == before.epoch
    await store.report("a")
    step = await store.step("g", before)
    assert (step.reset, step.events, step.cursor) == (True, b"", Cursor(order))


async def test_a_deleted_group_leaves_its_members(store: Store) -> None:
    """Deleting a group takes its rows bit by bit, and none of its members' records."""
    await store.create("g", *(task(f"t{number}") for number in range(30)))
    for number in range(30):
        await store.report(f"t{number}")
    assert await store.delete_group("g")
    assert not await store.delete_group("g")
    assert await store.existence("g") == "FORGOTTEN"
    steps = []
    while (swept := await store.engine.sweep(7)).steps:
        steps.append(swept.steps)
    assert max(steps) <= 8
    assert sum(steps) >= 60
    assert await store.state("t7") == "SUCCESS"


async def test_a_group_lives_from_its_last_change(store: Store) -> None:
    """Each change of a group puts off its expiry by its time to live."""
    await store.create("g", task("a"), ttl_ms=HOUR_MS)
    store.clock.advance(HOUR_MS - 1)
    await store.report("a")
    store.clock.advance(HOUR_MS - 1)
    await store.sweep()
    assert await store.existence("g") == "KNOWN"
    store.clock.advance(1)
    assert await store.existence("g") == "EXPIRED"
    await store.sweep()
    assert await store.existence("g") == "EXPIRED"


async def test_a_group_may_live_for_ever(store: Store) -> None:
    """A group without a time to live goes when somebody deletes it; said so again, it expires."""
    made = await store.create("g", ttl_ms=NEVER)
    assert not made.HasField("expire_time")
    store.clock.advance(1000 * DAY_MS)
    await store.sweep()
    assert await store.existence("g") == "KNOWN"
    await store.create("g", ttl_ms=HOUR_MS)
    store.clock.advance(HOUR_MS)
    await store.sweep()
    assert await store.existence("g") == "EXPIRED"


async def test_an_expired_group_begins_anew(store: Store) -> None:
    """A report that names an expired group begins its next epoch, swept or not."""
    for swept in (False, True):
        name = f"g{swept}"
        await store.create(name, task("a"), ttl_ms=HOUR_MS)
        store.clock.advance(HOUR_MS)
        if swept:
            await store.sweep()
        await store.report("b", group=name)
        assert await store.counts(name) == {"members": 1, "done": 1, "succeeded": 1, "epoch": 2}
