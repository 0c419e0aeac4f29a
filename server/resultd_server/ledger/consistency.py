"""What must hold between the rows of a store, looked at one by one.

for broken in consistency.check(txn, now_ms):
    print(broken.db, broken.key.hex(), broken.what)

It reads everything, and keeps about a hundred bytes a record in memory meanwhile: for a
store that nobody serves.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import DecodeError

from resultd.v1 import state_pb2, task_pb2, worker_service_pb2
from resultd_server.ledger import (
    counters,
    group_payloads,
    keys,
    memberships,
    revocations,
    tombstones,
    usage,
)
from resultd_server.ledger.counters import GONE, Counters
from resultd_server.ledger.keys import U64
from resultd_server.ledger.transitions import TERMINAL
from resultd_server.ledger.txn import Db, ReadTxn
from resultd_server.ledger.unit import View

_PREFIX_BYTES = 8
_HEADER = struct.Struct(">QQIB")  # of records: expiry (0: never), version, attempt, state
_KINDS = {keys.TASK: Db.TASKS, keys.GROUP: Db.GROUPS}
_DUE_KINDS = frozenset(
    {keys.TASK, keys.GROUP, keys.REVOCATION, keys.TASK.upper(), keys.GROUP.upper()}
)
_COUNTED = (
    (state_pb2.STATE_SUCCESS, "succeeded"),
    (state_pb2.STATE_FAILURE, "failed"),
    (state_pb2.STATE_REVOKED, "revoked"),
    (state_pb2.STATE_IGNORED, "ignored"),
    (GONE, "gone"),
)


class Broken(NamedTuple):
    """A row that cannot be right, or does not fit others."""

    db: str
    key: bytes
    what: str


@dataclass(frozen=True)
class _Store:
    """What most checks look things up in."""

    view: View
    prefixes: frozenset[bytes]
    due: frozenset[int]
    """Hashes of what EXPIRY names: kind and the record's key."""
    runs: frozenset[int]
    over: frozenset[int]
    """Runs whose rows wait for the sweeper."""


def check(txn: ReadTxn, now_ms: int) -> Iterator[Broken]:
    """Everything that is wrong. Raises RecordCorrupt where a row's checksum is."""
    store = _Store(
        View(txn, now_ms),
        frozenset(prefix for _, prefix in _all(txn, Db.NAMESPACES)),
        frozenset(hash(key[_PREFIX_BYTES:]) for key, _ in _all(txn, Db.EXPIRY)),
        frozenset(U64.unpack(key)[0] for key, _ in _all(txn, Db.COUNTERS) if len(key) == U64.size),
        frozenset(U64.unpack(key)[0] for key, _ in _all(txn, Db.GARBAGE) if len(key) == U64.size),
    )
    checks = (
        _numbers, _records, _due_entries, _groups, _runs, _members, _memberships, _log, _claims,
        _claimable, _tombstones, _revocations, _usage,
    )  # fmt: skip
    for each in checks:
        yield from each(store)


def _all(txn: ReadTxn, db: Db) -> Iterator[tuple[bytes, bytes]]:
    return txn.scan(db, b"", keys.ALL)


def _broken(db: Db, key: bytes, what: str) -> Broken:
    return Broken(db.value.decode(), key, what)


def _numbers(store: _Store) -> Iterator[Broken]:
    """Namespaces have numbers of their own, and those still to be given are free."""
    named = [prefix for _, prefix in _all(store.view.txn, Db.NAMESPACES)]
    for name, prefix in _all(store.view.txn, Db.NAMESPACES):
        if len(prefix) != _PREFIX_BYTES or named.count(prefix) > 1:
            yield _broken(Db.NAMESPACES, name, "has a number that is not its own")
    given = {b"next_namespace": max(named, default=b"")}
    numbers = store.runs | store.over
    given[b"next_group"] = U64.pack(max(numbers)) if numbers else b""
    for key, greatest in given.items():
        if (store.view.txn.get(Db.META, key) or b"") < greatest:
            yield _broken(Db.META, key, "is less than a number that was given")


def _records(store: _Store) -> Iterator[Broken]:
    for key, row in _all(store.view.txn, Db.TASKS):
        what = _record(store, key, row)
        if what:
            yield _broken(Db.TASKS, key, what)


