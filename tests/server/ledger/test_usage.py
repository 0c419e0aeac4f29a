"""What a namespace holds: counted exactly, and never more than it may."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from resultd.v1 import state_pb2
from resultd_server.engine import audit
from resultd_server.engine.memory import MemoryEngine
from resultd_server.errors import DomainError, GroupConflict, GroupNotFound, Quota
from resultd_server.ledger import keys, records, usage
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Unit
from resultd_server.ledger.usage import Allowance, Held
from tests.support.stored import broken_in, rows_of, tamper, usage_of
from tests.support.stores import (
    DAY_MS,
    HOUR_MS,
    Clock,
    Store,
    disposition,
    group,
    make_engine,
    make_report,
    opened,
    task,
)


def allow(store: Store, records: int | None = None, size_bytes: int | None = None) -> Allowance:
    """Gives the engine's namespaces a quota from now on."""
    engine: Any = store.engine
    engine.allowance = Allowance(records, size_bytes)
    assert isinstance(engine.allowance, Allowance)
    return engine.allowance


@pytest.mark.parametrize("over", [-1, 0, 1])
async def test_records_are_stored_up_to_the_quota(store: Store, over: int) -> None:
    """Of a batch of one less, as many, one more: what is over is refused, the others go on."""
    allowed = allow(store, records=5)
    outcomes = await store.put([make_report(f"t{n}") for n in range(5 + over)])
    refusals = [each for each in outcomes if isinstance(each, DomainError)]
    assert len(refusals) == max(over, 0) == allowed.refused["records"]
    assert usage_of(store.engine)[0] == min(5 + over, 5)
    for refusal in refusals:
        assert isinstance(refusal, Quota)
        assert refusal.metadata == {
            "namespace": "default",
            "quota": "records",
            "held": "5",
            "limit": "5",
        }
        assert "holds 5 records and may hold 5, this adds 1: forget results" in refusal.sentence


@pytest.mark.parametrize("over", [-1, 0, 1])
async def test_bytes_are_stored_up_to_the_quota(store: Store, over: int) -> None:
    """A report that is one byte too large is refused, and the same one smaller is not."""
    await store.report("a", value=b"x" * 100)
    (_, one_bytes) = usage_of(store.engine)
    allow(store, size_bytes=2 * one_bytes)
    (outcome,) = await store.put([make_report("b", value=b"x" * (100 + over))])
    assert isinstance(outcome, Quota) == (over > 0)
    assert usage_of(store.engine)[1] == one_bytes if over > 0 else 2 * one_bytes + over


async def test_what_does_not_grow_goes_on(store: Store) -> None:
    """Over the quota: replacing, repeating, counting, reading, forgetting; in groups too."""
    await store.create("g", task("t"), task("t"), seal=True)
    await store.report("t", "STARTED", b"x" * 100)
    await store.report("u", value=b"x")
    allow(store, records=1, size_bytes=1)
    assert disposition(await store.report("t", value=b"y")) == "APPLIED"
    assert disposition(await store.report("t", value=b"y")) == "DUPLICATE"
    assert (await store.counts("g"))["done"] == 2
    assert await store.log("g") == ["t", "t"]
    assert (await store.meta("t")).value.data == b"y"
    await store.create("g", task("t"), task("t"))
    assert await store.add("g", task("t")) == [0]
    assert await store.claim("g", "token") == "GRANTED"
    assert await store.revoke("t") == [state_pb2.STATE_SUCCESS]
    with pytest.raises(Quota):
        await store.report("t2")
    assert await store.forget("u") == 1
    assert await store.delete_group("g")
    usage_of(store.engine)


