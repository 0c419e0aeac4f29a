"""What must hold between rows: it does after everything, and what breaks it is found."""

from __future__ import annotations

import pytest

from resultd_server.engine.memory import MemoryEngine
from resultd_server.ledger import keys
from resultd_server.ledger.consistency import Broken
from resultd_server.ledger.txn import Db
from tests.support.stored import broken_in, rows_of, tamper
from tests.support.stores import HOUR_MS, NEVER, Clock, Store, group, task


async def fill(store: Store) -> None:
    """Something of everything."""
    await store.report("t1", "STARTED")
    await store.report("t1", group="g1", index=0)
    await store.report("t2", "FAILURE", group="g1", index=3, ttl_ms=NEVER)
    await store.create("g1", task("t3"), scope="s", continuation=b"then")
    await store.report("t3")
    await store.seal("g1", 3)
    await store.claim("g1", "token")
    await store.create("g2", group("g1"), task("t9"), seal=True)
    await store.create("g3", task("t1"), seal=True)
    await store.create("g3", task("t2"), new_epoch=True)
    await store.add_to_total("g3", 2, "request")
    await store.revoke("t7", "t9")
    await store.report("t4")
    await store.forget("t4")
    await store.create("g5", continuation=b"then" * 2_000)
    await store.create("g4", task("t5"))
    await store.delete_group("g4")


async def test_after_everything_all_rows_fit(store: Store) -> None:
    """On every engine, while what was dropped is still there, swept, and expired."""
    await fill(store)
    assert broken_in(store.engine) == []
    await store.sweep()
    assert broken_in(store.engine) == []
    store.clock.advance(30 * HOUR_MS)
    assert broken_in(store.engine) == []
    await store.sweep()
    assert broken_in(store.engine) == []


async def test_a_member_that_ends_after_its_group_is_no_damage(store: Store) -> None:
    """Nobody counts it: the group has expired, and is not swept yet."""
    await store.create("g", task("t"), ttl_ms=HOUR_MS)
    store.clock.advance(HOUR_MS)
    await store.report("t")
    assert broken_in(store.engine) == []


async def test_a_tombstone_past_its_hour_is_no_damage(store: Store) -> None:
    """Not swept yet when what it stood for came back, which removes it: clocks are set back."""
    for _ in range(2):
        await store.report("t")
        await store.create("g")
        await store.forget("t")
        await store.delete_group("g")
        store.clock.advance(HOUR_MS)
    await store.report("t")
    await store.create("g")
    assert broken_in(store.engine) == []
    store.clock.advance(-1)
    assert broken_in(store.engine) == []
    assert await store.existence("g") == "KNOWN"
    store.clock.advance(1)
    await store.sweep()
    assert broken_in(store.engine) == []


TOLD_OF = (
    *(Db.NAMESPACES, Db.EXPIRY, Db.GROUPS, Db.COUNTERS),
    *(Db.MEMBERS, Db.MEMBERSHIPS, Db.LOG, Db.CLAIMABLE),
)
"""Databases of whose rows others tell."""


@pytest.mark.parametrize("db", TOLD_OF)
async def test_a_row_that_is_missing_is_missed(db: Db, clock: Clock) -> None:
    """Any row of which another one tells: all of a database's are taken away in turn."""
    engine = MemoryEngine(clock)
    await fill(Store(engine, clock))
    missed = 0
    for key, value in rows_of(engine, db):
        tamper(engine, db, key, None)
        missed += broken_in(engine) != []
        tamper(engine, db, key, value)
    assert broken_in(engine) == []
    assert missed > 0


async def test_a_tombstone_of_an_earlier_build_is_no_damage(clock: Clock) -> None:
    """It ends before the time at which its task was done; counted anew, all fits."""
    engine = MemoryEngine(clock)
    store = Store(engine, clock)
    await store.report("t")
    await store.forget("t")
    ((key, row),) = rows_of(engine, Db.TOMBSTONES)
    tamper(engine, Db.TOMBSTONES, key, row[:38])
    assert {found.db for found in broken_in(engine)} == {"meta"}  # 8 bytes less than were counted
    tamper(engine, Db.TOMBSTONES, key, row[:37])
    assert ("tombstones", key) in [found[:2] for found in broken_in(engine)]


@pytest.mark.parametrize("db", [Db.TASKS, Db.TOMBSTONES])
async def test_a_row_that_is_cut_is_found(db: Db, clock: Clock) -> None:
    """Rows that are not what they should be are named, and end nothing."""
    engine = MemoryEngine(clock)
    await fill(Store(engine, clock))
    for key, value in rows_of(engine, db):
        tamper(engine, db, key, value[:5])
        assert (db.value.decode(), key) in [found[:2] for found in broken_in(engine)]
        tamper(engine, db, key, value)


async def test_a_member_that_was_not_counted_is_found(clock: Clock) -> None:
    """A terminal task with a place in no log is half a group: named with its key."""
    engine = MemoryEngine(clock)
    store = Store(engine, clock)
    await store.create("g", task("t"))
    ((key, uncounted),) = rows_of(engine, Db.MEMBERS)
    await store.report("t")
    tamper(engine, Db.MEMBERS, key, uncounted)
    found = broken_in(engine)
    assert Broken("members", key, "'t' is terminal and is not counted") in found
    assert {each.db for each in found} == {"members", "counters", "log"}


async def test_numbers_given_twice_are_found(clock: Clock) -> None:
    """Two namespaces of a number would see each other's records."""
    engine = MemoryEngine(clock)
    await Store(engine, clock, "one").report("t")
    await Store(engine, clock, "two").report("t")
    tamper(engine, Db.NAMESPACES, b"two", keys.U64.pack(1))
    named = [broken.key for broken in broken_in(engine) if broken.db == "namespaces"]
    assert named == [b"one", b"two"]


@pytest.mark.parametrize("kind", [b"t", b"g", b"r", b"T", b"G"])
async def test_an_entry_for_nothing_is_found(kind: bytes, clock: Clock) -> None:
    """Filed for what is not there, or is and expires at another time: named with its key."""
    engine = MemoryEngine(clock)
    await fill(Store(engine, clock))
    filed = [key for key, _ in rows_of(engine, Db.EXPIRY) if key[8:9] == kind]
    for key in filed:
        later = keys.U64.pack(keys.parse_expiry(key)[0] + 1) + key[8:]
        for stray in (later, key + b"x"):
            tamper(engine, Db.EXPIRY, stray, b"")
            ((db, found, _),) = broken_in(engine)
            assert (db, found) == ("expiry", stray)
            tamper(engine, Db.EXPIRY, stray, None)
    assert filed
