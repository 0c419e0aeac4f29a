"""Who is to stop: kept a day, told to workers with every report and on a stream."""

from __future__ import annotations

from resultd.v1 import worker_service_pb2 as pb
from resultd_server import limits
from resultd_server.ledger import keys, usage
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.times import set_ms, to_ms
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import REVOCATION, Unit, View


def find(view: View, namespace: Namespace, task_id: str) -> bytes | None:
    """The serialized Revocation, or None."""
    if view.empty(Db.REVOCATIONS, namespace.prefix):
        return None
    return view.txn.get(Db.REVOCATIONS, keys.record(namespace, task_id))


def requested(view: View, namespace: Namespace, task_id: str) -> bool:
    """Whether somebody wants this task to stop."""
    return find(view, namespace, task_id) is not None


def growth_bytes(unit: Unit, namespace: Namespace, revocation: pb.Revocation) -> int:
    """By how much what is stored grows with this wish. Says in it when it was made."""
    set_ms(revocation.create_time, unit.now_ms)
    before = find(unit, namespace, revocation.task_id)
    if before is None:
        return len(keys.record(namespace, revocation.task_id)) + revocation.ByteSize()
    return revocation.ByteSize() - len(before)


def put(unit: Unit, namespace: Namespace, revocation: pb.Revocation) -> None:
    """Stores the wish; a later one replaces it."""
    expire_ms = unit.now_ms + limits.REVOCATION_MS
    set_ms(revocation.create_time, unit.now_ms)
    key = keys.record(namespace, revocation.task_id)
    unit.fill(Db.REVOCATIONS, namespace.prefix)
    row = revocation.SerializeToString()
    before = usage.put(unit, namespace.prefix, Db.REVOCATIONS, key, row)
    if before is not None:
        due = keys.expiry(expires_ms(before), keys.REVOCATION, namespace, revocation.task_id)
        unit.txn.delete(Db.EXPIRY, due)
    due = keys.expiry(expire_ms, keys.REVOCATION, namespace, revocation.task_id)
    unit.txn.put(Db.EXPIRY, due, b"")
    unit.hint(namespace, REVOCATION, revocation.task_id)


def expire(unit: Unit, namespace: Namespace, task_id: str) -> bool:
    """An expiry entry is due: removes the wish, unless a later one has replaced it."""
    raw = find(unit, namespace, task_id)
    if raw is None:
        return False
    if expires_ms(raw) > unit.now_ms:
        return False
    key = keys.record(namespace, task_id)
    return usage.delete(unit, namespace.prefix, Db.REVOCATIONS, key) is not None


def expires_ms(raw: bytes) -> int:
    """When a wish goes: where its entry stands."""
    return to_ms(pb.Revocation.FromString(raw).create_time) + limits.REVOCATION_MS