async def test_groups_members_and_wishes_take_room(store: Store) -> None:
    """What is declared, added, named by a report or asked to stop fits to the byte, or is refused.

    Each step is measured in one namespace, and then tried in another with a byte less.
    """
    steps: list[Callable[[Store], Coroutine[Any, Any, Any]]] = [
        lambda at: at.create("g", task("a"), group("b", 3), continuation=b"then"),
        lambda at: at.create("g", task("a"), continuation=b"then and more"),
        lambda at: at.create("g", task("a"), continuation=b"then" * 2_000),
        lambda at: at.create("g", task("a"), continuation=b"then" * 2_001),
        lambda at: at.add("g", task("\u00f6"), task("a")),
        lambda at: at.report("r", group="h"),
        lambda at: at.report("r", group="i", index=4),
        lambda at: at.report("r", group="h", index=4),
        lambda at: at.add_to_total("g", 1, "r" * 255),
        lambda at: at.add_to_total("g", 1, "r"),
        lambda at: at.create(
            "g", task("c", 0), task("c", 0), new_epoch=True, continuation=b"then" * 3_000
        ),
    ]
    measured = Store(store.engine, store.clock, "measured")
    for number, step in enumerate(steps):
        allow(store)
        await step(measured)
        needed = usage_of(store.engine, "measured")
        before = usage_of(store.engine)
        allow(store, size_bytes=needed[1] - 1)
        with pytest.raises(Quota):
            await step(store)
        assert (number, usage_of(store.engine)) == (number, before)
        allow(store, size_bytes=needed[1])
        await step(store)
        assert (number, usage_of(store.engine)) == (number, needed)


async def test_wishes_are_kept_where_there_is_room(store: Store) -> None:
    """Asking tasks to stop is refused whole; that no record of it fits refuses nobody."""
    allow(store, size_bytes=30)
    with pytest.raises(Quota):
        await store.revoke("a", "b")
    assert usage_of(store.engine) == (0, 0)
    allow(store, records=1)
    assert await store.revoke("a", "b") == [state_pb2.STATE_REVOKED, 0]
    assert None not in await store.engine.revoked("default", ["a", "b"])
    store.clock.advance(2 * DAY_MS)
    await store.sweep()
    store.clock.advance(HOUR_MS)
    await store.sweep()
    assert usage_of(store.engine) == (0, 0)


async def test_what_is_left_of_the_forgotten_gives_way(store: Store) -> None:
    """A task or group that comes back takes no more than before: its tombstone goes."""
    await store.create("g", continuation=b"then")
    await store.report("t", value=b"1")
    held = usage_of(store.engine)
    allow(store, *held)
    await store.forget("t")
    await store.report("t", value=b"2")
    await store.delete_group("g")
    await store.create("g", continuation=b"then")
    await store.sweep()
    assert usage_of(store.engine) == held


async def test_room_comes_back(store: Store) -> None:
    """When results are forgotten, when they expire, and when groups go; another tenant's is his."""
    allow(store, records=2)
    other = Store(store.engine, store.clock, "other")
    await store.report("a")
    await store.report("b", ttl_ms=HOUR_MS)
    await other.report("a")
    for make_room in (lambda: store.forget("a"), lambda: later(store, HOUR_MS)):
        with pytest.raises(Quota):
            await store.report("c")
        await make_room()
        await store.report("c", "STARTED")
        assert usage_of(store.engine)[0] == 2
        await store.forget("c")
        await store.report("d")
    assert usage_of(store.engine, "other")[0] == 1
    await store.create("g", *(task(f"m{n}") for n in range(30)))
    held_bytes = usage_of(store.engine)[1]
    await store.delete_group("g")
    await store.sweep(7)
    assert usage_of(store.engine)[1] < held_bytes - 30 * len("m0") * 3
    await later(store, 3 * DAY_MS)
    await later(store, HOUR_MS)
    assert usage_of(store.engine) == (0, 0)


