"""What a group's creator said: what is small beside the run's number, what is large apart.

A row of GROUPS is the run's number and a GroupMeta: claim scope, labels, and continuation and
extra where all that is small. Where it is not, those two are in a row of their own, which only
who sends or replaces them reads, and before the GroupMeta stands a zero byte, with which none
begins, and how large they are. Rows from before that have them in their place, however large.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from resultd.v1 import group_pb2
from resultd_server import limits
from resultd_server.errors import RecordCorrupt
from resultd_server.ledger import keys, usage
from resultd_server.ledger.counters import Counters
from resultd_server.ledger.keys import U64, Namespace
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Unit, View

TOGETHER_BYTES_MAX = 4 * limits.KIB
"""A commit's answers may each carry so much of it, and a page is made of a thousand rows."""

_APART = struct.Struct(">QBII")
"""The run's number, a zero, bytes of continuation and extra, and of the continuation alone."""
_LARGE_KEY_BYTES = len(keys.group_large(Namespace("", bytes(8)), 0))


class Owed(NamedTuple):
    """A group's continuation and extra, which an answer is to have when it is sent.

    Thousands of calls share a commit, and each may be answered with 3 MiB: until then an answer
    has the name of them.
    """

    namespace: Namespace
    group_id: str
    number: int
    size_bytes: int


def row(view: View, group: Counters) -> bytes:
    """The group's row."""
    raw = view.txn.get(Db.GROUPS, keys.record(group.namespace, group.group_id))
    return bytes(U64.size) if raw is None else raw


def _is_apart(raw: bytes) -> bool:
    return raw[U64.size : U64.size + 1] == b"\0"


def _said(raw: bytes) -> group_pb2.GroupMeta:
    """What is in a row."""
    return group_pb2.GroupMeta.FromString(raw[_APART.size if _is_apart(raw) else U64.size :])


def _has_large(said: group_pb2.GroupMeta) -> bool:
    """Whether continuation and extra are to lie apart."""
    return said.ByteSize() > TOGETHER_BYTES_MAX and (
        said.HasField("continuation") or bool(said.extra)
    )


def _large_of(said: group_pb2.GroupMeta) -> bytes:
    large = group_pb2.GroupMeta(extra=said.extra)
    if said.HasField("continuation"):
        large.continuation.CopyFrom(said.continuation)
    return large.SerializeToString()


def small(raw: bytes) -> group_pb2.GroupMeta:
    """Claim scope and labels, from a row."""
    said = _said(raw)
    said.ClearField("continuation")
    said.ClearField("extra")
    return said


def read(group: Counters, raw: bytes) -> tuple[group_pb2.GroupMeta, Owed | None]:
    """What a row says, and what else is to be told."""
    said = _said(raw)
    if _is_apart(raw):
        size_bytes = _APART.unpack_from(raw)[2]
    elif _has_large(said):
        size_bytes = len(raw)
        said.ClearField("continuation")
        said.ClearField("extra")
    else:
        return said, None
    return said, Owed(group.namespace, group.group_id, group.number, size_bytes)


def large(view: View, owed: Owed) -> bytes | None:
    """A GroupMeta with continuation and extra, serialized; None if the run is over.

    Raises RecordCorrupt where the run goes on without them.
    """
    found = view.txn.get(Db.GROUPS, keys.group_large(owed.namespace, owed.number))
    if found is not None:
        return found
    raw = view.txn.get(Db.GROUPS, keys.record(owed.namespace, owed.group_id))
    if raw is None or U64.unpack_from(raw)[0] != owed.number:
        return None
    if _is_apart(raw):
        raise _lost(owed.group_id)
    return _large_of(_said(raw))


def same_continuation(view: View, group: Counters, said: group_pb2.GroupMeta) -> bool:
    """Whether the group has the continuation that is said.

    A large one is not read for who says one of another size: that would be a small call. Raises
    RecordCorrupt where it is lost.
    """
    raw = row(view, group)
    if not _is_apart(raw):
        return _said(raw).continuation == said.continuation
    number, _, _, continuation_bytes = _APART.unpack_from(raw)
    if continuation_bytes != said.continuation.ByteSize():
        return False
    kept = view.txn.get(Db.GROUPS, keys.group_large(group.namespace, number))
    if kept is None:
        raise _lost(group.group_id)
    return group_pb2.GroupMeta.FromString(kept).continuation == said.continuation


