"""Where a group is kept, and how it is shown."""

from __future__ import annotations

import pytest

from resultd_server import limits
from resultd_server.errors import RecordCorrupt
from resultd_server.ledger import group_rows
from resultd_server.ledger.unit import GROUP, Unit
from tests.server.ledger.test_txn import empty_txn
from tests.support.stored import broken_in, times_filed
from tests.support.stores import DAY_MS, HOUR_MS, NEVER, SECOND_MS, Store, group, task


async def test_a_group_shows_what_its_creator_said(store: Store) -> None:
    """A group is read with its payloads, numbers, times and claim."""
    await store.create("g", task("a"), seal=True, scope="s", continuation=b"c", ttl_ms=HOUR_MS)
    start_s = store.clock.now_ms // 1000
    store.clock.advance(1_000)
    await store.report("a")
    await store.claim("g", "token")
    meta = await store.group("g")
    assert (meta.group_id, meta.claim_scope, meta.continuation.data) == ("g", "s", b"c")
    assert (meta.created_time.seconds, meta.completed_time.seconds) == (start_s, start_s + 1)
    assert meta.updated_time.seconds == start_s + 1
    assert meta.expire_time.seconds == start_s + 1 + HOUR_MS // 1000
    assert meta.claim.lease_expire_time.seconds == start_s + 31


async def test_an_absent_group_says_why(store: Store) -> None:
    """UNKNOWN, FORGOTTEN, EXPIRED before and after the sweep: with the id and nothing else."""
    await store.create("deleted")
    await store.delete_group("deleted")
    await store.create("expired", ttl_ms=1)
    store.clock.advance(1)
    for _ in range(2):
        names = ("nobody", "deleted", "expired")
        found = [await store.existence(name) for name in names]
        assert found == ["UNKNOWN", "FORGOTTEN", "EXPIRED"]
        await store.sweep()
    meta = await store.group("deleted")
    assert {field.name for field, _ in meta.ListFields()} == {"group_id", "existence"}


def test_a_run_without_numbers_is_damage() -> None:
    """Where the numbers of a run are not there, the store is damaged, and whoever asks is told."""
    with pytest.raises(RecordCorrupt):
        group_rows.raw_counters(Unit(empty_txn(), 0), 7)


async def test_a_group_is_filed_once(store: Store) -> None:
    """However often it is declared, and for how long; not moved while it only lives longer."""
    first_ms = store.clock.now_ms + HOUR_MS
    for ttl_ms in (HOUR_MS, HOUR_MS, DAY_MS):
        await store.create("g", ttl_ms=ttl_ms)
        store.clock.advance(1)
        await store.report(f"t{ttl_ms}", group="g", ttl_ms=NEVER)
        assert times_filed(store.engine) == [first_ms]
    await store.create("g", ttl_ms=SECOND_MS)
    assert times_filed(store.engine) == [store.clock.now_ms + SECOND_MS]
    await store.create("g", ttl_ms=NEVER)
    assert times_filed(store.engine) == []
    await store.create("g", ttl_ms=HOUR_MS)
    await store.create("g", ttl_ms=DAY_MS, new_epoch=True)
    assert times_filed(store.engine) == [store.clock.now_ms + DAY_MS]
    await store.delete_group("g")
    assert times_filed(store.engine) == [store.clock.now_ms + limits.TOMBSTONE_MS]


async def test_a_group_that_lives_on_is_filed_again(store: Store) -> None:
    """When its entry is due and it is not: then once, for when it is."""
    await store.create("g", ttl_ms=HOUR_MS)
    store.clock.advance(HOUR_MS - 1)
    await store.add("g", task("t"))
    store.clock.advance(1)
    assert (await store.sweep()).expired == 0
    assert times_filed(store.engine) == [store.clock.now_ms + HOUR_MS - 1]
    store.clock.advance(HOUR_MS - 1)
    assert (await store.sweep()).expired == 1
    assert times_filed(store.engine) == [store.clock.now_ms + limits.TOMBSTONE_MS]


async def test_a_group_that_is_to_live_shorter_is_filed_for_that(store: Store) -> None:
    """A clock that was set back ends its life sooner: who waits for it is told then."""
    await store.create("above", ttl_ms=30 * DAY_MS)
    await store.add("above", group("g"))
    await store.create("g", task("a"), task("b"), ttl_ms=HOUR_MS)
    store.clock.advance(-DAY_MS)
    await store.report("a", group="g")
    assert store.clock.now_ms + HOUR_MS in times_filed(store.engine)
    store.clock.advance(HOUR_MS)
    subscription = store.engine.subscribe(store.namespace)
    subscription.add(GROUP, ["g"])
    assert (await store.sweep()).expired_incomplete == 1
    assert subscription.take() == [(GROUP, "g")]
    assert (await store.counts("above"))["gone"] == 1
    assert broken_in(store.engine) == []
    subscription.close()
