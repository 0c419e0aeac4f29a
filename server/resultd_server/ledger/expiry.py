"""What is due goes, a bounded number of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from resultd_server import limits
from resultd_server.errors import RecordCorrupt
from resultd_server.ledger import groups, keys, namespaces, records, revocations, usage
from resultd_server.ledger.keys import U64, Namespace
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Unit, View


def sweep(unit: Unit, budget: int, known: namespaces.Known, committed: bytes) -> tuple[int, int]:
    """Handles up to `budget` due entries and deletes up to as many left-over rows.

    (steps taken, records and groups that expired). As many steps as `budget` or more, or a unit
    that is exhausted, say that there is more to do. `known`, `committed`: of what is due every
    namespace is committed, see there.

    Raises RecordCorrupt. Where an entry led to what cannot be read its metadata say which was
    `due`, its `namespace`, how many were `before` it, and how many of these were `like` it in that.
    One that cannot be read itself stays, to be found by who verifies the store.
    """
    due = list(islice(_due(unit), budget))
    by_prefix = known.with_prefixes(unit.txn, _named(due), committed)
    steps = expired = 0
    for steps, (key, _) in enumerate(due, 1):
        try:
            expired += _handle(unit, key, by_prefix)
        except RecordCorrupt as error:
            error.metadata |= _whereabouts(key, [before for before, _ in due[: steps - 1]])
            raise
        if unit.exhausted:
            return steps, expired
    return steps + groups.collect_garbage(unit, budget), expired


def _whereabouts(key: bytes, before: list[bytes]) -> dict[str, str]:
    prefix = keys.parse_expiry(key)[2]
    like = sum(keys.parse_expiry(each)[2] == prefix for each in before)
    said = {"due": key.hex(), "namespace": prefix.hex(), "before": len(before), "like": like}
    return {name: str(fact) for name, fact in said.items()}


def _due(view: View) -> Iterator[tuple[bytes, bytes]]:
    return view.txn.scan(Db.EXPIRY, b"", U64.pack(view.now_ms + 1), passing=True)


def _named(due: list[tuple[bytes, bytes]]) -> set[bytes]:
    """Prefixes of namespaces whose names are needed: who waits there is told."""
    parsed = (keys.parse_expiry(key) for key, _ in due)
    return {prefix for _, kind, prefix, _ in parsed if kind in (keys.TASK, keys.GROUP)}


def _handle(unit: Unit, key: bytes, by_prefix: dict[bytes, Namespace]) -> bool:
    unit.txn.delete(Db.EXPIRY, key)
    _, kind, prefix, id_ = keys.parse_expiry(key)
    if kind == keys.TASK:
        return records.expire(unit, by_prefix[prefix], id_)
    if kind == keys.GROUP:
        return groups.expire(unit, by_prefix[prefix], id_)
    namespace = Namespace("", prefix)  # nobody is told of the others
    if kind == keys.REVOCATION:
        revocations.expire(unit, namespace, id_)
    else:
        _expire_tombstone(unit, prefix, keys.tombstone(namespace, kind.lower(), id_))
    return False


def put_off(unit: Unit, due: str, count: int) -> None:
    """Looks again in a day at what could not be read: `due` of the error that `sweep` raised.

    And at what else of its namespace is due next, so that it is `count` entries: a row that many
    of them lead to would else be met as many times.
    """
    start, stop = bytes.fromhex(due), U64.pack(unit.now_ms + 1)
    later = islice(unit.txn.scan(Db.EXPIRY, start, stop, passing=True), limits.SWEEP_ROWS)
    parsed = [(key, keys.parse_expiry(key)) for key, _ in later]
    namespace = keys.parse_expiry(start)[2]  # the entry itself may have gone meanwhile
    theirs = [each for each in parsed if each[1][2] == namespace]
    again_ms = unit.now_ms + limits.TTL_DEFAULT_MS
    for key, (_, kind, prefix, id_) in theirs[:count]:
        unit.txn.remove(Db.EXPIRY, key)
        unit.txn.put(Db.EXPIRY, keys.expiry(again_ms, kind, Namespace("", prefix), id_), b"")


def anything_due(view: View) -> bool:
    """Whether a sweep would have anything to do."""
    return next(_due(view), None) is not None or next(groups.garbage(view), None) is not None


def _expire_tombstone(unit: Unit, prefix: bytes, key: bytes) -> None:
    raw = unit.txn.get(Db.TOMBSTONES, key)
    # A later tombstone of the same id has a later entry of its own.
    if raw is not None and U64.unpack_from(raw)[0] <= unit.now_ms:
        usage.delete(unit, prefix, Db.TOMBSTONES, key)
