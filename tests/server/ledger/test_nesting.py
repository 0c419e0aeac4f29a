"""Groups in groups: their outcome, their end, cycles and depth."""

from __future__ import annotations

import contextlib
from collections import Counter
from itertools import pairwise

import pytest

from resultd.v1 import state_pb2
from resultd_server import limits
from resultd_server.errors import GroupNesting, LimitExceeded
from resultd_server.ledger import memberships
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.memberships import Place
from resultd_server.ledger.unit import View
from tests.support.stores import HOUR_MS, Store, group, task


async def test_a_member_group_is_done_when_it_is_complete(store: Store) -> None:
    """A group as member is counted when complete; its event is a GroupMeta without payloads."""
    await store.create("child", task("a"), seal=True, continuation=b"large")
    await store.create("parent", group("child"), task("b"), seal=True)
    await store.report("b")
    answer = await store.report("a")
    assert answer.complete_group_ids == ["child"]
    event = (await store.events("parent"))[1]
    assert (event.group.group_id, event.gone) == ("child", False)
    assert event.group.outcome == state_pb2.STATE_SUCCESS
    assert not event.group.HasField("continuation")
    assert (await store.group("parent")).counts.complete


async def test_a_failed_member_makes_its_group_fail(store: Store) -> None:
    """A member group counts as FAILURE if a counted member failed or was revoked."""
    await store.create("outer", group("middle"), seal=True)
    await store.create("middle", group("inner"), seal=True)
    await store.create("inner", task("a"), task("b"), seal=True)
    await store.put([])
    await store.report("a", "REVOKED")
    await store.report("b")
    for name in ("inner", "middle", "outer"):
        assert await store.outcome(name) == "FAILURE"
    assert (await store.counts("outer"))["failed"] == 1


async def test_a_late_success_moves_counts_through_every_level(store: Store) -> None:
    """FAILURE that becomes SUCCESS changes the outcome of every group above, and no log."""
    await store.create("inner", task("a"), seal=True)
    await store.create("middle", group("inner"), seal=True)
    await store.create("outer", group("middle"), seal=True)
    await store.report("a", "FAILURE")
    assert await store.outcome("outer") == "FAILURE"
    await store.report("a", "SUCCESS")
    for name in ("inner", "middle", "outer"):
        meta = await store.group(name)
        assert (meta.counts.succeeded, meta.counts.failed) == (1, 0)
        assert await store.outcome(name) == "SUCCESS"
        assert len(await store.log(name)) == 1


async def test_a_complete_group_that_is_added_counts_at_once(store: Store) -> None:
    """A group that was complete before it became a member is counted on joining."""
    await store.create("child", seal=True)
    await store.create("parent", group("child"), seal=True)
    assert (await store.group("parent")).counts.complete


async def test_a_member_group_that_is_deleted_is_gone(store: Store) -> None:
    """A member group deleted before it was complete is GONE in the log; the parent fails."""
    await store.create("child", task("a"), seal=True)
    await store.create("parent", group("child"), task("b"), seal=True)
    await store.delete_group("child")
    await store.report("b")
    assert [event.gone for event in await store.events("parent")] == [True, False]
    assert (await store.members("parent"))[0].state == 0
    assert await store.counts("parent") == {
        "sealed": 1,
        "expected_total": 2,
        "members": 2,
        "done": 2,
        "succeeded": 1,
        "gone": 1,
        "complete": 1,
        "epoch": 1,
    }
    assert await store.outcome("parent") == "FAILURE"


async def test_what_is_gone_stays_gone(store: Store) -> None:
    """A member group made anew after its end changes nothing in the log that says GONE."""
    await store.create("child", task("a"))
    await store.create("parent", group("child"), seal=True)
    await store.delete_group("child")
    await store.create("child", seal=True)
    assert (await store.counts("parent"))["gone"] == 1
    assert await store.outcome("parent") == "FAILURE"


async def test_a_member_group_that_expires_is_gone(store: Store) -> None:
    """A member group that expires incomplete is GONE in its parent's log."""
    await store.create("child", task("a"), ttl_ms=HOUR_MS)
    await store.create("parent", group("child"), seal=True)
    store.clock.advance(HOUR_MS)
    assert (await store.sweep()).expired_incomplete == 1
    (event,) = await store.events("parent")
    assert (event.gone, event.group.group_id) == (True, "child")
    assert event.group.existence == state_pb2.EXISTENCE_EXPIRED


