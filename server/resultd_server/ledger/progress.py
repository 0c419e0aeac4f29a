"""What a stream over a group sends next: read in one short step, from where it stands."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from resultd.v1 import group_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server import limits
from resultd_server.errors import FieldInvalid
from resultd_server.ledger import (
    counters,
    group_payloads,
    group_rows,
    keys,
    memberships,
    records,
    wire,
)
from resultd_server.ledger.counters import Counters
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.memberships import Columns
from resultd_server.ledger.unit import View

AS_COMPLETED = pb.MEMBER_ORDER_AS_COMPLETED
MEMBER = pb.MEMBER_ORDER_MEMBER

STORE_BYTES = 8

_CURSOR = struct.Struct(f">B{STORE_BYTES}sIQ")


class Cursor(NamedTuple):
    """Where a stream stands.

    `position`: of the last entry sent, from 1; in member order one more than the last
    index sent. `id`: who stood there. `run`: which run it was, of which store: one that was
    restored from a backup is another, whatever else fits, and epochs begin anew once nothing is
    remembered of a group.
    """

    order: int
    epoch: int = 0
    position: int = 0
    id: str = ""
    run: bytes = bytes(STORE_BYTES)

    def encode(self) -> bytes:
        """The opaque `after` of a frame."""
        place = _CURSOR.pack(self.order, self.run, self.epoch, self.position)
        return place + self.id.encode()

    @classmethod
    def decode(cls, after: bytes, order: int, field: str = "after") -> Cursor:
        """The cursor of a request's field. Raises FieldInvalid."""
        if not after:
            return cls(order)
        try:
            said, run, epoch, position = _CURSOR.unpack_from(after)
            found = cls(said, epoch, position, after[_CURSOR.size :].decode(), run)
        except (struct.error, UnicodeDecodeError):
            found = cls(-1)
        if found.order != order or len(after) > _CURSOR.size + limits.ID_BYTES_MAX:
            raise FieldInvalid(
                field,
                "is not one of this order's",
                "pass the `after` of the last frame or members received, or nothing",
            )
        return found


class Step(NamedTuple):
    """What to send, and where that leads.

    `events`: `event_count` of them, as they stand in a frame. `group` None: there is no such group
    (`existence` says why). `reset`: the cursor fits no more and the stream starts again;
    nothing is sent in this step.
    """

    group: Counters | None
    existence: int
    events: bytes
    event_count: int
    cursor: Cursor
    more: bool
    reset: bool = False


def step(
    view: View, namespace: Namespace, group_id: str, cursor: Cursor, store: bytes, count_max: int
) -> Step:
    """The next events, at most a frame. `store`: which one this is, in STORE_BYTES."""
    group = group_rows.find(view, namespace, group_id)
    if group is None:
        existence = group_rows.absent(view, namespace, group_id).existence
        return Step(None, existence, b"", 0, cursor, more=False)
    as_completed = cursor.order == AS_COMPLETED
    found = None
    run = _run(store, group)
    if not cursor.position or (cursor.run, cursor.epoch) == (run, group.epoch):
        # One more, to know whether there is.
        found = (_entries if as_completed else _members)(view, group, cursor, count_max + 1)
    if found is None:
        return Step(group, records.KNOWN, b"", 0, Cursor(cursor.order), more=False, reset=True)
    if not found.ids:
        stays = cursor._replace(epoch=group.epoch, run=run)
        return Step(group, records.KNOWN, b"", 0, stays, more=False)
    events, sent = _events(view, group, Columns(*(column[:count_max] for column in found)))
    index, position = wire.read_place(found.places[sent - 1])
    after = position if as_completed else index + 1
    cursor = Cursor(cursor.order, group.epoch, after, found.ids[sent - 1].decode(), run)
    return Step(group, records.KNOWN, events, sent, cursor, more=sent < len(found.ids))


def _run(store: bytes, group: Counters) -> bytes:
    """A run of a group in a store, by when it began: in STORE_BYTES.

    Nothing that is told of others: a group's number counts those of all tenants.
    """
    began = f"{group.created_ms} {group.namespace.name}".encode()
    return hashlib.blake2b(began, key=store, digest_size=STORE_BYTES).digest()


