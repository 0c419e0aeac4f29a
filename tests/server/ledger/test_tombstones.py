"""What stays of a record that is gone."""

from __future__ import annotations

from resultd_server import limits
from resultd_server.ledger import keys, tombstones
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.tombstones import Tombstone
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Unit, View
from tests.server.ledger.test_txn import empty_txn

SPACE = Namespace("n", bytes(8))


def test_a_tombstone_tells_for_an_hour() -> None:
    """All that was noted is found for an hour, then nothing."""
    unit = Unit(empty_txn(), 1_000)
    said = {"existence": 3, "version": 2**40, "attempt": 7, "state": 8, "digest": b"x" * 16}
    tombstones.put(unit, SPACE, keys.TASK, "t", **said, done=2**63)  # type: ignore[arg-type]  # as named above
    end_ms = 1_000 + limits.TOMBSTONE_MS
    expected = Tombstone(end_ms, 2**40, 7, 8, 3, b"x" * 16, 2**63)
    assert tombstones.find(View(unit.txn, end_ms - 1), SPACE, keys.TASK, "t") == expected
    assert tombstones.find(View(unit.txn, end_ms), SPACE, keys.TASK, "t") is None


def test_tasks_and_groups_have_tombstones_apart() -> None:
    """Ids of tasks and groups are separate spaces, also when they are gone."""
    unit = Unit(empty_txn(), 0)
    tombstones.put(unit, SPACE, keys.GROUP, "x", existence=4, version=1)
    assert tombstones.find(unit, SPACE, keys.TASK, "x") is None
    tombstones.remove(unit, SPACE, keys.TASK, "x")
    assert tombstones.find(unit, SPACE, keys.GROUP, "x") is not None
    tombstones.remove(unit, SPACE, keys.GROUP, "x")
    assert tombstones.find(unit, SPACE, keys.GROUP, "x") is None


def test_a_tombstone_is_filed_once() -> None:
    """One that replaces another takes its entry's place; one that is removed leaves none."""
    txn = empty_txn()
    for now_ms in (0, 1, 1, 2):
        tombstones.put(Unit(txn, now_ms), SPACE, keys.TASK, "t", existence=3, version=1)
    ((key, _),) = txn.scan(Db.EXPIRY, b"", keys.ALL)
    assert key == keys.expiry(2 + limits.TOMBSTONE_MS, keys.TASK.upper(), SPACE, "t")
    tombstones.remove(Unit(txn, 3), SPACE, keys.TASK, "t")
    assert list(txn.scan(Db.EXPIRY, b"", keys.ALL)) == []


def test_an_older_tombstone_is_read() -> None:
    """One that was left before tombstones said when a task was done names no such time."""
    unit = Unit(empty_txn(), 1_000)
    tombstones.put(unit, SPACE, keys.TASK, "t", existence=3, version=5, done=77)
    key = keys.tombstone(SPACE, keys.TASK, "t")
    row = unit.txn.get(Db.TOMBSTONES, key)
    assert row is not None
    assert len(key) + len(row) == tombstones.size_bytes(SPACE, keys.TASK, "t") == 8 + 1 + 1 + 46
    newer = tombstones.find(unit, SPACE, keys.TASK, "t")
    assert newer is not None
    unit.txn.put(Db.TOMBSTONES, key, row[:38])
    assert tombstones.find(unit, SPACE, keys.TASK, "t") == newer._replace(done=0)