async def test_a_complete_member_group_that_goes_stays_counted(store: Store) -> None:
    """A member group deleted after it was complete keeps its outcome in the parent."""
    await store.create("child", seal=True)
    await store.create("parent", group("child"), seal=True)
    await store.delete_group("child")
    assert (await store.counts("parent"))["succeeded"] == 1
    (event,) = await store.events("parent")
    assert (event.gone, event.group.existence) == (False, state_pb2.EXISTENCE_FORGOTTEN)


async def test_a_group_in_itself_is_refused(store: Store) -> None:
    """A group that would contain itself is refused, directly and through others."""
    await store.create("a")
    with pytest.raises(GroupNesting, match="contain itself"):
        await store.add("a", group("a"))
    with pytest.raises(GroupNesting, match="contain itself"):
        await store.create("new", group("new"))
    await store.create("b", group("a"))
    await store.create("c", group("b"))
    with pytest.raises(GroupNesting, match="contain itself"):
        await store.add("a", task("t"), group("c"))
    assert await store.members("a") == []


async def test_a_cycle_through_a_group_not_yet_made_is_refused(store: Store) -> None:
    """Groups named before they exist are looked at when they come to be."""
    await store.create("a", group("b"))
    with pytest.raises(GroupNesting):
        await store.create("b", group("a"))
    assert await store.existence("b") == "UNKNOWN"


@pytest.mark.parametrize("upwards", [True, False])
async def test_groups_nest_sixteen_deep(store: Store, upwards: bool) -> None:
    """Sixteen levels nest, the seventeenth is refused, built from below or from above."""
    assert limits.GROUP_DEPTH_MAX == 16
    names = [f"level{number:02}" for number in range(17)]
    if upwards:
        pairs = [(parent, child) for child, parent in pairwise(names)]
    else:
        pairs = list(pairwise(names))
    for parent, child in pairs[:-1]:
        await store.create(parent, group(child))
    with pytest.raises(GroupNesting, match="at most 16 deep"):
        await store.create(pairs[-1][0], group(pairs[-1][1]))


async def test_two_tall_groups_do_not_join(store: Store) -> None:
    """The depth counts what is above the parent and what is below the child."""
    for name in ("x", "y"):
        for number in range(8):
            await store.create(f"{name}{number}", group(f"{name}{number + 1}"))
    with pytest.raises(GroupNesting):
        await store.add("x7", group("y0"))
    await store.add("x6", group("y0"))


async def test_a_member_group_that_grows_is_no_change_of_those_above(store: Store) -> None:
    """How tall they are is noted, and nothing else: their time to live runs on."""
    await store.create("above", group("grows"), ttl_ms=HOUR_MS)
    before = await store.group("above")
    store.clock.advance(HOUR_MS // 2)
    await store.create("grows", group("within"))
    assert await store.group("above") == before
    store.clock.advance(HOUR_MS // 2)
    assert await store.existence("above") == "EXPIRED"


async def test_what_is_above_is_looked_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many member groups one call adds: to check them all, and to note how tall it is."""
    for number in range(5):
        await store.create(f"parent{number}", group("child"))
    await store.create("child")
    looked_up: Counter[str] = Counter()
    groups_of = memberships.of

    def counted(view: View, namespace: Namespace, kind: bytes, id_: str) -> list[Place]:
        looked_up[id_] += 1
        return groups_of(view, namespace, kind, id_)

    monkeypatch.setattr(memberships, "of", counted)
    await store.add("child", *(group(f"grandchild{number}") for number in range(20)))
    assert looked_up.keys() == {"child", *(f"parent{number}" for number in range(5))}
    assert max(looked_up.values()) <= 2


@pytest.mark.parametrize(("visited", "fits"), [(7, True), (8, True), (9, False), (80, False)])
async def test_the_search_upwards_is_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch, visited: int, fits: bool
) -> None:
    """A group that is, with those above it, more than the bound takes no member groups."""
    monkeypatch.setattr(limits, "GROUP_PARENTS_VISITED", 8)
    for number in range(visited - 1):
        await store.create(f"parent{number}", group("child"))
    with contextlib.nullcontext() if fits else pytest.raises(LimitExceeded, match="nest fewer"):
        await store.create("child", group("grandchild"))
