"""One unit of work: a transaction, the time it happens at, and what it changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resultd_server.errors import RecordCorrupt
from resultd_server.ledger.keys import after_prefix
from resultd_server.ledger.txn import Db, ReadTxn, WriteTxn

if TYPE_CHECKING:
    from resultd_server.ledger.counters import Counters
    from resultd_server.ledger.keys import Namespace
    from resultd_server.ledger.records import Stamp

TASK = "task"
GROUP = "group"
REVOCATION = "revocation"

Changed = tuple[str, str, str]
"""(namespace, kind, id): the key of a hint."""


class View:
    """A reading unit. `now_ms` decides what has expired."""

    __slots__ = ("now_ms", "txn")

    def __init__(self, txn: ReadTxn, now_ms: int) -> None:
        self.txn: ReadTxn = txn
        self.now_ms = now_ms

    def empty(self, db: Db, prefix: bytes) -> bool:
        """Whether no key of a database begins so. False says nothing."""
        return False


class Unit(View):
    """A writing unit.

    Group counters are changed many times in one commit, so they are kept here and
    written once, by `flush`; so is what `records` stamps new records with.
    An operation checks before it changes anything: one that raises a `DomainError`
    leaves the unit as it was.
    """

    __slots__ = ("_empty", "changed", "counters", "dirty", "expired_incomplete", "stamps", "txn")

    txn: WriteTxn

    def __init__(self, txn: WriteTxn, now_ms: int) -> None:
        super().__init__(txn, now_ms)
        self.txn = txn
        self.counters: dict[int, Counters] = {}
        self.dirty: set[int] = set()
        self.changed: set[Changed] = set()
        self.stamps: dict[tuple[int, int, bool, int], Stamp] = {}
        self.expired_incomplete = 0
        self._empty: dict[tuple[Db, bytes], bool] = {}

    def empty(self, db: Db, prefix: bytes) -> bool:
        """Whether no key of a database begins so: looked up once.

        What most tasks do not have (a tombstone, a group, somebody who revoked them) is not
        looked for in every report of a unit. Only who puts a row there says `fill`, so it
        holds: nobody else writes while a unit lives.
        """
        there = (db, prefix)
        empty = self._empty.get(there)
        if empty is None:
            try:
                empty = next(self.txn.scan(db, prefix, after_prefix(prefix)), None) is None
            except RecordCorrupt:
                empty = False  # there is one, and whoever needs it is told
            self._empty[there] = empty
        return empty

    def fill(self, db: Db, prefix: bytes) -> None:
        """A row is put whose key begins so."""
        self._empty[db, prefix] = False

    def hint(self, namespace: Namespace, kind: str, id_: str) -> None:
        """Whoever waits for this key is to read it again after the commit."""
        self.changed.add((namespace.name, kind, id_))
