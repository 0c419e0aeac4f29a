"""What a stream over a group sends next: read in one short step, from where it stands."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from resultd.v1 import group_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server import limits
from resultd_server.errors import FieldInvalid
from resultd_server.ledger import counters, group_rows, keys, memberships, records, wire
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
    index sent. `id`: who stood there. `store`: which store it was; one that was restored
    from a backup is another, whatever else fits.
    """

    order: int
    epoch: int = 0
    position: int = 0
    id: str = ""
    store: bytes = bytes(STORE_BYTES)

    def encode(self) -> bytes:
        """The opaque `after` of a frame."""
        place = _CURSOR.pack(self.order, self.store, self.epoch, self.position)
        return place + self.id.encode()

    @classmethod
    def decode(cls, after: bytes, order: int) -> Cursor:
        """The cursor of a request. Raises FieldInvalid."""
        if not after:
            return cls(order)
        try:
            said, store, epoch, position = _CURSOR.unpack_from(after)
            found = cls(said, epoch, position, after[_CURSOR.size :].decode(), store)
        except (struct.error, UnicodeDecodeError):
            found = cls(-1)
        if found.order != order or len(after) > _CURSOR.size + limits.ID_BYTES_MAX:
            raise FieldInvalid(
                "after",
                "is not one of this order's",
                "pass the `after` of the last frame received, or nothing",
            )
        return found


class Step(NamedTuple):
    """What to send, and where that leads.

    `events` as they stand in a frame. `group` None: there is no such group (`existence`
    says why). `reset`: the cursor fits no more and the stream starts again; nothing is sent
    in this step.
    """

    group: Counters | None
    existence: int
    events: list[bytes]
    cursor: Cursor
    more: bool
    reset: bool = False


def step(view: View, namespace: Namespace, group_id: str, cursor: Cursor, store: bytes) -> Step:
    """The next events, at most a frame. `store`: which one this is, in STORE_BYTES."""
    group = group_rows.find(view, namespace, group_id)
    if group is None:
        existence = group_rows.absent(view, namespace, group_id).existence
        return Step(None, existence, [], cursor, more=False)
    if cursor.position and not (cursor.store == store and _fits(view, group, cursor)):
        return Step(group, records.KNOWN, [], Cursor(cursor.order), more=False, reset=True)
    count = limits.FRAME_EVENTS_MAX + 1  # one more, to know whether there is
    if as_completed := cursor.order == AS_COMPLETED:
        found = memberships.log_page(view, group.number, cursor.position, count)
    else:
        found = _members(view, group, cursor, count)
    events = _events(view, group, found)
    if not events:
        stays = cursor._replace(epoch=group.epoch, store=store)
        return Step(group, records.KNOWN, [], stays, more=False)
    last = len(events) - 1
    index, position = wire.read_place(found.places[last])
    after = position if as_completed else index + 1
    cursor = Cursor(cursor.order, group.epoch, after, found.ids[last].decode(), store)
    return Step(group, records.KNOWN, events, cursor, more=len(events) < len(found.ids))


def _events(view: View, group: Counters, found: Columns) -> list[bytes]:
    """The events of the first members, or entries of the log: as many as make a frame."""
    # A task's record is passed on as it is stored. What a member group's id finds is not its own.
    prefix = group.namespace.prefix
    record_keys = [prefix + id_ for id_ in found.ids[: limits.FRAME_EVENTS_MAX]]
    stored = records.wires(view, record_keys, limits.FRAME_BYTES)
    kinds, ids, places = (column[: len(stored)] for column in found)
    tasks = [task for task in stored if task is not None]
    if len(tasks) == len(stored) == kinds.count(keys.TASK):
        events = wire.task_events(tasks, places)
    else:
        events = [
            _other_event(view, group, kind, id_, *wire.read_place(place))
            if task is None or kind != keys.TASK
            else wire.task_events([task], [place])[0]
            for kind, id_, place, task in zip(kinds, ids, places, stored, strict=True)
        ]
    size_bytes = sum(map(len, events))
    while size_bytes > limits.FRAME_BYTES and len(events) > 1:
        size_bytes -= len(events.pop())
    return events


def finished(group: Counters, cursor: Cursor) -> bool:
    """Whether a complete group has been sent whole."""
    if not group.complete:
        return False
    if cursor.order == AS_COMPLETED:
        return cursor.position >= group.done
    return cursor.position >= group.next_index


def _fits(view: View, group: Counters, cursor: Cursor) -> bool:
    if cursor.epoch != group.epoch:
        return False
    if cursor.order == AS_COMPLETED:
        if cursor.position > group.done:
            return False
        entry = memberships.log_entry(view, group.number, cursor.position)
        return entry is not None and entry.id == cursor.id
    if cursor.position > limits.INDEX_MAX + 1:
        return False
    member = memberships.find(view, group.number, cursor.position - 1)
    return member is not None and member.id == cursor.id


def _members(view: View, group: Counters, cursor: Cursor, count: int) -> Columns:
    """The same of members in their order as `memberships.log_page` of the log."""
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
) -> bytes:
    """The event of a task that is gone, or of a group."""
    if kind == keys.TASK:
        return wire.task_event(_gone(view, group.namespace, id_.decode()), index, position)
    member = memberships.find(view, group.number, index)
    meta = _brief(view, group.namespace, id_.decode())
    return wire.group_event(
        meta.SerializeToString(),
        index=index,
        position=position,
        gone=member is not None and member.counted_as == counters.GONE,
    )


def _gone(view: View, namespace: Namespace, task_id: str) -> bytes:
    found = records.read(view, namespace, task_id)
    if found.existence == records.UNKNOWN:
        # It was terminal once, and its tombstone is gone too.
        found = records.absent(task_id, records.FORGOTTEN)
    return found.wire


def _brief(view: View, namespace: Namespace, group_id: str) -> group_pb2.GroupMeta:
    """A member group as an event shows it: without its payloads."""
    group = group_rows.find(view, namespace, group_id)
    if group is None:
        return group_rows.absent(view, namespace, group_id)
    return group_rows.to_message(view, group, brief=True)