def _record(store: _Store, key: bytes, row: bytes) -> str:
    if key[:_PREFIX_BYTES] not in store.prefixes:
        return "is in a namespace that there is not"
    try:
        expire_ms, version, attempt, state = _HEADER.unpack_from(row)
        meta = task_pb2.TaskMeta.FromString(row[_HEADER.size :])
    except (struct.error, DecodeError):
        return "is no record"
    said = (meta.task_id.encode(), meta.version, meta.attempt, meta.state)
    if said != (key[_PREFIX_BYTES:], version, attempt, state):
        return "does not say what its header says"
    if not expire_ms or hash(keys.TASK + key) in store.due:
        return ""
    # Of a record that its groups kept when it was due, these rows go first, and file it again.
    start = key[:_PREFIX_BYTES] + keys.TASK + key[_PREFIX_BYTES:] + b"\0"
    rows = store.view.txn.scan(Db.MEMBERSHIPS, start, keys.after_prefix(start))
    return "expires and is not filed to" if next(rows, None) is None else ""


def _due_entries(store: _Store) -> Iterator[Broken]:
    for key, _ in _all(store.view.txn, Db.EXPIRY):
        if key[8:9] not in _DUE_KINDS or key[9:17] not in store.prefixes:
            yield _broken(Db.EXPIRY, key, "names nothing that can expire")


def strays(txn: ReadTxn) -> Iterator[Broken]:
    """Entries that say when something expires, and it is not there, or expires at another time.

    So nothing has two. No damage: they go when they are due. But who makes them, makes more.
    """
    for key, _ in _all(txn, Db.EXPIRY):
        try:
            (at_ms,), kind, named = U64.unpack_from(key), key[8:9], key[9:]
            stray = at_ms != _filed_ms(txn, kind, named)
        except (struct.error, ValueError, DecodeError):
            continue  # `check` tells of that row
        if stray:
            yield _broken(Db.EXPIRY, key, "is filed for what does not expire then")


def _filed_ms(txn: ReadTxn, kind: bytes, named: bytes) -> int | None:
    """Where the entry of something stands; None where there is no such thing."""
    if kind == keys.GROUP:
        row = txn.get(Db.GROUPS, named)
        numbers = None if row is None else txn.get(Db.COUNTERS, row[: U64.size])
        return None if numbers is None else Counters.unpack(0, numbers).filed_ms
    if kind == keys.TASK:
        row = txn.get(Db.TASKS, named)
        return None if row is None else int(_HEADER.unpack_from(row)[0])
    if kind == keys.REVOCATION:
        row = txn.get(Db.REVOCATIONS, named)
        return None if row is None else revocations.expires_ms(row)
    row = txn.get(Db.TOMBSTONES, named[:_PREFIX_BYTES] + kind.lower() + named[_PREFIX_BYTES:])
    return None if row is None else tombstones.expires_ms(row)


def _groups(store: _Store) -> Iterator[Broken]:
    for key, row in _all(store.view.txn, Db.GROUPS):
        try:
            (number,) = U64.unpack(key[9:]) if key[8:9] == b"\0" else U64.unpack_from(row)
            what = group_payloads.misfit(store.view, key, row)
        except (struct.error, DecodeError):
            yield _broken(Db.GROUPS, key, "is no group")
            continue
        if what:
            yield _broken(Db.GROUPS, key, what)
        elif number not in store.runs:
            yield _broken(Db.GROUPS, key, f"has run {number}, which has no counters")


def _runs(store: _Store) -> Iterator[Broken]:
    for key, row in _all(store.view.txn, Db.COUNTERS):
        try:
            (number,) = U64.unpack(key)
            group = Counters.unpack(number, row)
        except (struct.error, UnicodeDecodeError):
            yield _broken(Db.COUNTERS, key, "are no counters")
            continue
        for what in _run(store, group):
            yield _broken(Db.COUNTERS, key, f"of group {group.group_id!r} {what}")


def _run(store: _Store, group: Counters) -> Iterator[str]:
    named = keys.record(group.namespace, group.group_id)
    row = store.view.txn.get(Db.GROUPS, named)
    if row is None or U64.unpack_from(row)[0] != group.number:
        yield "belong to no group"
    if group.expire_ms and hash(keys.GROUP + named) not in store.due:
        yield "expire and are not filed to"
    members, states, next_index = 0, Counter[int](), 0
    start, stop = keys.member(group.number, 0), keys.group(group.number + 1)
    for key, raw in store.view.txn.scan(Db.MEMBERS, start, stop):
        member = memberships.unpack(raw)
        members, next_index = members + 1, keys.parse_member(key)[1] + 1
        if member.position:
            states[member.counted_as] += 1
    if (group.members, group.done) != (members, states.total()):
        yield (
            f"say {group.members} members and {group.done} done, and there are {members} and "
            f"{states.total()}"
        )
    yield from _sums(store, group, states, next_index)


