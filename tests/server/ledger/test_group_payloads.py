"""What a group's creator said: small beside its number, large apart and seldom read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resultd.v1 import group_pb2, group_service_pb2
from resultd_server.engine.memory import MemoryEngine, MemoryTxn
from resultd_server.errors import GroupConflict, RecordCorrupt
from resultd_server.ledger import group_payloads, keys
from resultd_server.ledger.groups import Declaration
from resultd_server.ledger.txn import Db
from tests.support.stored import broken_in, damage, rows_of, tamper, usage_of
from tests.support.stores import (
    SECOND_MS,
    Clock,
    Store,
    asking,
    group,
    make_report,
    restarted,
    task,
)

LARGE = b"x" * 100_000


@pytest.fixture
def memory(clock: Clock) -> Store:
    """A store whose rows are at hand."""
    return Store(MemoryEngine(clock), clock)


def said(**fields: Any) -> group_pb2.GroupMeta:
    """What a creator says, more than a continuation."""
    meta = group_pb2.GroupMeta(claim_scope="s", labels={"a": "b"})
    meta.continuation.content_type = "application/json"
    meta.continuation.data = fields.get("continuation", LARGE)
    meta.extra["more"].data = fields.get("extra", b"extra")
    return meta


async def declare(store: Store, meta: group_pb2.GroupMeta, **how: bool) -> group_pb2.GroupMeta:
    """A group of one task that says it."""
    declared = Declaration("g", [task("t", 0)], meta, 0, how.get("seal", False), False)
    return await store.engine.group_create(store.namespace, declared)


def shows(found: group_pb2.GroupMeta, meta: group_pb2.GroupMeta) -> bool:
    """Whether it is all there."""
    return all(
        getattr(found, name) == getattr(meta, name)
        for name in ("continuation", "claim_scope", "labels", "extra")
    )


@pytest.mark.parametrize("size_bytes", [10, 3_000, 5_000, 100_000, 2_000_000])
async def test_all_that_was_said_is_told(store: Store, size_bytes: int) -> None:
    """Of any size, in every answer that has the group; the same again in a report's claim."""
    meta = said(continuation=b"x" * size_bytes)
    engine = store.engine
    assert shows(await declare(store, meta), meta)
    assert shows(await store.group("g"), meta)
    assert shows(await engine.group_add_to_total("default", "g", 1, "r"), meta)
    assert shows((await engine.group_add("default", "g", [task("u", 1)]))[0], meta)
    assert shows(await store.seal("g", 1), meta)
    assert shows(await store.seal("g", 1), meta)
    await store.report("u")
    last = await store.report("t", group="g", claim="me")
    assert shows(last.claim.group, meta)
    assert last.claim.group.counts.complete
    again = await engine.group_claim("default", asking("g", "me"))
    assert shows(again.group, meta)
    theirs = await engine.group_claim("default", asking("g", "you"))
    brief = await engine.group_get("default", "g", brief=True)
    for each in (theirs.group, brief):
        assert (each.HasField("continuation"), len(each.extra)) == (False, 0)
        assert (each.labels["a"], each.claim_scope, each.group_id) == ("b", "s", "g")
    assert broken_in(engine) == []


async def test_what_is_said_again_takes_its_place(store: Store) -> None:
    """Large, small and large again, then nothing: as much is held as by who said it at once."""
    other = Store(store.engine, store.clock, "other")
    for size_bytes in (100_000, 10, 5_000, 0, 200_000):
        meta = said(continuation=b"x" * size_bytes)
        await declare(store, meta)
        await declare(other, meta)
        assert shows(await store.group("g"), meta)
        assert usage_of(store.engine) == usage_of(store.engine, "other")
        assert broken_in(store.engine) == []
        await other.delete_group("g")
        await other.sweep()
    await store.create("g", new_epoch=True)
    assert not (await store.group("g")).HasField("continuation")
    await store.delete_group("g")
    assert rows_of(store.engine, Db.GROUPS) == []


