"""Members: joining a group, and being counted in it exactly once.

A member's row says whether it was counted and as what; the completion log says which
was n-th. A member enters the log once; what it counts as may change afterwards.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

from resultd.v1 import result_service_pb2 as pb
from resultd_server import limits
from resultd_server.errors import LimitExceeded, Overloaded
from resultd_server.ledger import claims, counters, group_rows, keys, usage, wire
from resultd_server.ledger.counters import GONE, Counters
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Unit, View

_MEMBER = struct.Struct(">cIB")
_ENTRY = struct.Struct(">cB")
"""What a row of the log begins with: the kind, and the bytes of the id that follows. The rest
is the place as it stands in an event."""
_PLACE_BYTES_MAX = 12
_PASS_US = 1
_LOOK_US = 3
_COUNT_US = 15
"""What one of a member's groups takes: to be passed over, to be looked at, and to have the member
counted."""
_begin_of = itemgetter(slice(_ENTRY.size))
# Of a member, its entry in the log and the way from its id to its group: keys, and values
# but for the id, which stands in each.
_ROWS_BYTES = (
    len(keys.member(0, 0)) * 2 + _MEMBER.size + _ENTRY.size + _PLACE_BYTES_MAX + 8 + 1 + 1 + 12
)


@dataclass(frozen=True, slots=True)
class Member:
    """A member's row. `position` 0: not counted yet; `counted_as` a state or GONE."""

    kind: bytes
    id: str
    position: int = 0
    counted_as: int = 0

    def pack(self) -> bytes:
        return _MEMBER.pack(self.kind, self.position, self.counted_as) + self.id.encode()


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the completion log."""

    position: int
    index: int
    kind: bytes
    id: str


class Columns(NamedTuple):
    """Members, or entries of the log: the n-th of each belongs to the n-th.

    Ids and places are bytes, places as they stand in an event.
    """

    kinds: Sequence[bytes]
    ids: Sequence[bytes]
    places: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Place:
    """One of the groups an id is a member of, and where."""

    group: Counters
    index: int


@dataclass(frozen=True, slots=True)
class Joining:
    """Where a report's task stands in the group it names, or would.

    `slot` None: nowhere yet, at `index` is room for it. `group` None: it is to begin.
    `growth_bytes`: by how much the namespace grows when it joins.
    """

    namespace: Namespace
    group_id: str
    task_id: str
    slot: Slot | None
    group: Counters | None = None
    index: int = 0
    growth_bytes: int = 0


class Slot(enum.Enum):
    """What became of a report's wish to be in a group."""

    COUNTED_BEFORE = pb.MEMBERSHIP_ALREADY
    WAITING = pb.MEMBERSHIP_PENDING
    SEALED = pb.MEMBERSHIP_SEALED
    INDEX_TAKEN = pb.MEMBERSHIP_INDEX_TAKEN
    NOT_A_MEMBER = pb.MEMBERSHIP_NOT_A_MEMBER


def find(view: View, group_no: int, index: int) -> Member | None:
    """The member at an index."""
    raw = view.txn.get(Db.MEMBERS, keys.member(group_no, index))
    return None if raw is None else unpack(raw)


def unpack(raw: bytes) -> Member:
    """A member's row taken apart."""
    kind, position, counted_as = _MEMBER.unpack_from(raw)
    return Member(kind, raw[_MEMBER.size :].decode(), position, counted_as)


def scan(
    view: View, group_no: int, from_index: int, *, passing: bool = False
) -> Iterator[tuple[int, Member]]:
    """Members by index, from `from_index` on. `passing`: over damaged rows."""
    start, stop = keys.member(group_no, from_index), keys.group(group_no + 1)
    for key, raw in view.txn.scan(Db.MEMBERS, start, stop, passing=passing):
        yield keys.parse_member(key)[1], unpack(raw)


def entry_row(kind: bytes, id_: bytes, index: int, position: int) -> bytes:
    """A row of the completion log."""
    return _ENTRY.pack(kind, len(id_)) + id_ + wire.place(index, position)


def log(view: View, group_no: int, after: int) -> Iterator[Entry]:
    """The completion log after a position, in order."""
    start, stop = keys.member(group_no, after + 1), keys.group(group_no + 1)
    for key, raw in view.txn.scan(Db.LOG, start, stop):
        kind, id_bytes = _ENTRY.unpack_from(raw)
        ends = _ENTRY.size + id_bytes
        index, _ = wire.read_place(raw[ends:])
        yield Entry(keys.parse_member(key)[1], index, kind, raw[_ENTRY.size : ends].decode())


