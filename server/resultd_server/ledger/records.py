"""Records: what a report makes of one, how it is read, how it goes.

A row is a short header and the serialized TaskMeta as it goes over the wire. The
header answers what the transition rule and the streams ask without parsing.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2, task_pb2
from resultd_server import limits
from resultd_server.errors import RecordCorrupt, ValueTooLarge
from resultd_server.ledger import (
    claiming,
    claims,
    keys,
    memberships,
    revocations,
    tombstones,
    usage,
)
from resultd_server.ledger.claiming import ClaimRequest, Owing
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.merging import TIME_OF_STATE, merge
from resultd_server.ledger.times import mark, set_ms, to_ms
from resultd_server.ledger.transitions import (
    APPLIED,
    CUSTOM,
    DUPLICATE,
    TERMINAL,
    Standing,
    content_digest,
    decide,
    same_report,
)
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import TASK, Unit, View
from resultd_server.ledger.wire import number_field, repeated

_HEADER = struct.Struct(">QQIB")  # expire_ms (0: never), version, attempt, state
_ROW_BYTES_MAX = _HEADER.size + limits.RECORD_BYTES_MAX
_LARGE_BYTES = 4 * limits.KIB
_BYTES_PER_US = 600
"""Of a large record: its checksum, a copy or two, and the digest that its tombstone keeps."""
_BURIAL_US = 20

KNOWN = state_pb2.EXISTENCE_KNOWN
UNKNOWN = state_pb2.EXISTENCE_UNKNOWN
EXPIRED = state_pb2.EXISTENCE_EXPIRED
FORGOTTEN = state_pb2.EXISTENCE_FORGOTTEN

_OUTPUT = ("terminal", "created_time", "updated_time", "expire_time", "version", "existence")

_FIELDS = task_pb2.TaskMeta.DESCRIPTOR.fields_by_name
_TIME_FIELDS = {state: _FIELDS[name] for state, name in TIME_OF_STATE.items()}
_OUTPUT_FIELDS = frozenset(_FIELDS[name] for name in _OUTPUT)
_INDEX = _FIELDS["index"]


class Report(NamedTuple):
    """A validated report. `ttl_ms` 0: the record never expires.

    What the rules ask of every report is taken out of the message once, by `report_of`;
    `wire` is the message serialized. It has no field that the server says.
    """

    meta: task_pb2.TaskMeta
    wire: bytes
    ttl_ms: int
    claim_scope: str
    task_id: str
    state: int
    attempt: int
    group_id: str
    group_index: int | None
    timed: bool
    """Whether it says itself when the task came to this state."""
    claim: ClaimRequest | None
    """On the group it names."""


class Traits(NamedTuple):
    """What follows from a report's state and from which fields it has."""

    indexed: bool
    timed: bool
    lies: bool
    """Whether it has fields that the server says."""


def traits_of(state: int, fields: Collection[FieldDescriptor]) -> Traits:
    """The traits of reports with this state and these fields."""
    return Traits(
        indexed=_INDEX in fields,
        timed=_TIME_FIELDS.get(state) in fields,
        lies=not _OUTPUT_FIELDS.isdisjoint(fields),
    )


def report_of(
    meta: task_pb2.TaskMeta,
    ttl_ms: int,
    claim_scope: str = "",
    traits: Traits | None = None,
    claim: ClaimRequest | None = None,
) -> Report:
    """The report that a message is. `traits`: its own, where they are known already."""
    state = meta.state
    if traits is None:
        traits = traits_of(state, [field for field, _ in meta.ListFields()])
    if traits.lies:
        for name in _OUTPUT:
            meta.ClearField(name)  # type: ignore[arg-type]  # names of fields, checked by tests
    return Report(
        meta,
        meta.SerializeToString(),
        ttl_ms,
        claim_scope,
        meta.task_id,
        state,
        meta.attempt,
        meta.group_id,
        meta.index if traits.indexed else None,
        traits.timed,
        claim,
    )


class Record(NamedTuple):
    """A record as it is read: `wire` is its TaskMeta, serialized.

    Of an id without a record too: `existence` says why, `version` is then 0.
    """

    existence: int
    version: int
    state: int
    wire: bytes

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL


class _Stored(NamedTuple):
    expire_ms: int
    version: int
    attempt: int
    state: int
    wire: bytes

    @property
    def row_bytes(self) -> int:
        return _HEADER.size + len(self.wire)

    def meta(self) -> task_pb2.TaskMeta:
        return task_pb2.TaskMeta.FromString(self.wire)

    def standing(self) -> Standing:
        return Standing(self.state, self.attempt, lambda: content_digest(self.meta()))


