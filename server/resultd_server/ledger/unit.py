"""One unit of work: a transaction, the time it happens at, and what it changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resultd_server.ledger.txn import ReadTxn, WriteTxn

if TYPE_CHECKING:
    from resultd_server.ledger.counters import Counters
    from resultd_server.ledger.keys import Namespace

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


class Unit(View):
    """A writing unit.

    Group counters are changed many times in one commit, so they are kept here and
    written once, by `flush`; so are the bytes that `records` stamps new records with.
    An operation checks before it changes anything: one that raises a `DomainError`
    leaves the unit as it was.
    """

    __slots__ = ("changed", "counters", "dirty", "expired_incomplete", "stamps", "txn")

    txn: WriteTxn

    def __init__(self, txn: WriteTxn, now_ms: int) -> None:
        super().__init__(txn, now_ms)
        self.txn = txn
        self.counters: dict[int, Counters] = {}
        self.dirty: set[int] = set()
        self.changed: set[Changed] = set()
        self.stamps: dict[tuple[int, int, bool, int], bytes] = {}
        self.expired_incomplete = 0

    def hint(self, namespace: Namespace, kind: str, id_: str) -> None:
        """Whoever waits for this key is to read it again after the commit."""
        self.changed.add((namespace.name, kind, id_))