def log_page(view: View, group_no: int, after: int, count: int) -> Columns:
    """The same of up to `count` entries, for who sends thousands: read and taken apart at once."""
    start, stop = keys.member(group_no, after + 1), keys.group(group_no + 1)
    _, rows = view.txn.page(Db.LOG, start, stop, count)
    begins = set(map(_begin_of, rows))
    if len(begins) != 1:
        return Columns(*zip(*map(_split, rows), strict=True)) if rows else Columns((), (), ())
    ((kind, id_bytes),) = map(_ENTRY.unpack, begins)  # as most: ids are as long as one another
    ends = _ENTRY.size + id_bytes
    ids = map(itemgetter(slice(_ENTRY.size, ends)), rows)
    return Columns([kind] * len(rows), list(ids), list(map(itemgetter(slice(ends, None)), rows)))


def _split(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """Kind, id and place of a row of the log."""
    kind, id_bytes = _ENTRY.unpack_from(raw)
    ends = _ENTRY.size + id_bytes
    return kind, raw[_ENTRY.size : ends], raw[ends:]


def log_entry(view: View, group_no: int, position: int) -> Entry | None:
    """The entry at a position."""
    return next((e for e in log(view, group_no, position - 1) if e.position == position), None)


def of(view: View, namespace: Namespace, kind: bytes, id_: str) -> list[Place]:
    """The groups an id is a member of, those still alive."""
    return list(_living(view, list(_rows(view, namespace, kind, id_))))


def _rows(view: View, namespace: Namespace, kind: bytes, id_: str) -> Iterator[bytes]:
    """The keys that lead from an id to its groups, those that are over too."""
    if not view.empty(Db.MEMBERSHIPS, keys.members_of_kind(namespace, kind)):
        prefix = keys.memberships(namespace, kind, id_)
        for key, _ in view.txn.scan(Db.MEMBERSHIPS, prefix, keys.after_prefix(prefix)):
            yield key


def _living(view: View, rows: Iterable[bytes]) -> Iterator[Place]:
    for key in rows:
        view.spend(_LOOK_US)
        number, index = keys.parse_membership(key)
        group = counters.load(view, number)
        if group is not None:
            yield Place(group, index)


def any_row(view: View, namespace: Namespace, kind: bytes, id_: str) -> bool:
    """Whether an id is a member of a group, or was one of a group whose rows are still there."""
    return next(_rows(view, namespace, kind, id_), None) is not None


def kept(view: View, namespace: Namespace, kind: bytes, id_: str) -> bool:
    """Whether a group that lives has it as a member, and so keeps its record: the first will do."""
    return next(_living(view, _rows(view, namespace, kind, id_)), None) is not None


def look(
    view: View, namespace: Namespace, group_id: str, index: int | None, task_id: str
) -> Joining:
    """A report names its group: where the task stands in it."""
    group = group_rows.find(view, namespace, group_id)
    grown = rows_bytes(task_id)
    if group is not None:
        if index is None:
            index = next(indexes_of(view, group, keys.TASK, task_id), group.next_index)
        there = find(view, group.number, index)
        if there is not None:
            slot = Slot.COUNTED_BEFORE if there.position else Slot.WAITING
            if (there.kind, there.id) != (keys.TASK, task_id):
                slot = Slot.INDEX_TAKEN
            return Joining(namespace, group_id, task_id, slot)
        if group.full:
            return Joining(namespace, group_id, task_id, Slot.SEALED)
    elif group_rows.deleted(view, namespace, group_id):
        return Joining(namespace, group_id, task_id, Slot.NOT_A_MEMBER)
    else:
        index = index or 0
        grown += group_rows.growth_bytes(view, namespace, group_id)
    if index > limits.INDEX_MAX or in_too_many(view, namespace, keys.TASK, task_id):
        return Joining(namespace, group_id, task_id, Slot.NOT_A_MEMBER)
    return Joining(namespace, group_id, task_id, None, group, index, grown)


def join(unit: Unit, joining: Joining, *, create: bool) -> Slot:
    """Takes the slot that was found. Never refuses the report.

    `create`: whether there is a record, so that the task becomes a member, and a group nobody
    has declared begins to exist by being named.
    """
    slot = joining.slot
    if slot is not None:
        return Slot.NOT_A_MEMBER if slot is Slot.SEALED and not create else slot
    if not create:
        return Slot.NOT_A_MEMBER
    group = joining.group or group_rows.start(unit, joining.namespace, joining.group_id)
    insert(unit, group, joining.index, Member(keys.TASK, joining.task_id))
    return Slot.WAITING


def answer(slot: Slot, terminal: bool) -> pb.Membership.ValueType:
    """What a report is told of its slot once it has been counted."""
    if slot is Slot.WAITING and terminal:
        return pb.MEMBERSHIP_COUNTED
    return slot.value


def indexes_of(view: View, group: Counters, kind: bytes, id_: str) -> Iterator[int]:
    """The indexes of an id in a group, the lowest first."""
    start = keys.membership(group.namespace, kind, id_, group.number, 0)
    stop = keys.membership(group.namespace, kind, id_, group.number + 1, 0)
    for key, _ in view.txn.scan(Db.MEMBERSHIPS, start, stop):
        yield keys.parse_membership(key)[1]


def in_too_many(view: View, namespace: Namespace, kind: bytes, id_: str) -> bool:
    """Whether an id is in as many groups as it may be."""
    try:
        Tally(view, namespace, kind, id_).add_one()
    except LimitExceeded:
        return True
    return False


class Tally:
    """In how many groups an id is, while it is added to some. `ending`: the number of one that is
    over before.

    What is over and not removed yet counts only until it matters: which of them are is dear to
    see. Once they are so many that each report has much to pass over, no more are added before the
    sweeper has been there.
    """

    def __init__(
        self, view: View, namespace: Namespace, kind: bytes, id_: str, *, ending: int = 0
    ) -> None:
        self._who = (view, namespace, kind, id_)
        self._ending = ending
        self._over: int | None = None
        self._places = sum(1 for _ in islice(_rows(*self._who), limits.MEMBER_PLACES_MAX))
        self._count = self._places
        view.spend(self._places * _PASS_US)

    def add_one(self) -> None:
        """Counts one more. Raises LimitExceeded, Overloaded."""
        self._count += 1
        self._places += 1
        if self._places > limits.MEMBER_PLACES_MAX:
            raise Overloaded(
                f"Too many groups that {self._who[-1]!r} was in are over and not removed yet: try "
                "again later, with backoff."
            )
        if self._count > limits.GROUPS_PER_MEMBER and self._over is None:
            rows = list(_rows(*self._who))
            living = _living(self._who[0], rows)
            self._over = len(rows) - sum(each.group.number != self._ending for each in living)
            self._count -= self._over
        if self._count > limits.GROUPS_PER_MEMBER:
            raise LimitExceeded(
                f"groups of {self._who[-1]!r}",
                self._count,
                limits.GROUPS_PER_MEMBER,
                "delete some",
            )


def rows_bytes(id_: str) -> int:
    """What a member takes, its entry in the log included."""
    return _ROWS_BYTES + 3 * len(id_.encode())


def insert(unit: Unit, group: Counters, index: int, member: Member) -> None:
    """Adds a member at a free index. Does not count it."""
    unit.txn.put(Db.MEMBERS, keys.member(group.number, index), member.pack())
    unit.fill(Db.MEMBERSHIPS, keys.members_of_kind(group.namespace, member.kind))
    unit.txn.put(
        Db.MEMBERSHIPS,
        keys.membership(group.namespace, member.kind, member.id, group.number, index),
        b"",
    )
    usage.add(unit, group.namespace.prefix, 0, rows_bytes(member.id))
    group.members += 1
    group.next_index = max(group.next_index, index + 1)
    group.touch(unit)


def settle(unit: Unit, places: list[Place], state: int) -> None:
    """A member is terminal (or GONE): counts it where it was not counted yet.

    Where it was, what it counts as is changed.
    """
    for place in places:
        unit.spend(_COUNT_US)
        member = find(unit, place.group.number, place.index)
        if member is None:
            continue
        if member.position:
            _recount(unit, place, member, state)
        else:
            _count(unit, place, member, state)


def _count(unit: Unit, place: Place, member: Member, state: int) -> None:
    group, index = place.group, place.index
    group.done += 1
    group.tally(state, 1)
    counted = replace(member, position=group.done, counted_as=state)
    unit.txn.put(Db.MEMBERS, keys.member(group.number, index), counted.pack())
    unit.txn.put(
        Db.LOG,
        keys.member(group.number, group.done),
        entry_row(member.kind, member.id.encode(), index, group.done),
    )
    group.touch(unit)
    complete_if_due(unit, group)


def _recount(unit: Unit, place: Place, member: Member, state: int) -> None:
    # An entry that says GONE is final: the member group that comes later is another.
    if member.counted_as in (state, GONE) or state == GONE:
        return
    group = place.group
    group.tally(member.counted_as, -1)
    group.tally(state, 1)
    unit.txn.put(
        Db.MEMBERS,
        keys.member(group.number, place.index),
        replace(member, counted_as=state).pack(),
    )
    group.touch(unit)
    if group.complete:
        _tell_parents(unit, group)


def complete_if_due(unit: Unit, group: Counters) -> None:
    """Notes that a group is complete, once, and counts it in the groups it is in."""
    if group.complete or not group.sealed:
        return
    if group.members < group.expected or group.done < group.members:
        return
    group.complete = True
    group.completed_ms = unit.now_ms
    group.touch(unit)
    claims.offer(unit, group)
    _tell_parents(unit, group)


def _tell_parents(unit: Unit, group: Counters) -> None:
    places = of(unit, group.namespace, keys.GROUP, group.group_id)
    settle(unit, places, group.outcome)


def awaiting_action(places: list[Place]) -> list[str]:
    """Ids of complete groups that nobody has finished acting on."""
    ids = dict.fromkeys(
        place.group.group_id
        for place in places
        if place.group.complete and not place.group.claimed_done
    )
    return list(ids)[: limits.COMPLETE_GROUPS_PER_ANSWER]
