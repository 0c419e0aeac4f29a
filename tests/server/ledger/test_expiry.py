"""What is due goes, a bounded number of rows at a time; what is kept is looked at again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from resultd_server import limits
from resultd_server.engine.memory import MemoryEngine
from resultd_server.errors import DomainError
from resultd_server.ledger import expiry, keys
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import TASK
from tests.support.stored import broken_in, damage, row_of, rows_of, tamper, times_filed
from tests.support.stores import (
    DAY_MS,
    HOUR_MS,
    NEVER,
    SECOND_MS,
    Clock,
    Store,
    disposition,
    group,
    make_report,
    restarted,
    task,
)


async def test_a_record_lives_its_time_from_the_last_accepted_report(store: Store) -> None:
    """Each accepted report puts off the expiry by its own time to live; a repeat does not."""
    await store.report("t", "STARTED", ttl_ms=HOUR_MS)
    store.clock.advance(HOUR_MS - 1)
    await store.report("t", ttl_ms=HOUR_MS)
    store.clock.advance(HOUR_MS - 1)
    await store.sweep()
    assert disposition(await store.report("t", ttl_ms=DAY_MS)) == "DUPLICATE"
    store.clock.advance(1)
    assert await store.state("t") == "EXPIRED"
    assert (await store.sweep()).expired == 1
    assert await store.state("t") == "EXPIRED"


async def test_a_shorter_life_counts_from_the_report_that_named_it(store: Store) -> None:
    """A later report may shorten a record's life, give it one, or take it away."""
    await store.report("short", "STARTED", ttl_ms=DAY_MS)
    await store.report("short", ttl_ms=SECOND_MS)
    await store.report("given", "STARTED", ttl_ms=NEVER)
    await store.report("given", ttl_ms=SECOND_MS)
    await store.report("taken", "STARTED", ttl_ms=SECOND_MS)
    await store.report("taken", ttl_ms=NEVER)
    store.clock.advance(SECOND_MS)
    assert (await store.sweep()).expired == 2
    assert [await store.state(name) for name in ("short", "given", "taken")] == [
        "EXPIRED",
        "EXPIRED",
        "SUCCESS",
    ]
    store.clock.advance(1000 * DAY_MS)
    assert (await store.sweep()).expired == 0


async def test_a_member_lives_while_its_group_lives(store: Store) -> None:
    """A due member is kept and filed again while its group lives, then goes with it."""
    await store.create("g", task("t"), ttl_ms=DAY_MS)
    await store.report("t", ttl_ms=HOUR_MS)
    for _ in range(3):
        store.clock.advance(2 * HOUR_MS)
        assert (await store.sweep()).expired == 0
        assert await store.state("t") == "SUCCESS"
    await store.add("g", task("later"))
    store.clock.advance(DAY_MS - 1)
    await store.sweep()
    assert await store.state("t") == "SUCCESS"
    store.clock.advance(1)
    assert await store.state("t") == "EXPIRED"
    assert (await store.sweep()).expired == 2
    assert await store.state("t") == "EXPIRED"


async def test_a_group_that_expires_incomplete_lets_its_members_go(store: Store) -> None:
    """An incomplete group's end is counted; its members follow when their own time is over."""
    await store.create("g", task("short"), task("long"), task("none"), ttl_ms=HOUR_MS)
    await store.report("short", "STARTED", ttl_ms=SECOND_MS)
    await store.report("long", "STARTED", ttl_ms=DAY_MS)
    store.clock.advance(HOUR_MS)
    swept = await store.sweep()
    assert (swept.expired_incomplete, swept.expired) == (1, 2)
    assert await store.state("short") == "EXPIRED"
    assert await store.state("long") == "STARTED"
    store.clock.advance(DAY_MS)
    assert (await store.sweep()).expired == 1