async def test_the_large_part_is_seldom_read(
    memory: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by who is told that another has the claim, lists, follows or counts: none of them shows
    it. A scan of groups does not come by it.
    """
    await declare(memory, said())
    await memory.create("outer", group("g"), seal=True)
    await memory.report("t")
    await memory.seal("g", 1)
    await memory.claim("g", "holder")
    read: list[int] = []
    get, scan = MemoryTxn.get, MemoryTxn.scan

    def counted_get(self: Any, db: Db, key: bytes) -> bytes | None:
        found = get(self, db, key)
        read.append(len(found or b""))
        return found

    def counted_scan(self: Any, *where: Any) -> Any:
        for key, row in scan(self, *where):
            read.append(len(row))
            yield key, row

    monkeypatch.setattr(MemoryTxn, "get", counted_get)
    monkeypatch.setattr(MemoryTxn, "scan", counted_scan)
    page = await memory.engine.group_list(
        "default", group_service_pb2.ListGroupsRequest(page_size=10)
    )
    assert len(page.rows) == 2
    wanted = group_service_pb2.ListGroupsRequest(page_size=10, claimable=True, claim_scope="s")
    await memory.engine.group_list("default", wanted)
    assert await memory.claim("g", "another") == "HELD"
    await memory.put([make_report("t", group="g", claim=f"c{n}") for n in range(20)])
    assert len(await memory.events("outer")) == 1
    with pytest.raises(GroupConflict):
        await declare(memory, said(continuation=b"another"))
    assert max(read) < 1_000
    await memory.group("g")
    assert max(read) > len(LARGE)


@pytest.mark.parametrize("name", ["lmdb", "journaled"])
@pytest.mark.parametrize("how", ["deleted", "expired", "said again", "begun again"])
async def test_the_large_part_goes_unread(
    clock: Clock, tmp_path: Path, how: str, name: str
) -> None:
    """Whatever ends a run, or takes the place of what was said: so too where it is damaged."""
    async with restarted(name, clock, tmp_path) as store:
        await store.create("g", continuation=LARGE, ttl_ms=SECOND_MS)
    async with restarted(name, clock, tmp_path) as store:
        damage(store.engine, Db.GROUPS, bytes(7) + b"\1\0")
        if how == "deleted":
            await store.delete_group("g")
        elif how == "expired":
            clock.advance(SECOND_MS)
            await store.sweep()
        else:
            await store.create("g", new_epoch=how == "begun again")
    async with restarted(name, clock, tmp_path) as store:
        rows = rows_of(store.engine, Db.GROUPS)
        assert [key[8:] for key, _ in rows] == ([b"g"] if "again" in how else [])
        usage_of(store.engine)


def in_place(store: Store) -> None:
    """The rows as they were before large parts lay apart."""
    assert isinstance(store.engine, MemoryEngine)
    for key, row in rows_of(store.engine, Db.GROUPS):
        if key[8:9] != b"\0" and row[8:9] == b"\0":
            number = row[:8]
            large_key = key[:8] + b"\0" + number
            (large,) = [
                each for name, each in rows_of(store.engine, Db.GROUPS) if name == large_key
            ]
            head = group_payloads._APART.size
            tamper(store.engine, Db.GROUPS, large_key, None)
            tamper(store.engine, Db.GROUPS, key, number + row[head:] + large)
            store.engine._maps[Db.META].clear()  # nothing is said of what is held
            store.engine._maps[Db.META][b"next_group"] = number
            store.engine._maps[Db.META][b"next_namespace"] = key[:8]


async def test_rows_from_before_are_read(memory: Store) -> None:
    """A group with its large part in place is told whole, listed without, said again, deleted."""
    meta = said()
    await declare(memory, meta)
    in_place(memory)
    assert len(rows_of(memory.engine, Db.GROUPS)) == 1
    assert shows(await memory.group("g"), meta)
    assert shows(await memory.engine.group_add_to_total("default", "g", 1, "r"), meta)
    assert not (await memory.engine.group_get("default", "g", brief=True)).extra
    page = await memory.engine.group_list(
        "default", group_service_pb2.ListGroupsRequest(page_size=10)
    )
    assert len(page.rows[0]) < 1_000
    await memory.seal("g", 0)
    with pytest.raises(GroupConflict):
        await declare(memory, said(continuation=LARGE + b"x"))
    assert shows(await declare(memory, meta), meta)
    assert len(rows_of(memory.engine, Db.GROUPS)) == 2
    assert [each for each in broken_in(memory.engine) if each.db == "groups"] == []
    in_place(memory)
    await memory.delete_group("g")
    assert rows_of(memory.engine, Db.GROUPS) == []


BREAKS: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "cut": lambda row: row[:-1],
    "longer": lambda row: row + b"\x1a\x00",
    "none": lambda _: b"\xff",
}


@pytest.mark.parametrize("how", BREAKS)
async def test_a_large_part_that_does_not_fit_is_found(memory: Store, how: str) -> None:
    """Missing, of another size, and no message at all."""
    await declare(memory, said())
    ((key, row),) = [each for each in rows_of(memory.engine, Db.GROUPS) if each[0][8:9] == b"\0"]
    assert isinstance(memory.engine, MemoryEngine)
    tamper(memory.engine, Db.GROUPS, key, BREAKS[how](row))
    assert "groups" in {each.db for each in broken_in(memory.engine)}


async def test_a_large_part_that_is_lost_is_not_nothing(memory: Store) -> None:
    """Who asks for it is told that it is lost; who reports is not told of a claim without it."""
    meta = said()
    await declare(memory, meta, seal=True)
    ((key, _),) = [each for each in rows_of(memory.engine, Db.GROUPS) if each[0][8:9] == b"\0"]
    assert isinstance(memory.engine, MemoryEngine)
    tamper(memory.engine, Db.GROUPS, key, None)
    assert not (await memory.report("t", group="g", claim="me")).HasField("claim")
    for asked in (memory.claim("g", "me"), memory.group("g"), declare(memory, meta)):
        with pytest.raises(RecordCorrupt, match="'g' is lost"):
            await asked
    with pytest.raises(GroupConflict):
        await declare(memory, said(continuation=b"another"))
    assert await memory.delete_group("g")


async def test_a_large_part_of_nobody_is_found(memory: Store) -> None:
    """Of a run that there is not, and of one that has it in place."""
    await memory.create("g", continuation=b"small")
    assert isinstance(memory.engine, MemoryEngine)
    prefix = rows_of(memory.engine, Db.GROUPS)[0][0][:8]
    for number, what in ((1, "is no part of group 'g'"), (9, "is what a run said")):
        key = prefix + b"\0" + keys.U64.pack(number)
        tamper(memory.engine, Db.GROUPS, key, b"")
        found = [each for each in broken_in(memory.engine) if each.db == "groups"]
        assert [each.key for each in found] == [key]
        assert found[0].what.startswith(what)
        tamper(memory.engine, Db.GROUPS, key, None)
