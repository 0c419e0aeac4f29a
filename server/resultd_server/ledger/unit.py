"""One unit of work: a transaction, the time it happens at, and what it changed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import TYPE_CHECKING

from resultd_server import limits
from resultd_server.errors import RecordCorrupt
from resultd_server.ledger.keys import after_prefix
from resultd_server.ledger.txn import Db, ReadTxn, WriteTxn
from resultd_server.ledger.usage import UNLIMITED, Allowance

if TYPE_CHECKING:
    from resultd_server.ledger.counters import Counters
    from resultd_server.ledger.keys import Namespace
    from resultd_server.ledger.records import Stamp
    from resultd_server.ledger.usage import Usage

TASK = "task"
GROUP = "group"
REVOCATION = "revocation"

Changed = tuple[str, str, str]
"""(namespace, kind, id): the key of a hint."""

Place = tuple[Db, bytes]
"""The keys of a database that begin so."""


class View:
    """A reading unit. `now_ms` decides what has expired."""

    __slots__ = ("now_ms", "txn")

    def __init__(self, txn: ReadTxn, now_ms: int) -> None:
        self.txn: ReadTxn = txn
        self.now_ms = now_ms

    def empty(self, db: Db, prefix: bytes) -> bool:
        """Whether no key of a database begins so. False says nothing."""
        return False

    def spend(self, work_us: int) -> None:
        """Some work was done that what was asked for does not show: about so long."""


class Unit(View):
    """A writing unit.

    Group counters, and what namespaces hold, are changed many times in one commit, so they
    are kept here and written once, by `flush`; so is what `records` stamps new records with.
    An operation checks before it changes anything: one that raises a `DomainError`
    leaves the unit as it was.

    A few bytes may ask for much: records of megabytes to be forgotten, a member of a thousand
    groups to be counted. Who does such work says so, by `spend`, and operations on many things
    stop when `exhausted`, to be gone on with in another unit: others have their turn between.

    `vacant`: where no rows are, as units before it found. Given by who is the store's only
    writer; one set for all its units, not larger than a few hundred of them.
    """

    __slots__ = (
        *("_filled", "allowance", "changed", "counters", "dirty", "expired_incomplete", "limited"),
        *("stamps", "txn", "usages", "vacant", "work_us"),
    )

    txn: WriteTxn

    def __init__(
        self,
        txn: WriteTxn,
        now_ms: int,
        vacant: set[Place] | None = None,
        *,
        allowance: Allowance = UNLIMITED,
    ) -> None:
        super().__init__(txn, now_ms)
        self.txn = txn
        self.allowance = allowance
        self.limited = allowance.limited
        self.usages: dict[bytes, Usage] = {}
        self.counters: dict[int, Counters] = {}
        self.dirty: set[int] = set()
        self.changed: set[Changed] = set()
        self.stamps: dict[tuple[int, int, bool, int, int], Stamp] = {}
        self.expired_incomplete = 0
        self.work_us = 0
        self.vacant: set[Place] = set() if vacant is None else vacant
        self._filled: set[Place] = set()

    def empty(self, db: Db, prefix: bytes) -> bool:
        """Whether no key of a database begins so: looked up once.

        What most tasks do not have (a tombstone, a group, somebody who revoked them) is not
        looked for in every report. Only who puts a row there says `fill`, so it holds: nobody
        else writes while a unit lives, or while `vacant` is kept.
        """
        there = (db, prefix)
        if there in self.vacant:
            return True
        if there in self._filled:
            return False
        try:
            empty = next(self.txn.scan(db, prefix, after_prefix(prefix)), None) is None
        except RecordCorrupt:
            empty = False  # there is one, and whoever needs it is told
        (self.vacant if empty else self._filled).add(there)
        return empty

    def spend(self, work_us: int) -> None:
        self.work_us += work_us

    @property
    def exhausted(self) -> bool:
        """Whether so much was done that the rest is to wait."""
        return self.work_us >= limits.COMMIT_WORK_US

    def fill(self, db: Db, prefix: bytes) -> None:
        """A row is put whose key begins so."""
        self.vacant.discard((db, prefix))
        self._filled.add((db, prefix))

    def hint(self, namespace: Namespace, kind: str, id_: str) -> None:
        """Whoever waits for this key is to read it again after the commit."""
        self.changed.add((namespace.name, kind, id_))

    def hint_many(self, namespace: Namespace, kind: str, ids: Iterable[str]) -> None:
        """The same of many ids."""
        self.changed.update(zip(repeat(namespace.name), repeat(kind), ids))
