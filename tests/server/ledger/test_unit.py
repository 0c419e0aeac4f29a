"""One unit of work: what it changed is what is hinted."""

from __future__ import annotations

from collections.abc import Iterator

from resultd_server.engine.memory import MemoryTxn
from resultd_server.errors import RecordCorrupt
from resultd_server.ledger import keys, memberships, tombstones
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import GROUP, TASK, Place, Unit, View
from tests.server.ledger.test_txn import empty_txn


def test_a_key_is_hinted_once_a_unit() -> None:
    """However often a key changes in a unit, it is named once, under its namespace and kind."""
    unit = Unit(empty_txn(), 0)
    for _ in range(2):
        unit.hint(Namespace("n", bytes(8)), TASK, "x")
    unit.hint(Namespace("n", bytes(8)), GROUP, "x")
    assert unit.changed == {("n", TASK, "x"), ("n", GROUP, "x")}


class CountingTxn(MemoryTxn):
    """Counts what is looked for."""

    looked = 0

    def get(self, db: Db, key: bytes) -> bytes | None:
        """Counted."""
        self.looked += 1
        return super().get(db, key)

    def scan(
        self, db: Db, start: bytes, stop: bytes, *, passing: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Counted."""
        self.looked += 1
        return super().scan(db, start, stop, passing=passing)


def test_what_no_task_has_is_looked_for_once() -> None:
    """Where a namespace has no tombstones and no memberships, that is found out once a unit."""
    space = Namespace("n", bytes(8))
    txn = CountingTxn(empty_txn()._maps)
    unit = Unit(txn, 0)
    for number in range(10):
        assert tombstones.find(unit, space, keys.TASK, f"t{number}") is None
        assert memberships.of(unit, space, keys.TASK, f"t{number}") == []
    assert txn.looked == 2


def test_what_is_known_to_be_missing_is_not_looked_for_by_the_next_unit() -> None:
    """With a set of empty places that outlives units; a row that one puts the others find."""
    space = Namespace("n", bytes(8))
    txn = CountingTxn(empty_txn()._maps)
    vacant: set[Place] = set()
    for _ in range(3):
        assert tombstones.find(Unit(txn, 0, vacant), space, keys.TASK, "t") is None
    assert txn.looked == 1
    tombstones.put(Unit(txn, 0, vacant), space, keys.TASK, "t", existence=4, version=1)
    assert tombstones.find(Unit(txn, 0, vacant), space, keys.TASK, "t") is not None
    assert not vacant


def test_what_is_put_is_found_though_there_was_none() -> None:
    """A row that comes after its kind was found missing is found, also in the same unit."""
    space, other = Namespace("n", bytes(8)), Namespace("m", bytes(7) + b"1")
    unit = Unit(empty_txn(), 0)
    for where in (space, other):
        assert tombstones.find(unit, where, keys.TASK, "t") is None
    tombstones.put(unit, space, keys.TASK, "t", existence=4, version=1)
    assert tombstones.find(unit, space, keys.TASK, "t") is not None
    assert tombstones.find(unit, other, keys.TASK, "t") is None
    tombstones.remove(unit, space, keys.TASK, "t")
    assert tombstones.find(unit, space, keys.TASK, "t") is None


def test_a_reader_takes_nothing_for_empty() -> None:
    """A view looks at rows themselves: it never says that there are none."""
    assert not View(empty_txn(), 0).empty(Db.TOMBSTONES, b"")


def test_a_row_that_cannot_be_read_is_there() -> None:
    """A corrupt row concerns who reads it, not everybody who asks whether there are any."""

    class Corrupt(MemoryTxn):
        def scan(
            self, db: Db, start: bytes, stop: bytes, *, passing: bool = False
        ) -> Iterator[tuple[bytes, bytes]]:
            raise RecordCorrupt("It does not match its checksum: restore the store.")

    assert not Unit(Corrupt(empty_txn()._maps), 0).empty(Db.TOMBSTONES, b"")
