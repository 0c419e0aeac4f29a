"""What stays of a record that is gone: for an hour, enough to know a late repeat."""

from __future__ import annotations

import struct
from typing import NamedTuple

from resultd_server import limits
from resultd_server.ledger import keys, usage
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Unit, View

_FIELDS = struct.Struct(">QQIBB16sQ")
_OLDER = struct.Struct(">QQIBB16s")  # without `done`; they are gone an hour after the upgrade
ROW_BYTES = frozenset({_FIELDS.size, _OLDER.size})
NO_DIGEST = bytes(16)


class Tombstone(NamedTuple):
    """`version` is the record's last version, or the group's last epoch.

    `done`: the mark of the time at which the record says its task was done; 0 of a group.
    """

    expire_ms: int
    version: int
    attempt: int
    state: int
    existence: int
    digest: bytes
    done: int


def find(view: View, namespace: Namespace, kind: bytes, id_: str) -> Tombstone | None:
    """The tombstone, unless its hour is over."""
    return in_force(view, there(view, namespace, kind, id_))


def in_force(view: View, found: Tombstone | None) -> Tombstone | None:
    """A tombstone unless its hour is over."""
    return found if found is not None and found.expire_ms > view.now_ms else None


def there(view: View, namespace: Namespace, kind: bytes, id_: str) -> Tombstone | None:
    """The tombstone, its hour over or not: whoever revives the id is to remove it."""
    if view.empty(Db.TOMBSTONES, namespace.prefix):
        return None
    raw = view.txn.get(Db.TOMBSTONES, keys.tombstone(namespace, kind, id_))
    if raw is None:
        return None
    if len(raw) == _OLDER.size:
        raw = raw.ljust(_FIELDS.size, b"\0")
    return Tombstone._make(_FIELDS.unpack(raw))


def put(
    unit: Unit,
    namespace: Namespace,
    kind: bytes,
    id_: str,
    *,
    existence: int,
    version: int,
    attempt: int = 0,
    state: int = 0,
    digest: bytes = NO_DIGEST,
    done: int = 0,
) -> None:
    """Leaves a tombstone, due for deletion in an hour."""
    expire_ms = unit.now_ms + limits.TOMBSTONE_MS
    stone = Tombstone(expire_ms, version, attempt, state, existence, digest, done)
    unit.fill(Db.TOMBSTONES, namespace.prefix)
    key = keys.tombstone(namespace, kind, id_)
    before = usage.put(unit, namespace.prefix, Db.TOMBSTONES, key, _FIELDS.pack(*stone))
    _unfile(unit, namespace, kind, id_, before)
    unit.txn.put(Db.EXPIRY, keys.expiry(expire_ms, kind.upper(), namespace, id_), b"")


def remove(unit: Unit, namespace: Namespace, kind: bytes, id_: str) -> None:
    """The id is alive again. Left beside it, and the clock set back, it would count again."""
    key = keys.tombstone(namespace, kind, id_)
    _unfile(unit, namespace, kind, id_, usage.delete(unit, namespace.prefix, Db.TOMBSTONES, key))


def _unfile(unit: Unit, namespace: Namespace, kind: bytes, id_: str, raw: bytes | None) -> None:
    """Takes away the entry of a tombstone that is gone, or replaced."""
    if raw is not None:
        unit.txn.delete(Db.EXPIRY, keys.expiry(expires_ms(raw), kind.upper(), namespace, id_))


def expires_ms(raw: bytes) -> int:
    """When a tombstone goes: where its entry stands."""
    return int(keys.U64.unpack_from(raw)[0])


def size_bytes(namespace: Namespace, kind: bytes, id_: str) -> int:
    """What a tombstone of this id takes that is put now."""
    return len(keys.tombstone(namespace, kind, id_)) + _FIELDS.size