async def test_what_is_not_counted_is_no_more_than_what_is(store: Store) -> None:
    """Whatever is said again and again: rows take less than twice what is counted."""
    name = "x" * 255
    for number in range(30):
        store.clock.advance(1)
        await store.report("t", value=b"%d" % number, ttl_ms=365 * DAY_MS)
        await store.forget("t")
        await store.report(name, "STARTED", ttl_ms=365 * DAY_MS - number * 2)
        await store.report(name, "STARTED", ttl_ms=0)
        await store.revoke(name)
        await store.create("g", ttl_ms=365 * DAY_MS)
        await store.add_to_total("g", 1, f"{number:0255}")
        await store.create("h", seal=True, ttl_ms=365 * DAY_MS - number * 2)
        await store.claim("h", f"{number:0255}")
    held = sum(
        len(key) + len(value)
        for db in Db
        if db not in (Db.META, Db.NAMESPACES)
        for key, value in rows_of(store.engine, db)
    )
    assert held < 2 * usage_of(store.engine)[1]
    assert broken_in(store.engine) == []
    await store.forget("t", name)
    await store.delete_group("g")
    await store.delete_group("h")
    await later(store, 2 * DAY_MS)
    await nothing_is_left(store)


async def nothing_is_left(store: Store) -> None:
    """But what numbers were given."""
    await store.sweep()
    left = [db for db in Db if rows_of(store.engine, db)]
    assert set(left) <= {Db.META, Db.NAMESPACES}
    assert usage_of(store.engine) == (0, 0)


async def later(store: Store, by_ms: int) -> None:
    """Lets time go by, and what expires go."""
    store.clock.advance(by_ms)
    await store.sweep()


async def test_counts_outlive_the_server(tmp_path: Path, clock: Clock) -> None:
    """A store that is opened again, by whichever engine, knows what is held."""
    for number, name in enumerate(("journaled", "lmdb", "journaled"), 1):
        engine = make_engine(name, clock, tmp_path / "store")
        await engine.start()
        store = Store(engine, clock)
        allow(store, records=number)
        await store.report(f"t{number}")
        with pytest.raises(Quota):
            await store.report("one too many")
        assert usage_of(engine)[0] == number
        await engine.close()