def _find(view: View, namespace: Namespace, task_id: str) -> _Stored | None:
    raw = view.txn.get(Db.TASKS, keys.record(namespace, task_id))
    if raw is None:
        return None
    if len(raw) > _LARGE_BYTES:
        view.spend(len(raw) // _BYTES_PER_US)
    return _stored(raw)


def _stored(raw: bytes) -> _Stored:
    return _Stored._make((*_HEADER.unpack_from(raw), raw[_HEADER.size :]))


def _due(view: View, namespace: Namespace, task_id: str, stored: _Stored) -> bool:
    """Whether a record's life is over: its own, and that of its groups."""
    if not stored.expire_ms or stored.expire_ms > view.now_ms:
        return False
    return not memberships.kept(view, namespace, keys.TASK, task_id)


def read(view: View, namespace: Namespace, task_id: str) -> Record:
    """The record, or what is known about its absence."""
    stored = _find(view, namespace, task_id)
    if stored is not None:
        if not _due(view, namespace, task_id, stored):
            return Record(KNOWN, stored.version, stored.state, stored.wire)
        return absent(task_id, EXPIRED)
    stone = tombstones.find(view, namespace, keys.TASK, task_id)
    return absent(task_id, UNKNOWN if stone is None else stone.existence)


def read_row(view: View, namespace: Namespace, task_id: str, row: bytes) -> Record | None:
    """The record in a row that was read already; None if its life is over."""
    stored = _stored(row)
    if _due(view, namespace, task_id, stored):
        return None
    return Record(KNOWN, stored.version, stored.state, stored.wire)


def wires(view: View, record_keys: Sequence[bytes], room_bytes: int) -> Sequence[bytes | None]:
    """The serialized TaskMeta under each record's key, of members of a group that lives.

    That keeps their records, so nobody looks when they would expire. No more after the one that
    fills the room; streams ask for thousands, so their rows are not taken apart one by one.
    """
    return view.txn.get_many(Db.TASKS, record_keys, room_bytes, _HEADER.size)


def absent(task_id: str, existence: int) -> Record:
    """What is read where there is no record."""
    meta = task_pb2.TaskMeta(task_id=task_id, state=state_pb2.STATE_PENDING)
    meta.existence = existence  # type: ignore[assignment]  # stored as the enum's number
    return Record(existence, 0, state_pb2.STATE_PENDING, meta.SerializeToString())


def live_state(view: View, namespace: Namespace, task_id: str) -> int | None:
    """The state of a record that exists, else None."""
    stored = _find(view, namespace, task_id)
    if stored is None or _due(view, namespace, task_id, stored):
        return None
    return stored.state


def living(unit: Unit, namespace: Namespace, task_id: str) -> _Stored | None:
    """The record, if there is one. One that is due is buried: nothing is to keep it again."""
    stored = _find(unit, namespace, task_id)
    if stored is not None and _due(unit, namespace, task_id, stored):
        _bury(unit, namespace, task_id, stored, EXPIRED)
        return None
    return stored


def ttl_ms(view: View, namespace: Namespace, task_id: str) -> int:
    """The time to live that the record's last report named; the default without a record."""
    stored = _find(view, namespace, task_id)
    if stored is None:
        return limits.TTL_DEFAULT_MS
    return stored.expire_ms and stored.expire_ms - to_ms(stored.meta().updated_time)


class _Now(NamedTuple):
    """Where the task stands after a report."""

    disposition: pb.Disposition.ValueType
    version: int
    state: int
    custom_state: str
    exists: bool = True


def store(unit: Unit, namespace: Namespace, report: Report) -> bytes | Owing:
    """Applies a report by the transition rule, and counts it in its groups.

    The serialized StoreResultResponse, or what there is of it yet. Raises ValueTooLarge, Quota,
    Overloaded; then nothing is changed, but that a record whose life was over is buried.
    """
    task_id, group_id = report.task_id, report.group_id
    stored = living(unit, namespace, task_id)
    joining, joins_bytes = None, 0
    if group_id:
        joining = memberships.look(unit, namespace, group_id, report.group_index, task_id)
        joins_bytes = joining.growth_bytes
    now = (
        _store_first(unit, namespace, report, joins_bytes)
        if stored is None
        else _store_next(unit, namespace, report, stored, joins_bytes)
    )
    answer = _answer(now.disposition, now.version, now.state, now.custom_state)
    slot = None if joining is None else memberships.join(unit, joining, create=now.exists)
    owed = None
    if now.state in TERMINAL:
        groups = memberships.of(unit, namespace, keys.TASK, task_id)
        if groups:
            if now.exists and (now.disposition == APPLIED or group_id):
                memberships.settle(unit, groups, now.state)
            complete = memberships.awaiting_action(groups)
            answer += repeated(_COMPLETE_GROUP_IDS, map(str.encode, complete))
            if report.claim is not None:
                said, owed = claiming.of_report(unit, groups, report.claim)
                answer += said
    if slot is not None:
        membership = memberships.answer(slot, now.state in TERMINAL and now.exists)
        answer += number_field(_MEMBERSHIP, membership)
    if report.claim_scope:
        claimable = claims.claimable(unit, namespace, report.claim_scope)
        answer += repeated(_CLAIMABLE_GROUP_IDS, map(str.encode, claimable))
    if revocations.requested(unit, namespace, task_id):
        answer += number_field(_CANCEL_REQUESTED, 1)
    return answer if owed is None else Owing(answer, owed)


_ANSWER = pb.StoreResultResponse.DESCRIPTOR.fields_by_name
_MEMBERSHIP = _ANSWER["membership"].number
_COMPLETE_GROUP_IDS = _ANSWER["complete_group_ids"].number
_CLAIMABLE_GROUP_IDS = _ANSWER["claimable_group_ids"].number
_CANCEL_REQUESTED = _ANSWER["cancel_requested"].number


@lru_cache(maxsize=1_024)  # most reports are answered alike: first version, SUCCESS
def _answer(
    disposition: pb.Disposition.ValueType, version: int, state: int, custom_state: str
) -> bytes:
    """The fields of a StoreResultResponse that every report is answered."""
    return pb.StoreResultResponse(
        disposition=disposition,
        version=version,
        state=state,  # type: ignore[arg-type]  # stored as the enum's number
        custom_state=custom_state,
    ).SerializeToString()


def _store_first(unit: Unit, namespace: Namespace, report: Report, joins_bytes: int) -> _Now:
    """A report about a task without a record: new, or forgotten, or expired."""
    there = tombstones.there(unit, namespace, keys.TASK, report.task_id)
    stone = tombstones.in_force(unit, there)
    version = 1
    if stone is not None:
        if _repeats(stone, report):
            return _Now(DUPLICATE, stone.version, stone.state, "", exists=False)
        version = stone.version + 1
    if there is not None:
        joins_bytes -= tombstones.size_bytes(namespace, keys.TASK, report.task_id)
    _write_first(unit, namespace, report, version, joins_bytes)
    if there is not None:
        tombstones.remove(unit, namespace, keys.TASK, report.task_id)
    custom_state = report.meta.custom_state if report.state == CUSTOM else ""
    return _Now(APPLIED, version, report.state, custom_state)


def _repeats(stone: tombstones.Tombstone, report: Report) -> bool:
    """Whether a report is the very one that ended the record which is gone.

    One that says when its task was done, and names another time, is of another run, which may
    have come to the same: without a record, who waits for it would wait for ever.
    """
    gone = Standing(stone.state, stone.attempt, lambda: stone.digest)
    if not gone.terminal or not same_report(gone, _standing(report)):
        return False
    return not report.timed or mark(report.meta.done_time) == stone.done


def _store_next(
    unit: Unit, namespace: Namespace, report: Report, stored: _Stored, joins_bytes: int
) -> _Now:
    """A report about a task that has a record."""
    disposition = decide(stored.standing(), _standing(report))
    old = stored.meta()
    if disposition != APPLIED:
        usage.check(unit, namespace, size_bytes=joins_bytes)
        return _Now(disposition, stored.version, stored.state, old.custom_state)
    merged = merge(old, report.meta)
    merged.attempt = max(stored.attempt, report.attempt)
    _write(unit, namespace, merged, stored, report.ttl_ms, joins_bytes)
    return _Now(APPLIED, merged.version, merged.state, merged.custom_state)


def _standing(report: Report) -> Standing:
    return Standing(report.state, report.attempt, lambda: content_digest(report.meta))


class Stamp(NamedTuple):
    """What the server adds to the new records of a commit that are alike."""

    header: bytes
    wire: bytes
    """Its fields, serialized."""
    due: bytes
    """What their keys in EXPIRY begin with; nothing where they never expire."""


def _fields_of(*names: str) -> itemgetter[Any]:
    """What takes these fields of a report."""
    return itemgetter(*map(Report._fields.index, names))


_like_of = _fields_of("state", "ttl_ms", "timed", "attempt")
_task_id_of = _fields_of("task_id")


def store_new(
    unit: Unit, namespace: Namespace, record_keys: Sequence[bytes], reports: Sequence[Report]
) -> list[bytes]:
    """What `store` does and answers where a task has no record, tombstone, group or wish, and
    the report names none and no state of its own. Of many, different tasks at once.

    `record_keys`: theirs. Nothing is done, and none answered, where one is too large or they
    exceed a quota together: which of them do, `store` knows.
    """
    likes = list(map(_like_of, reports))
    stamps = {like: _stamp(unit, *like, version=1) for like in set(likes)}
    # A message is the concatenation of its fields, and so is a row.
    rows = [
        stamp.header + report.wire + stamp.wire
        for stamp, report in zip(map(stamps.__getitem__, likes), reports, strict=True)
    ]
    size_bytes = sum(map(len, record_keys)) + sum(map(len, rows))
    if max(map(len, rows)) > _ROW_BYTES_MAX or not usage.fits(
        unit, namespace, records=len(rows), size_bytes=size_bytes
    ):
        return []
    usage.add(unit, namespace.prefix, len(rows), size_bytes)
    unit.txn.put_many(Db.TASKS, record_keys, rows)
    due = [
        stamps[like].due + key
        for like, key in zip(likes, record_keys, strict=True)
        if stamps[like].due
    ]
    unit.txn.put_many(Db.EXPIRY, due, [b""] * len(due))
    unit.hint_many(namespace, TASK, map(_task_id_of, reports))
    answers = {like: _answer(APPLIED, 1, like[0], "") for like in stamps}
    return list(map(answers.__getitem__, likes))


def _write_first(
    unit: Unit, namespace: Namespace, report: Report, version: int, more_bytes: int
) -> None:
    """Puts a new record: the report's own bytes, and the server's fields after them.

    A protobuf message is the concatenation of its fields.
    """
    stamp = _stamp(unit, *_like_of(report), version=version)
    row = stamp.header + report.wire + stamp.wire
    key = _put(unit, namespace, report.task_id, row, 0, more_bytes)
    if stamp.due:
        unit.txn.put(Db.EXPIRY, stamp.due + key, b"")


def _stamp(
    unit: Unit, state: int, ttl_ms: int, timed: bool, attempt: int, *, version: int
) -> Stamp:
    """The stamp of reports that are so, made once a commit."""
    like = (state, ttl_ms, timed, attempt, version)
    stamp = unit.stamps.get(like)
    if stamp is None:
        stamp = unit.stamps[like] = _make_stamp(unit.now_ms, *like)
    return stamp


def _make_stamp(
    now_ms: int, state: int, ttl_ms: int, timed: bool, attempt: int, version: int
) -> Stamp:
    said = task_pb2.TaskMeta(version=version, terminal=state in TERMINAL)
    said.existence = KNOWN
    set_ms(said.created_time, now_ms)
    set_ms(said.updated_time, now_ms)
    expire_ms = now_ms + ttl_ms if ttl_ms else 0
    if expire_ms:
        set_ms(said.expire_time, expire_ms)
    if not timed and state in TIME_OF_STATE:
        set_ms(getattr(said, TIME_OF_STATE[state]), now_ms)
    return Stamp(
        _HEADER.pack(expire_ms, version, attempt, state),
        said.SerializeToString(),
        keys.due(expire_ms, keys.TASK) if expire_ms else b"",
    )


def _put(
    unit: Unit, namespace: Namespace, task_id: str, row: bytes, before_bytes: int, more_bytes: int
) -> bytes:
    """Puts a record's row and hints it; its key. Raises ValueTooLarge, Quota.

    `before_bytes`: of the row that was there, 0 where none was. `more_bytes`: what the report
    adds besides; counted by who puts it, and checked here with the rest.
    """
    row_bytes = len(row)
    if row_bytes > _ROW_BYTES_MAX:
        size_bytes = row_bytes - _HEADER.size
        raise ValueTooLarge(f"The record of {task_id!r}", size_bytes, limits.RECORD_BYTES_MAX)
    key = keys.record(namespace, task_id)
    records, grown = (0, row_bytes - before_bytes) if before_bytes else (1, len(key) + row_bytes)
    if unit.limited:
        usage.check(unit, namespace, records=records, size_bytes=grown + more_bytes)
    # In line: this is done for every report.
    used = unit.usages.get(namespace.prefix) or usage.of(unit, namespace.prefix)
    used.records += records
    used.size_bytes += grown
    unit.txn.put(Db.TASKS, key, row)
    unit.hint(namespace, TASK, task_id)
    return key


def _write(
    unit: Unit,
    namespace: Namespace,
    meta: task_pb2.TaskMeta,
    before: _Stored,
    ttl_ms: int,
    more_bytes: int,
) -> None:
    """Puts a record again, after the one before."""
    expire_ms = unit.now_ms + ttl_ms if ttl_ms else 0
    meta.version = before.version + 1
    meta.terminal = meta.state in TERMINAL
    meta.existence = KNOWN
    set_ms(meta.updated_time, unit.now_ms)
    if expire_ms:
        set_ms(meta.expire_time, expire_ms)
    else:
        meta.ClearField("expire_time")
    name = TIME_OF_STATE.get(meta.state)
    if name and not meta.HasField(name):  # type: ignore[arg-type]  # a field, checked by tests
        set_ms(getattr(meta, name), unit.now_ms)
    header = _HEADER.pack(expire_ms, meta.version, meta.attempt, meta.state)
    row = header + meta.SerializeToString()
    if len(row) > _LARGE_BYTES:
        unit.spend(len(row) // _BYTES_PER_US)
    key = _put(unit, namespace, meta.task_id, row, before.row_bytes, more_bytes)
    if expire_ms != before.expire_ms:
        # Moved each time: left where it was, whoever shortens lives would leave one each time.
        _unfile(unit, key, before.expire_ms)
        _file(unit, key, expire_ms)


def _file(unit: Unit, key: bytes, expire_ms: int) -> None:
    """Lets the sweeper look at a record when its own life is over, if ever."""
    if expire_ms:
        unit.txn.put(Db.EXPIRY, keys.due(expire_ms, keys.TASK) + key, b"")


def _unfile(unit: Unit, key: bytes, expire_ms: int) -> None:
    """Takes the entry away: it stands where the record's header says, or nowhere."""
    if expire_ms:
        unit.txn.delete(Db.EXPIRY, keys.due(expire_ms, keys.TASK) + key)


def forget(unit: Unit, namespace: Namespace, task_id: str) -> bool:
    """Deletes the record and leaves a tombstone; whether there was one."""
    stored = _find(unit, namespace, task_id)
    if stored is None:
        return False
    _bury(unit, namespace, task_id, stored, FORGOTTEN)
    return True


def _bury(unit: Unit, namespace: Namespace, task_id: str, stored: _Stored, existence: int) -> None:
    """Replaces a record by its tombstone. Members keep their slots and log entries."""
    unit.spend(_BURIAL_US)
    key = keys.record(namespace, task_id)
    unit.txn.remove(Db.TASKS, key)
    _unfile(unit, key, stored.expire_ms)
    usage.add(unit, namespace.prefix, -1, -len(key) - stored.row_bytes)
    ended = stored.meta() if stored.state in TERMINAL else None
    tombstones.put(
        unit,
        namespace,
        keys.TASK,
        task_id,
        existence=existence,
        version=stored.version,
        attempt=stored.attempt,
        state=stored.state,
        digest=tombstones.NO_DIGEST if ended is None else content_digest(ended),
        done=0 if ended is None else mark(ended.done_time),
    )
    unit.hint(namespace, TASK, task_id)


def file_expiry(unit: Unit, namespace: Namespace, task_id: str) -> None:
    """Lets the sweeper look again at a record that a group kept, and keeps no longer.

    In a day where it cannot be read: others are filed all the same.
    """
    key = keys.record(namespace, task_id)
    try:
        stored = _find(unit, namespace, task_id)
    except RecordCorrupt:
        _file(unit, key, unit.now_ms + limits.TTL_DEFAULT_MS)
        return
    if stored is not None:
        _file(unit, key, stored.expire_ms)


def expire(unit: Unit, namespace: Namespace, task_id: str) -> bool:
    """An expiry entry is due: buries the record, unless it lives on.

    Whether the record is gone now. One that a group keeps has no entry from then on: it is filed
    again when the group's rows go.
    """
    stored = _find(unit, namespace, task_id)
    if stored is None:
        return False
    if not _due(unit, namespace, task_id, stored):
        if stored.expire_ms > unit.now_ms:  # the entry was not its own
            _file(unit, keys.record(namespace, task_id), stored.expire_ms)
        return False
    _bury(unit, namespace, task_id, stored, EXPIRED)
    return True
