"""Tenants have numbers: eight bytes before every key, given on the first write."""

from __future__ import annotations

from collections.abc import Collection

from resultd_server import limits
from resultd_server.errors import LimitExceeded, RecordCorrupt
from resultd_server.ledger.keys import U64, Namespace
from resultd_server.ledger.txn import Db, ReadTxn, WriteTxn

_NEXT = b"next_namespace"


def find(txn: ReadTxn, name: str) -> Namespace | None:
    """The namespace, or None if nothing was ever written in it."""
    prefix = txn.get(Db.NAMESPACES, name.encode())
    return None if prefix is None else Namespace(name, prefix)


def find_or_next(txn: ReadTxn, name: str) -> Namespace:
    """The namespace; where it is new, as `begin` will make it. Raises LimitExceeded."""
    found = find(txn, name)
    if found is not None:
        return found
    (there,) = U64.unpack(last(txn))
    if there >= limits.NAMESPACES_MAX:
        raise LimitExceeded(
            "namespaces", there + 1, limits.NAMESPACES_MAX, f"use another one than {name!r}"
        )
    return Namespace(name, U64.pack(there + 1))


def begin(txn: WriteTxn, namespace: Namespace) -> None:
    """Something was put in it: its number is its own, if it was not before.

    Not sooner: who is refused leaves none, of a name that is never used again.
    """
    if find(txn, namespace.name) is None:
        txn.put(Db.META, _NEXT, namespace.prefix)
        txn.put(Db.NAMESPACES, namespace.name.encode(), namespace.prefix)


def names(txn: ReadTxn) -> dict[bytes, Namespace]:
    """Every namespace by its prefix, but those whose rows are damaged."""
    rows = txn.scan(Db.NAMESPACES, b"", b"\xff" * 100, passing=True)
    return {prefix: Namespace(name.decode(), prefix) for name, prefix in rows}


def last(txn: ReadTxn) -> bytes:
    """The prefix that was given last: none is greater."""
    return txn.get(Db.META, _NEXT) or U64.pack(0)


def last_if_sound(txn: ReadTxn) -> bytes:
    """The same; where it cannot be read, a prefix that is less than any."""
    try:
        return last(txn)
    except RecordCorrupt:
        return bytes(U64.size)


class Known:
    """Namespaces that are there for good, kept in mind by name and by prefix.

    By prefix none can be found but by reading them all: that is done once, not in each step of
    the sweeper. There are NAMESPACES_MAX at most.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Namespace] = {}
        self._by_prefix: dict[bytes, Namespace] = {}

    def named(self, name: str) -> Namespace | None:
        """The namespace, if it is known."""
        return self._by_name.get(name)

    def keep(self, namespace: Namespace) -> None:
        """This one is committed: its prefix stays its own."""
        self._by_name[namespace.name] = namespace
        self._by_prefix[namespace.prefix] = namespace

    def with_prefixes(
        self, txn: ReadTxn, prefixes: Collection[bytes], committed: bytes
    ) -> dict[bytes, Namespace]:
        """Those that have these prefixes, without a name where that cannot be read.

        `committed`: no greater prefix is known to be.
        """
        found = {each: self._by_prefix[each] for each in prefixes if each in self._by_prefix}
        if len(found) < len(prefixes):
            for prefix, namespace in names(txn).items():
                if prefix in prefixes:
                    found[prefix] = namespace
                if prefix <= committed:
                    self.keep(namespace)
        return {prefix: found.get(prefix, Namespace("", prefix)) for prefix in prefixes}


def next_number(txn: WriteTxn, counter: bytes) -> bytes:
    """The next of a sequence kept in META: 1, 2, 3 … as eight bytes."""
    current = txn.get(Db.META, counter)
    number = U64.pack(1 if current is None else U64.unpack(current)[0] + 1)
    txn.put(Db.META, counter, number)
    return number