def _events(view: View, group: Counters, found: Columns) -> tuple[bytes, int]:
    """The events of the first members, or entries of the log, as many as make a frame."""
    # A task's record is passed on as it is stored. What a member group's id finds is not its own.
    prefix = group.namespace.prefix
    stored = records.wires(view, [prefix + id_ for id_ in found.ids], limits.FRAME_BYTES)
    kinds, ids, places = (column[: len(stored)] for column in found)
    tasks = [task for task in stored if task is not None]
    if len(tasks) == len(stored) == kinds.count(keys.TASK):
        pieces = wire.task_events(tasks, places)
    else:
        pieces = []
        room_bytes = limits.FRAME_BYTES
        for kind, id_, place, task in zip(kinds, ids, places, stored, strict=True):
            if room_bytes < 0:
                break  # the rest would be cut off again
            if task is None or kind != keys.TASK:
                event, read_bytes = _other_event(view, group, kind, id_, *wire.read_place(place))
                pieces += event, b"", b""
                room_bytes -= max(read_bytes, len(event))
            else:
                pieces += wire.task_events([task], [place])
                room_bytes -= len(task)
    events = b"".join(pieces)
    size_bytes = len(events)
    while size_bytes > limits.FRAME_BYTES and len(pieces) > wire.EVENT_PIECES:
        size_bytes -= sum(map(len, pieces[-wire.EVENT_PIECES :]))
        del pieces[-wire.EVENT_PIECES :]
    return events[:size_bytes], len(pieces) // wire.EVENT_PIECES


def finished(group: Counters, cursor: Cursor) -> bool:
    """Whether a complete group has been sent whole."""
    if not group.complete:
        return False
    if cursor.order == AS_COMPLETED:
        return cursor.position >= group.done
    return cursor.position >= group.next_index


def _entries(view: View, group: Counters, cursor: Cursor, count: int) -> Columns | None:
    """Entries of the log after the cursor's, which is read with them; None if it is not there."""
    position = cursor.position
    if not position:
        return memberships.log_page(view, group.number, 0, count)
    if position > group.done:
        return None
    kinds, ids, places = memberships.log_page(view, group.number, position - 1, 1 + count)
    if not ids or ids[0] != cursor.id.encode() or wire.read_place(places[0])[1] != position:
        return None
    return Columns(kinds[1:], ids[1:], places[1:])


def _members(view: View, group: Counters, cursor: Cursor, count: int) -> Columns | None:
    """The same of members in their order."""
    if cursor.position:
        index = cursor.position - 1
        member = memberships.find(view, group.number, index) if index <= limits.INDEX_MAX else None
        if member is None or member.id != cursor.id:
            return None
    found = list(islice(_member_rows(view, group, cursor), count))
    return Columns(*zip(*found, strict=True)) if found else Columns((), (), ())


def _member_rows(
    view: View, group: Counters, cursor: Cursor
) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Kind, id and place of those that may be sent."""
    expected = cursor.position
    for index, member in memberships.scan(view, group.number, cursor.position):
        # A gap may still be filled, unless the group is complete.
        if not member.position or (index != expected and not group.complete):
            return
        expected = index + 1
        yield member.kind, member.id.encode(), wire.place(index, member.position)


def _other_event(
    view: View, group: Counters, kind: bytes, id_: bytes, index: int, position: int
) -> tuple[bytes, int]:
    """The event of a task that is gone, or of a group; how much was read for it."""
    if kind == keys.TASK:
        return wire.task_event(_gone(view, group.namespace, id_.decode()), index, position), 0
    member = memberships.find(view, group.number, index)
    meta, read_bytes = _brief(view, group.namespace, id_.decode())
    event = wire.group_event(
        meta.SerializeToString(),
        index=index,
        position=position,
        gone=member is not None and member.counted_as == counters.GONE,
    )
    return event, read_bytes


def _gone(view: View, namespace: Namespace, task_id: str) -> bytes:
    found = records.read(view, namespace, task_id)
    if found.existence == records.UNKNOWN:
        # It was terminal once, and its tombstone is gone too.
        found = records.absent(task_id, records.FORGOTTEN)
    return found.wire


def _brief(view: View, namespace: Namespace, group_id: str) -> tuple[group_pb2.GroupMeta, int]:
    """A member group as an event shows it: without its payloads."""
    group = group_rows.find(view, namespace, group_id)
    if group is None:
        return group_rows.absent(view, namespace, group_id), 0
    row = group_payloads.row(view, group)
    return group_rows.brief(view, group, row), len(row)
