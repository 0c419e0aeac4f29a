"""A group's numbers: small, changed with every member, kept apart from its payloads.

A group's payloads (continuation, extra) may be megabytes and change rarely; counting a
member rewrites only these hundred bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from resultd.v1 import group_pb2, state_pb2
from resultd_server.ledger import keys
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import GROUP, Unit, View

_FIELDS = struct.Struct(">BBIIIIIIIIIIIIQQQQQ8sH")
_FILED = struct.Struct(">Q")
_SEALED, _COMPLETE, _CLAIMED_DONE = 1, 2, 4

GONE = 255
"""Counted in place of a state: a member group that went before it was complete."""

_COUNT_OF = {
    state_pb2.STATE_SUCCESS: "succeeded",
    state_pb2.STATE_FAILURE: "failed",
    state_pb2.STATE_REVOKED: "revoked",
    state_pb2.STATE_IGNORED: "ignored",
    GONE: "gone",
}


@dataclass(slots=True)
class Counters:
    """The numbers of one run (epoch) of a group."""

    number: int
    namespace: Namespace
    group_id: str
    epoch: int
    created_ms: int
    updated_ms: int
    expire_ms: int
    ttl_ms: int  # 0: the group never expires
    completed_ms: int = 0
    sealed: bool = False
    complete: bool = False
    claimed_done: bool = False
    height: int = 1  # 1 + that of its tallest member group
    expected: int = 0
    declared: int = 0  # the total SealGroup named, AddToTotal's part not counted
    added: int = 0  # AddToTotal's part
    members: int = 0
    next_index: int = 0
    done: int = 0
    succeeded: int = 0
    failed: int = 0
    revoked: int = 0
    ignored: int = 0
    gone: int = 0
    scope: str = ""
    filed_ms: int = 0  # where its entry in EXPIRY stands; 0: nowhere, or not known

    def pack(self) -> bytes:
        flags = (
            _SEALED * self.sealed | _COMPLETE * self.complete | _CLAIMED_DONE * self.claimed_done
        )
        group_id = self.group_id.encode()
        return (
            _FIELDS.pack(
                flags,
                self.height,
                self.epoch,
                self.expected,
                self.declared,
                self.added,
                self.members,
                self.next_index,
                self.done,
                self.succeeded,
                self.failed,
                self.revoked,
                self.ignored,
                self.gone,
                self.created_ms,
                self.updated_ms,
                self.expire_ms,
                self.ttl_ms,
                self.completed_ms,
                self.namespace.prefix,
                len(group_id),
            )
            + group_id
            + self.namespace.name.encode()
            + b"\0"
            + self.scope.encode()
            + b"\0"
            + _FILED.pack(self.filed_ms)
        )

    @classmethod
    def unpack(cls, number: int, raw: bytes) -> Counters:
        (flags, height, epoch, expected, declared, added, members, next_index, done, succeeded,
         failed, revoked, ignored, gone, created_ms, updated_ms, expire_ms, ttl_ms, completed_ms,
         prefix, id_length) = _FIELDS.unpack_from(raw)  # fmt: skip
        names_at = _FIELDS.size + id_length
        name, _, rest = raw[names_at:].partition(b"\0")
        scope, _, filed = rest.partition(b"\0")  # rows written before there was one have none
        return cls(
            number=number,
            namespace=Namespace(name.decode(), prefix),
            group_id=raw[_FIELDS.size : names_at].decode(),
            epoch=epoch,
            created_ms=created_ms,
            updated_ms=updated_ms,
            expire_ms=expire_ms,
            ttl_ms=ttl_ms,
            completed_ms=completed_ms,
            sealed=bool(flags & _SEALED),
            complete=bool(flags & _COMPLETE),
            claimed_done=bool(flags & _CLAIMED_DONE),
            height=height,
            expected=expected,
            declared=declared,
            added=added,
            members=members,
            next_index=next_index,
            done=done,
            succeeded=succeeded,
            failed=failed,
            revoked=revoked,
            ignored=ignored,
            gone=gone,
            scope=scope.decode(),
            filed_ms=_FILED.unpack(filed)[0] if filed else 0,
        )

    @property
    def full(self) -> bool:
        """Whether a sealed group has all members it is to have."""
        return self.sealed and self.members >= self.expected

    @property
    def outcome(self) -> state_pb2.State.ValueType:
        """What a complete group counts as where it is a member itself."""
        bad = self.failed + self.revoked + self.gone
        return state_pb2.STATE_FAILURE if bad else state_pb2.STATE_SUCCESS

    def tally(self, state: int, by: int) -> None:
        """Counts `by` more members as `state` (or GONE)."""
        name = _COUNT_OF[state]
        setattr(self, name, getattr(self, name) + by)

    def alive(self, now_ms: int) -> bool:
        """Whether its time to live has not run out."""
        return not self.expire_ms or self.expire_ms > now_ms

    def touch(self, unit: Unit) -> None:
        """A change: write it at the commit, tell who waits, live the ttl from now."""
        self.updated_ms = unit.now_ms
        self.expire_ms = unit.now_ms + self.ttl_ms if self.ttl_ms else 0
        if 0 < self.expire_ms < self.filed_ms:
            file_expiry(unit, self)  # the clock was set back
        unit.dirty.add(self.number)
        unit.hint(self.namespace, GROUP, self.group_id)

    def to_message(self) -> group_pb2.GroupCounts:
        """As it goes over the wire."""
        return group_pb2.GroupCounts(
            sealed=self.sealed,
            expected_total=self.expected,
            members=self.members,
            done=self.done,
            succeeded=self.succeeded,
            failed=self.failed,
            revoked=self.revoked,
            ignored=self.ignored,
            gone=self.gone,
            complete=self.complete,
            epoch=self.epoch,
        )


def size_bytes(group_id: str) -> int:
    """What a run's numbers take, but for its scope and its namespace's name."""
    return len(keys.group(0)) + _FIELDS.size + len(group_id.encode()) + 2 + _FILED.size


def load(view: View, number: int) -> Counters | None:
    """The numbers of a run that exists and has not expired, else None."""
    if isinstance(view, Unit):
        kept = view.counters.get(number)
        if kept is not None:
            return kept if kept.alive(view.now_ms) else None
    raw = view.txn.get(Db.COUNTERS, keys.group(number))
    if raw is None:
        return None
    counters = Counters.unpack(number, raw)
    if not counters.alive(view.now_ms):
        return None
    if isinstance(view, Unit):
        view.counters[number] = counters
    return counters


def flush(unit: Unit) -> None:
    """Writes what the unit's operations changed. Called once before a commit."""
    for number in unit.dirty:
        unit.txn.put(Db.COUNTERS, keys.group(number), unit.counters[number].pack())
    unit.dirty.clear()


def file_expiry(unit: Unit, group: Counters) -> None:
    """Lets the sweeper look at the group when its time to live is over, or before.

    An entry for an earlier time stays, and the sweeper files the group again when that has come:
    so counting a member moves none.
    """
    if group.filed_ms and unit.now_ms < group.filed_ms <= group.expire_ms:
        return
    unfile(unit, group)
    group.filed_ms = group.expire_ms
    if group.filed_ms:
        unit.txn.put(Db.EXPIRY, _due(group), b"")
    unit.counters[group.number] = group
    unit.dirty.add(group.number)


def unfile(unit: Unit, group: Counters) -> None:
    """Takes the entry away: it stands where the group's numbers say, or nowhere."""
    if group.filed_ms:
        unit.txn.delete(Db.EXPIRY, _due(group))


def _due(group: Counters) -> bytes:
    return keys.expiry(group.filed_ms, keys.GROUP, group.namespace, group.group_id)


def discard(unit: Unit, number: int) -> None:
    """Forgets the numbers of a run that is over."""
    unit.counters.pop(number, None)
    unit.dirty.discard(number)
    unit.txn.delete(Db.COUNTERS, keys.group(number))