async def test_a_deleted_group_keeps_nothing(store: Store) -> None:
    """Members past their own time go once their group is deleted, however long it had to live."""
    await store.create("year", task("a"), ttl_ms=365 * DAY_MS)
    await store.create("ever", task("b"), ttl_ms=NEVER)
    await store.put([make_report("a", ttl_ms=HOUR_MS), make_report("b", ttl_ms=HOUR_MS)])
    store.clock.advance(2 * HOUR_MS)
    assert (await store.sweep()).expired == 0
    await store.delete_group("year")
    await store.delete_group("ever")
    assert (await store.sweep()).expired == 2


async def test_a_member_of_two_groups_lives_with_the_longer(store: Store) -> None:
    """A record goes when the last of its groups has gone."""
    await store.create("short", task("t"), ttl_ms=HOUR_MS)
    await store.create("long", task("t"), ttl_ms=3 * HOUR_MS)
    await store.report("t", ttl_ms=SECOND_MS)
    store.clock.advance(2 * HOUR_MS)
    await store.sweep()
    assert await store.state("t") == "SUCCESS"
    store.clock.advance(HOUR_MS)
    await store.sweep()
    assert await store.state("t") == "EXPIRED"


@pytest.mark.parametrize("how", ["created", "added", "begun again", "begun anew"])
async def test_no_group_brings_back_what_has_expired(store: Store, how: str) -> None:
    """A record that is due is gone for good, swept or not: as a member its task counts anew."""
    if how != "created":
        await store.create("g", ttl_ms=SECOND_MS if how == "begun again" else DAY_MS)
    await store.report("t", ttl_ms=HOUR_MS)
    store.clock.advance(HOUR_MS)
    assert await store.state("t") == "EXPIRED"
    subscription = store.engine.subscribe(store.namespace)
    subscription.add(TASK, ["t"])
    if how == "added":
        await store.add("g", task("t"), task("t"))
    else:
        await store.create("g", task("t"), task("t"), new_epoch=how == "begun anew")
    assert subscription.take() == [(TASK, "t")]
    subscription.close()
    assert await store.state("t") == "EXPIRED"
    assert await store.log("g") == []
    assert broken_in(store.engine) == []
    await store.report("t", value=b"2")
    assert (await store.meta("t")).version == 2
    assert await store.log("g") == ["t", "t"]


@pytest.mark.parametrize("swept", [True, False], ids=["swept", "not swept"])
@pytest.mark.parametrize("complete", [True, False], ids=["complete", "incomplete"])
async def test_a_group_that_has_expired_is_no_member(
    store: Store, complete: bool, swept: bool
) -> None:
    """Who takes it waits for its next run, whenever the sweeper comes for the last one."""
    await store.create("part", task("t"), seal=True, ttl_ms=HOUR_MS)
    if complete:
        await store.report("t")
    store.clock.advance(HOUR_MS)
    if swept:
        await store.sweep()
    await store.create("g", group("part"))
    await store.sweep()
    assert await store.log("g") == []
    assert broken_in(store.engine) == []
    await store.create("part", task("t2"), seal=True)
    await store.report("t2")
    assert await store.log("g") == ["part"]


async def test_a_new_run_keeps_on_what_the_last_one_kept(store: Store) -> None:
    """A record past its own time that was there until its group began anew stays."""
    await store.create("g", task("t"))
    await store.report("t", ttl_ms=HOUR_MS)
    store.clock.advance(HOUR_MS)
    await store.create("g", task("t"), new_epoch=True)
    assert await store.state("t") == "SUCCESS"
    assert await store.log("g") == ["t"]


async def test_looking_again_at_what_is_kept_is_bounded(store: Store) -> None:
    """Members that are kept are filed again once a group's life, not once a sweep."""
    await store.create("g", *(task(f"t{n}") for n in range(20)), ttl_ms=DAY_MS)
    await store.put([make_report(f"t{n}", ttl_ms=SECOND_MS) for n in range(20)])
    store.clock.advance(HOUR_MS)
    assert (await store.sweep()).steps == 20
    for _ in range(5):
        store.clock.advance(HOUR_MS)
        assert (await store.sweep()).steps == 0