async def test_a_double_count_is_found(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: every new row counts twice. `verify` names the namespace's row and both counts."""
    async with opened(clock, tmp_path, sync=False) as store:
        await store.report("t")
        one, size_bytes = usage_of(store.engine)
    assert audit.verify(tmp_path, clock()).count == 0
    honest = records._put

    def twice(unit: Unit, namespace: Namespace, id_: str, row: bytes, *said: int) -> bytes:
        key = honest(unit, namespace, id_, row, *said)
        usage.add(unit, namespace.prefix, 1, len(key) + len(row))
        return key

    monkeypatch.setattr(records, "_put", twice)
    async with opened(clock, tmp_path, sync=False) as store:
        await store.report("u")
    (damage,) = audit.verify(tmp_path, clock()).damages
    assert (damage.where, bytes.fromhex(damage.key)) == ("meta", keys.usage(keys.U64.pack(1)))
    assert damage.what == (
        f"says {3 * one} records of {3 * size_bytes} bytes, "
        f"and there are {2 * one} of {2 * size_bytes}"
    )


@pytest.mark.parametrize("row", [None, b"short", usage.pack(1, 1), usage.pack(-1, -1)])
async def test_a_wrong_count_is_found(row: bytes | None, clock: Clock) -> None:
    """Missing, cut, or of something else."""
    engine = MemoryEngine(clock)
    await Store(engine, clock).report("t")
    tamper(engine, Db.META, keys.usage(keys.U64.pack(1)), row)
    (broken,) = broken_in(engine)
    assert (broken.db, broken.key[:6]) == ("meta", b"usage:")


async def test_all_namespaces_together(store: Store) -> None:
    """Sums, and what the fullest holds; a namespace that is only read is none."""
    await store.put([make_report("a"), make_report("b")])
    await Store(store.engine, store.clock, "other").report("a", value=b"x" * 1_000)
    await Store(store.engine, store.clock, "read").state("a")
    small, large = usage_of(store.engine), usage_of(store.engine, "other")
    assert store.engine.stats().held == Held(2, 3, small[1] + large[1], 2, large[1])


async def test_many_namespaces_are_looked_at_bit_by_bit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many rows a time, whatever their number; told is the last look at all of them."""
    for number in range(5):
        await Store(store.engine, store.clock, f"n{number}").report("a")
    monkeypatch.setattr(usage, "ROWS_MAX", 2)
    read = []

    def records() -> int | None:
        held = store.engine.stats().held
        return held and held.records

    rows = usage.rows

    def counted(*said: Any) -> Iterator[tuple[bytes, int, int]]:
        read.append(0)
        for row in rows(*said):
            read[-1] += 1
            yield row

    monkeypatch.setattr(usage, "rows", counted)
    assert [records() for _ in range(3)] == [None, None, 5]
    await Store(store.engine, store.clock, "n0").report("b")
    assert [records() for _ in range(4)] == [5, 5, 6, 6]
    assert max(read) <= 3


IDS = st.sampled_from(["a", "b", "c"])
PLACES = st.none() | st.tuples(st.sampled_from(["g", "h"]), st.none() | st.integers(0, 3))
MEMBERS = st.lists(st.tuples(IDS, st.none() | st.integers(0, 3)), max_size=3)
STEPS = st.one_of(
    st.tuples(
        *(st.just("report"), IDS, st.sampled_from(["STARTED", "FAILURE", "SUCCESS"])),
        *(st.integers(0, 300), PLACES),
    ),
    st.tuples(st.just("create"), st.sampled_from(["g", "h"]), MEMBERS, st.booleans()),
    st.tuples(st.just("total"), st.sampled_from(["g", "h"]), st.sampled_from(["r", "r" * 255])),
    st.tuples(st.just("forget"), IDS),
    st.tuples(st.just("delete"), st.sampled_from(["g", "h"])),
    st.tuples(st.just("later"), st.sampled_from([HOUR_MS // 2, HOUR_MS])),
)


LIMITS = (2, 1_500)


def work(store: Store, step: Any) -> Coroutine[Any, Any, Any]:
    """A step, done."""
    name, *said = step
    if name == "report":
        id_, state, size_bytes, place = said
        group_id, index = place or ("", None)
        value = b"x" * size_bytes
        return store.report(id_, state, value, group=group_id, index=index, ttl_ms=HOUR_MS)
    if name == "create":
        members = [task(*member) for member in said[1]]
        return store.create(said[0], *members, new_epoch=said[2], ttl_ms=HOUR_MS)
    if name == "total":
        return store.add_to_total(said[0], 1, said[1])
    if name == "forget":
        return store.forget(*said)
    return store.delete_group(*said) if name == "delete" else later(store, *said)


async def tried(engine: MemoryEngine, step: Any) -> tuple[int, int]:
    """What a namespace would hold after a step, were there no quotas."""
    clock = Clock(engine.clock())
    copied = MemoryEngine(clock)
    copied._maps = {db: rows.copy() for db, rows in engine._maps.items()}
    with contextlib.suppress(GroupConflict, GroupNotFound):
        await work(Store(copied, clock), step)
    return usage_of(copied)


@settings(max_examples=25, deadline=None, database=None, phases=[Phase.generate])
@given(st.lists(STEPS, max_size=25))
def test_what_fits_is_taken_and_what_does_not_is_refused(steps: list[Any]) -> None:
    """A step is refused where without quotas the namespace would hold more than it may.

    And only there; a step that is refused leaves what is held as it was.
    """

    async def history() -> None:
        clock = Clock()
        engine = MemoryEngine(clock, allowance=Allowance(*LIMITS))
        for step in steps:
            before, wanted = usage_of(engine), await tried(engine, step)
            too_much = step[0] in ("report", "create", "total") and any(
                now > max(was, limit)
                for now, was, limit in zip(wanted, before, LIMITS, strict=True)
            )
            try:
                await work(Store(engine, clock), step)
            except (GroupConflict, GroupNotFound):
                assert not too_much
            except Quota:
                assert too_much, step
                assert usage_of(engine) == before
            else:
                assert not too_much, step
                assert usage_of(engine) == wanted

    asyncio.run(history())