def _sums(store: _Store, group: Counters, states: Counter[int], next_index: int) -> Iterator[str]:
    """The numbers of a run against its members: how many were counted as what."""
    if group.next_index < next_index:
        yield f"would give index {group.next_index} again"
    for state, name in _COUNTED:
        if getattr(group, name) != states[state]:
            yield f"say {getattr(group, name)} {name}, and there are {states[state]}"
    positions = [entry.position for entry in memberships.log(store.view, group.number, 0)]
    if positions != list(range(1, group.done + 1)):
        yield f"say {group.done} done, and the log has not the entries 1 to {group.done}"
    due = group.sealed and group.members >= group.expected and group.done >= group.members
    if group.complete != due:
        yield "say complete, and it is not" if group.complete else "do not say that it is complete"
    if due and group.scope and not group.claimed_done:
        offered = keys.claimable(group.namespace, group.scope, group.number)
        if store.view.txn.get(Db.CLAIMABLE, offered) is None:
            yield "say complete, and nobody is told that it can be claimed"


def _members(store: _Store) -> Iterator[Broken]:
    for key, raw in _all(store.view.txn, Db.MEMBERS):
        number, index = keys.parse_member(key)
        if number in store.over:
            continue
        counters = store.view.txn.get(Db.COUNTERS, keys.group(number))
        if counters is None:
            yield _broken(Db.MEMBERS, key, "belongs to a run that there is not")
            continue
        group = Counters.unpack(number, counters)
        namespace = group.namespace
        member = memberships.unpack(raw)
        back = keys.membership(namespace, member.kind, member.id, number, index)
        if store.view.txn.get(Db.MEMBERSHIPS, back) is None:
            yield _broken(Db.MEMBERS, key, f"{member.id!r} is not led to its group")
        if member.position:
            entry = memberships.log_entry(store.view, number, member.position)
            if entry is None or (entry.index, entry.id) != (index, member.id):
                yield _broken(Db.MEMBERS, key, f"{member.id!r} is not where it is in the log")
        elif group.alive(store.view.now_ms) and _is_terminal(
            store, member.kind, keys.record(namespace, member.id)
        ):  # of one that has expired nobody counts any more, until it is swept
            yield _broken(Db.MEMBERS, key, f"{member.id!r} is terminal and is not counted")


def _is_terminal(store: _Store, kind: bytes, key: bytes) -> bool:
    row = store.view.txn.get(_KINDS[kind], key)
    if row is None:
        return False
    if kind == keys.TASK:
        expire_ms, _, _, state = _HEADER.unpack_from(row)
        return state in TERMINAL and (not expire_ms or expire_ms > store.view.now_ms)
    (number,) = U64.unpack_from(row)
    counters = store.view.txn.get(Db.COUNTERS, keys.group(number))
    if counters is None:
        return False
    group = Counters.unpack(number, counters)
    return group.complete and group.alive(store.view.now_ms)


def _memberships(store: _Store) -> Iterator[Broken]:
    for key, _ in _all(store.view.txn, Db.MEMBERSHIPS):
        number, index = keys.parse_membership(key)
        raw = store.view.txn.get(Db.MEMBERS, keys.member(number, index))
        if raw is None:
            yield _broken(Db.MEMBERSHIPS, key, "leads to no member")
            continue
        member = memberships.unpack(raw)
        if key[_PREFIX_BYTES:-13] != member.kind + member.id.encode():
            yield _broken(Db.MEMBERSHIPS, key, f"leads to {member.id!r}, who is another")


def _log(store: _Store) -> Iterator[Broken]:
    for key, _ in _all(store.view.txn, Db.LOG):
        number, position = keys.parse_member(key)
        if number in store.over:
            continue
        if number not in store.runs:
            yield _broken(Db.LOG, key, "belongs to a run that there is not")
            continue
        entry = memberships.log_entry(store.view, number, position)
        assert entry is not None  # its row was just read
        raw = store.view.txn.get(Db.MEMBERS, keys.member(number, entry.index))
        if raw is None or memberships.unpack(raw).position != position:
            yield _broken(Db.LOG, key, f"names {entry.id!r}, who was not counted then")


