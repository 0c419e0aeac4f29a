"""Tenants have numbers: eight bytes before every key, given on the first write."""

from __future__ import annotations

from resultd_server.ledger.keys import U64, Namespace
from resultd_server.ledger.txn import Db, ReadTxn, WriteTxn

_NEXT = b"next_namespace"


def find(txn: ReadTxn, name: str) -> Namespace | None:
    """The namespace, or None if nothing was ever written in it."""
    prefix = txn.get(Db.NAMESPACES, name.encode())
    return None if prefix is None else Namespace(name, prefix)


def find_or_create(txn: WriteTxn, name: str) -> Namespace:
    """The namespace, numbered now if it is new."""
    found = find(txn, name)
    if found is not None:
        return found
    prefix = next_number(txn, _NEXT)
    txn.put(Db.NAMESPACES, name.encode(), prefix)
    return Namespace(name, prefix)


def names(txn: ReadTxn) -> dict[bytes, Namespace]:
    """Every namespace by its prefix."""
    rows = txn.scan(Db.NAMESPACES, b"", b"\xff" * 100)
    return {prefix: Namespace(name.decode(), prefix) for name, prefix in rows}


def next_number(txn: WriteTxn, counter: bytes) -> bytes:
    """The next of a sequence kept in META: 1, 2, 3 … as eight bytes."""
    current = txn.get(Db.META, counter)
    number = U64.pack(1 if current is None else U64.unpack(current)[0] + 1)
    txn.put(Db.META, counter, number)
    return number
