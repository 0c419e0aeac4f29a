"""`recount.repair`: what namespaces are said to hold is set right, and nothing else is touched."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from resultd_server.engine import audit, environment, recount
from resultd_server.engine.environment import Txn
from resultd_server.engine.recount import Change
from resultd_server.errors import RecordCorrupt, StoreFailed
from resultd_server.ledger import keys, usage
from resultd_server.ledger.txn import Db
from tests.support.stores import MAP_BYTES, Clock, Store, make_engine, task

FIRST = (1).to_bytes(8, "big")
"""The prefix of the first namespace."""


async def fill(directory: Path, clock: Clock, engine: str = "journaled") -> tuple[int, int]:
    """Two namespaces with tasks and a group; what the first one, `default`, holds."""
    opened = make_engine(engine, clock, directory)
    await opened.start()
    for namespace in ("default", "other"):
        store = Store(opened, clock, namespace)
        await store.create("g", task("t1"), task("t2"), seal=True)
        await store.report("t1")
        await store.report("t2", "FAILURE")
        await store.forget("t2")
    await opened.close()
    return counts(directory)[FIRST]


def counts(directory: Path) -> dict[bytes, tuple[int, int]]:
    """What the rows say, by prefix."""
    with contextlib.closing(environment.open_environment(directory, MAP_BYTES)) as opened:
        dbs = environment.open_databases(opened, directory)
        with opened.begin() as raw:
            rows = usage.rows(Txn(raw, dbs))
            return {prefix: (records, size_bytes) for prefix, records, size_bytes in rows}


def write(directory: Path, db: Db, key: bytes, row: bytes | None, *, sealed: bool = True) -> None:
    """Puts a row into LMDB, or deletes it; not sealed: its checksum does not fit."""
    with contextlib.closing(environment.open_environment(directory, MAP_BYTES)) as opened:
        dbs = environment.open_databases(opened, directory)
        with opened.begin(write=True) as raw:
            if row is None:
                raw.delete(key, db=dbs[db])
            else:
                raw.put(key, environment.seal(key, row) if sealed else row, db=dbs[db])


@pytest.mark.parametrize(
    ("row", "sealed", "said"),
    [
        (b"damaged", False, None),
        (b"short", True, None),
        (usage.pack(7, 7), True, (7, 7)),
        (None, True, (0, 0)),
    ],
)
async def test_a_wrong_count_is_set_right(
    tmp_path: Path, clock: Clock, row: bytes | None, sealed: bool, said: tuple[int, int] | None
) -> None:
    """Unreadable, no count, another one or none: it is named, and the store is whole again."""
    held = await fill(tmp_path, clock)
    write(tmp_path, Db.META, keys.usage(FIRST), row, sealed=sealed)
    assert audit.verify(tmp_path, clock()).count > 0
    assert recount.repair(tmp_path) == [Change("default", said, held)]
    assert audit.verify(tmp_path, clock()).damages == []
    assert recount.repair(tmp_path) == []
    assert counts(tmp_path)[FIRST] == held


async def test_its_namespace_is_served_again(tmp_path: Path, clock: Clock) -> None:
    """Writes that the damaged count refused are taken."""
    await fill(tmp_path, clock)
    write(tmp_path, Db.META, keys.usage(FIRST), b"damaged", sealed=False)
    for repaired in (False, True):
        engine = make_engine("journaled", clock, tmp_path)
        await engine.start()
        if repaired:
            await Store(engine, clock).report("t9")
            assert await Store(engine, clock).state("t9") == "SUCCESS"
        else:
            with pytest.raises(RecordCorrupt):
                await Store(engine, clock).report("t9")
        await engine.close()
        recount.repair(tmp_path)


async def test_the_count_of_no_namespace_goes(tmp_path: Path, clock: Clock) -> None:
    """What is counted for a namespace that holds nothing is deleted."""
    await fill(tmp_path, clock, "lmdb")
    write(tmp_path, Db.META, keys.usage(b"12345678"), usage.pack(1, 1))
    assert recount.repair(tmp_path) == [Change(b"12345678".hex(), (1, 1), (0, 0))]
    assert b"12345678" not in counts(tmp_path)


async def test_what_cannot_be_counted_is_refused(tmp_path: Path, clock: Clock) -> None:
    """A damaged record: nobody knows what was there, and nothing is written."""
    await fill(tmp_path, clock)
    write(tmp_path, Db.META, keys.usage(FIRST), usage.pack(7, 7))
    write(tmp_path, Db.TASKS, FIRST + b"t1", b"damaged", sealed=False)
    with pytest.raises(StoreFailed, match="Restore it from a backup"):
        recount.repair(tmp_path)
    assert counts(tmp_path)[FIRST] == (7, 7)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    """Nothing is made where there is nothing."""
    with pytest.raises(StoreFailed, match="There is no store"):
        recount.repair(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


async def test_a_store_in_use_is_left_alone(tmp_path: Path, clock: Clock) -> None:
    """Its server is named as the reason."""
    engine = make_engine("journaled", clock, tmp_path)
    await engine.start()
    with pytest.raises(OSError, match="A server uses"):
        recount.repair(tmp_path)
    await engine.close()