def _claims(store: _Store) -> Iterator[Broken]:
    for key, _ in _all(store.view.txn, Db.CLAIMS):
        counters = store.view.txn.get(Db.COUNTERS, key)
        if counters is None or not Counters.unpack(0, counters).complete:
            yield _broken(Db.CLAIMS, key, "holds a group that is not complete")


def _claimable(store: _Store) -> Iterator[Broken]:
    for key, _ in _all(store.view.txn, Db.CLAIMABLE):
        counters = store.view.txn.get(Db.COUNTERS, key[-U64.size :])
        group = None if counters is None else Counters.unpack(0, counters)
        if group is None or not group.complete or group.claimed_done:
            yield _broken(Db.CLAIMABLE, key, "offers a group that nobody is to claim")


def _tombstones(store: _Store) -> Iterator[Broken]:
    for key, row in _all(store.view.txn, Db.TOMBSTONES):
        prefix, kind, id_ = key[:_PREFIX_BYTES], key[8:9], key[9:]
        if len(row) not in tombstones.ROW_BYTES or kind not in _KINDS:
            yield _broken(Db.TOMBSTONES, key, "is no tombstone")
        elif hash(kind.upper() + prefix + id_) not in store.due:
            yield _broken(Db.TOMBSTONES, key, "expires and is not filed to")
        elif tombstones.expires_ms(row) <= store.view.now_ms:
            continue  # not swept yet: what came after it pays it no heed
        elif store.view.txn.get(_KINDS[kind], prefix + id_) is not None:
            yield _broken(Db.TOMBSTONES, key, "stands for what is still there")


def _revocations(store: _Store) -> Iterator[Broken]:
    for key, row in _all(store.view.txn, Db.REVOCATIONS):
        try:
            worker_service_pb2.Revocation.FromString(row)
        except DecodeError:
            yield _broken(Db.REVOCATIONS, key, "is no revocation")
            continue
        if hash(keys.REVOCATION + key) not in store.due:
            yield _broken(Db.REVOCATIONS, key, "expires and is not filed to")


def _usage(store: _Store) -> Iterator[Broken]:
    """What namespaces are said to hold, against what they do."""
    said: dict[bytes, tuple[int, int]] = {}
    try:
        for prefix, records, size_bytes in usage.rows(store.view.txn):
            said[prefix] = records, size_bytes
    except struct.error:
        yield _broken(Db.META, keys.usage(b""), "and a namespace: is no count")
        return
    found = recount(store.view.txn)
    for prefix in sorted(said.keys() | found.keys()):
        if said.get(prefix, (0, 0)) != found.get(prefix, (0, 0)):
            yield _broken(
                Db.META,
                keys.usage(prefix),
                "says {} records of {} bytes, and there are {} of {}".format(
                    *said.get(prefix, (0, 0)), *found.get(prefix, (0, 0))
                ),
            )


def recount(txn: ReadTxn) -> dict[bytes, tuple[int, int]]:
    """The records and bytes of each namespace, by its prefix: what `usage` keeps."""
    records, size_bytes = Counter[bytes](), Counter[bytes]()
    for db in (Db.TASKS, Db.GROUPS, Db.TOMBSTONES, Db.REVOCATIONS):
        for key, row in _all(txn, db):
            records[key[:_PREFIX_BYTES]] += db is Db.TASKS
            size_bytes[key[:_PREFIX_BYTES]] += len(key) + len(row)
    runs = dict(_all(txn, Db.GARBAGE))
    for key, row in _all(txn, Db.COUNTERS):
        group = Counters.unpack(0, row)
        runs[key] = group.namespace.prefix
        size_bytes[runs[key]] += counters.size_bytes(group.group_id)
    for db in (Db.TOTALS, Db.CLAIMS):
        for key, row in _all(txn, db):
            size_bytes[runs.get(key, b"")] += len(key) + len(row)
    for key, row in _all(txn, Db.MEMBERS):
        size_bytes[runs.get(key[: U64.size], b"")] += memberships.rows_bytes(
            memberships.unpack(row).id
        )
    return {prefix: (records[prefix], size_bytes[prefix]) for prefix in size_bytes}