async def test_an_entry_of_an_earlier_life_does_no_harm(store: Store) -> None:
    """What was filed for a record that is gone does not touch the one that came after."""
    await store.report("t", ttl_ms=HOUR_MS)
    await store.forget("t")
    await store.report("t", "FAILURE", ttl_ms=DAY_MS)
    await store.create("g", ttl_ms=HOUR_MS)
    await store.delete_group("g")
    await store.create("g", ttl_ms=DAY_MS)
    store.clock.advance(HOUR_MS)
    assert (await store.sweep()).expired == 0
    assert (await store.state("t"), await store.existence("g")) == ("FAILURE", "KNOWN")


async def test_tombstones_stay_an_hour(store: Store) -> None:
    """A tombstone goes an hour after its record, a later one an hour after it came."""
    await store.report("t")
    await store.forget("t")
    store.clock.advance(limits.TOMBSTONE_MS // 2)
    await store.report("t", "FAILURE")
    await store.forget("t")
    store.clock.advance(limits.TOMBSTONE_MS // 2)
    await store.sweep()
    assert await store.state("t") == "FORGOTTEN"
    store.clock.advance(limits.TOMBSTONE_MS // 2)
    assert await store.state("t") == "UNKNOWN"
    await store.sweep()
    assert await store.state("t") == "UNKNOWN"


async def test_one_sweep_clears_many_small_groups(store: Store) -> None:
    """What groups leave behind goes as fast as they end: a sweep clears as many as it has steps."""
    for number in range(50):
        await store.create(f"g{number}", task(f"t{number}"), ttl_ms=SECOND_MS)
    store.clock.advance(SECOND_MS)
    swept = await store.engine.sweep(limits.SWEEP_ROWS)
    assert swept.expired == 50
    assert (await store.engine.sweep(limits.SWEEP_ROWS)).steps == 0


async def test_a_sweep_of_what_groups_left_is_bounded(store: Store) -> None:
    """However many rows ended groups left, a sweep deletes about its budget of them."""
    for number in range(10):
        members = (task(f"t{number}.{at}") for at in range(3))
        await store.create(f"g{number}", *members, ttl_ms=NEVER)
        await store.delete_group(f"g{number}")
    steps = [(await store.engine.sweep(7)).steps for _ in range(8)]
    assert max(steps) <= 8
    assert (sum(steps), steps[-1]) == (40, 0)


async def test_what_earlier_versions_filed_does_no_harm(clock: Clock) -> None:
    """Entries left of what is gone, and ahead of what lives on: they go, and nothing else does."""
    engine = MemoryEngine(clock)
    store = Store(engine, clock)
    await store.report("ahead", ttl_ms=3 * HOUR_MS)
    await store.create("g", ttl_ms=3 * HOUR_MS)
    for key, _ in rows_of(engine, Db.EXPIRY):  # as reports and members once left them
        tamper(engine, Db.EXPIRY, key, None)
        tamper(engine, Db.EXPIRY, keys.U64.pack(clock() + HOUR_MS) + key[8:], b"")
        tamper(engine, Db.EXPIRY, keys.U64.pack(clock() + HOUR_MS) + key[8:] + b"-gone", b"")
    ((number, row),) = rows_of(engine, Db.COUNTERS)
    tamper(engine, Db.COUNTERS, number, row[:-9])  # where its entry stands
    store.clock.advance(HOUR_MS)
    assert (await store.sweep()).expired == 0
    assert broken_in(engine) == []
    assert times_filed(engine) == [clock() + 2 * HOUR_MS] * 2
    store.clock.advance(2 * HOUR_MS)
    assert (await store.sweep()).expired == 2


async def test_a_record_that_its_group_keeps_has_no_entry(store: Store) -> None:
    """Once it was due it is filed no more, however long the group lives; then it goes with it."""
    await store.create("g", task("t"), ttl_ms=NEVER)
    await store.report("t", ttl_ms=HOUR_MS)
    store.clock.advance(HOUR_MS)
    await store.sweep()
    assert times_filed(store.engine) == []
    assert broken_in(store.engine) == []
    await store.delete_group("g")
    assert (await store.sweep()).expired == 1


async def test_nothing_of_others_is_put_off(store: Store) -> None:
    """Where what was due went meanwhile: of its namespace the next are put off, of others none."""
    other = Store(store.engine, store.clock, "other")
    for each, ttl_ms in ((store, 1), (other, 2), (store, 3), (other, 4)):
        await each.report(f"t{ttl_ms}", ttl_ms=ttl_ms)
    (due, *_) = [key.hex() for key, _ in rows_of(store.engine, Db.EXPIRY)]
    before = times_filed(store.engine)
    await store.forget("t1")
    store.clock.advance(SECOND_MS)
    engine: Any = store.engine
    await engine._write(lambda unit: expiry.put_off(unit, due, 10))
    left = [each for each in times_filed(store.engine) if each in before]
    assert left == [before[1], before[3]]


TENANT = bytes(7) + b"\1"
"""What the keys of the namespace made first begin with."""

DAMAGES = [
    (Db.EXPIRY, b"due"),
    (Db.GARBAGE, b""),
    (Db.MEMBERS, b""),
    (Db.LOG, b""),
    (Db.TOTALS, b""),
    (Db.MEMBERSHIPS, b""),
    (Db.COUNTERS, b""),
    (Db.GROUPS, b"due"),
    (Db.GROUPS, TENANT + b"\0"),
    (Db.CLAIMS, b""),
    (Db.CLAIMABLE, b""),
    (Db.TASKS, b"due"),
    (Db.TOMBSTONES, b"forgotten"),
    (Db.REVOCATIONS, b""),
    (Db.META, keys.usage(TENANT)),
    (Db.META, b"next_namespace"),
    (Db.META, b"next_group"),
    (Db.NAMESPACES, b"tenant"),
    (Db.NAMESPACES, b"other"),
]


async def fill(store: Store) -> None:
    """Something of every kind: what is due, what is over, what is to be remembered."""
    await store.report("due", ttl_ms=HOUR_MS)
    await store.create(
        "due", task("m"), ttl_ms=HOUR_MS, seal=True, scope="s", continuation=bytes(100_000)
    )
    await store.report("m", ttl_ms=HOUR_MS)
    await store.claim("due", "me")
    await store.create("over", task("x"), task("y"))
    await store.report("x", ttl_ms=HOUR_MS)
    await store.add_to_total("over", 1, "once")
    await store.delete_group("over")
    await store.report("forgotten")
    await store.forget("forgotten")
    await store.revoke("wished")


@pytest.mark.parametrize("name", ["lmdb", "journaled"])
@pytest.mark.parametrize("gone", [False, True], ids=["damaged", "gone"])
@pytest.mark.parametrize(("db", "key_part"), DAMAGES)
async def test_no_row_stops_expiry_for_all(
    clock: Clock, tmp_path: Path, db: Db, key_part: bytes, gone: bool, name: str
) -> None:
    """Whatever rows of one namespace, or of the store, are damaged or lost: others' records go."""
    async with restarted(name, clock, tmp_path) as store:
        await fill(Store(store.engine, clock, "tenant"))
        clock.advance(SECOND_MS)
        await Store(store.engine, clock, "bystander").report("b", ttl_ms=HOUR_MS)
        await Store(store.engine, clock, "other").report("o", ttl_ms=NEVER)
    async with restarted(name, clock, tmp_path) as store:
        damage(store.engine, db, key_part, gone=gone)
        clock.advance(DAY_MS + HOUR_MS)
        for _ in range(20):
            with suppress(DomainError):
                await store.engine.sweep(limits.SWEEP_ROWS)
        assert row_of(store.engine, Db.TASKS, bytes(7) + b"\2b") is None
