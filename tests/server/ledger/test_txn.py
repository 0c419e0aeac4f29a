"""What the rules need of a store: each engine's transactions keep to it."""

from __future__ import annotations

import pytest
from sortedcontainers import SortedDict

from resultd_server.engine.memory import MemoryTxn
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Unit
from tests.support.stores import Store


def empty_txn() -> MemoryTxn:
    """A transaction on nothing."""
    return MemoryTxn({db: SortedDict() for db in Db})


async def write(store: Store, operation: object) -> object:
    """Runs an operation of the test's own in a transaction."""
    return await store.engine._write(operation)  # type: ignore[attr-defined]  # below the contract


async def test_rows_come_in_the_order_of_their_keys(store: Store) -> None:
    """A scan yields start <= key < stop in key order, from one database only."""

    def operation(unit: Unit) -> list[list[bytes]]:
        for key in (b"b", b"a", b"\xff", b"aa", b"c"):
            unit.txn.put(Db.META, key, key * 2)
        unit.txn.put(Db.LOG, b"ab", b"")
        ranges = [
            (b"", b"\xff" * 9),
            (b"a", b"b"),
            (b"aa", b"c"),
            (b"d", b"e"),
            (b"\xff\xff", b"\xff" * 9),
        ]
        return [[key for key, value in unit.txn.scan(Db.META, *each)] for each in ranges]

    assert await write(store, operation) == [
        [b"a", b"aa", b"b", b"c", b"\xff"],
        [b"a", b"aa"],
        [b"aa", b"b"],
        [],
        [],
    ]


async def test_a_row_is_put_read_and_deleted(store: Store) -> None:
    """`get` shows what `put` wrote in the same transaction; `delete` says what was there."""

    def operation(unit: Unit) -> list[object]:
        unit.txn.put(Db.META, b"k", b"1")
        unit.txn.put(Db.META, b"k", b"2")
        return [
            unit.txn.get(Db.META, b"k"),
            unit.txn.delete(Db.META, b"k"),
            unit.txn.delete(Db.META, b"k"),
            unit.txn.get(Db.META, b"k"),
        ]

    assert await write(store, operation) == [b"2", True, False, None]


async def test_a_row_that_is_there_is_removed(store: Store) -> None:
    """`remove` does what `delete` does, in one transaction and over several."""

    def put(unit: Unit) -> None:
        unit.txn.put(Db.META, b"below", b"1")

    def operation(unit: Unit) -> list[bytes | None]:
        unit.txn.put(Db.META, b"own", b"2")
        for key in (b"below", b"own"):
            unit.txn.remove(Db.META, key)
        return [unit.txn.get(Db.META, key) for key in (b"below", b"own")]

    await write(store, put)
    assert await write(store, operation) == [None, None]
    assert await write(store, lambda unit: unit.txn.get(Db.META, b"below")) is None


async def test_a_transaction_that_raises_leaves_nothing(store: Store) -> None:
    """An operation that raises changed nothing: what it put, replaced or deleted is as before."""

    def prepare(unit: Unit) -> None:
        unit.txn.put(Db.META, b"kept", b"1")
        unit.txn.put(Db.META, b"deleted", b"1")

    def failing(unit: Unit) -> None:
        unit.txn.put(Db.META, b"new", b"2")
        unit.txn.put(Db.META, b"kept", b"2")
        unit.txn.put(Db.META, b"kept", b"3")
        unit.txn.delete(Db.META, b"deleted")
        raise ZeroDivisionError

    def look(unit: Unit) -> list[bytes | None]:
        return [unit.txn.get(Db.META, key) for key in (b"new", b"kept", b"deleted")]

    await write(store, prepare)
    with pytest.raises(ZeroDivisionError):
        await write(store, failing)
    assert await write(store, look) == [None, b"1", b"1"]