def _lost(group_id: str) -> RecordCorrupt:
    return RecordCorrupt(
        f"The continuation of group {group_id!r} is lost: restore the store from a backup.",
        group_id=group_id,
    )


def put(unit: Unit, group: Counters, said: group_pb2.GroupMeta) -> None:
    """Keeps what the group's creator said, under the run's number."""
    key = keys.record(group.namespace, group.group_id)
    before = unit.txn.get(Db.GROUPS, key)
    grown = -_rows_bytes(before) if before is not None else len(key)
    large_key = keys.group_large(group.namespace, group.number)
    if _has_large(said):
        rest = _large_of(said)
        head = _APART.pack(group.number, 0, len(rest), said.continuation.ByteSize())
        kept = group_pb2.GroupMeta(claim_scope=said.claim_scope, labels=said.labels)
        raw = head + kept.SerializeToString()
        unit.txn.put(Db.GROUPS, large_key, rest)
    else:
        raw = U64.pack(group.number) + said.SerializeToString()
        if before is not None and _is_apart(before):
            unit.txn.remove(Db.GROUPS, large_key)
    unit.txn.put(Db.GROUPS, key, raw)
    usage.add(unit, group.namespace.prefix, 0, grown + _rows_bytes(raw))


def delete(unit: Unit, group: Counters) -> None:
    """The run is over."""
    key = keys.record(group.namespace, group.group_id)
    raw = unit.txn.get(Db.GROUPS, key)
    if raw is None:
        return
    if _is_apart(raw):
        unit.txn.remove(Db.GROUPS, keys.group_large(group.namespace, group.number))
    unit.txn.remove(Db.GROUPS, key)
    usage.add(unit, group.namespace.prefix, 0, -len(key) - _rows_bytes(raw))


def _rows_bytes(raw: bytes) -> int:
    """What a row takes, and the one that belongs to it; its key apart."""
    return len(raw) + (_LARGE_KEY_BYTES + _APART.unpack_from(raw)[2] if _is_apart(raw) else 0)


def growth_bytes(
    view: View, namespace: Namespace, group_id: str, said: group_pb2.GroupMeta | None = None
) -> int:
    """By how much its rows grow when a group is declared (again)."""
    key = keys.record(namespace, group_id)
    before = view.txn.get(Db.GROUPS, key)
    grown = U64.size + (len(key) if before is None else -_rows_bytes(before))
    if said is not None:
        grown += said.ByteSize()
        if _has_large(said):
            grown += _APART.size - U64.size + _LARGE_KEY_BYTES
    return grown


def misfit(view: View, key: bytes, raw: bytes) -> str:
    """What is wrong with a row of GROUPS beside others; "" if nothing is.

    Raises struct.error, DecodeError where it is none.
    """
    if key[8:9] == b"\0":
        group_pb2.GroupMeta.FromString(raw)
        counters = view.txn.get(Db.COUNTERS, key[9:])
        if counters is None:
            return "is what a run said that there is not"
        group = Counters.unpack(U64.unpack(key[9:])[0], counters)
        named = row(view, group)
        if not _is_apart(named) or U64.unpack_from(named)[0] != group.number:
            return f"is no part of group {group.group_id!r}"
        return ""
    (number,) = U64.unpack_from(raw)
    said = _said(raw)
    if not _is_apart(raw):
        return ""
    _, _, size_bytes, continuation_bytes = _APART.unpack_from(raw)
    kept = view.txn.get(Db.GROUPS, keys.group_large(Namespace("", key[:8]), number))
    if kept is None or len(kept) != size_bytes or said.HasField("continuation") or said.extra:
        return "has not the continuation and extra that it says"
    whole = group_pb2.GroupMeta.FromString(kept)
    if whole.continuation.ByteSize() != continuation_bytes:
        return "says another size of its continuation"
    return ""
