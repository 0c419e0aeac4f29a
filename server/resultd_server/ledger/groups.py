"""Groups: declared, added to, sealed, listed, deleted.

Every operation checks the whole request before it changes anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from resultd.v1 import group_pb2, state_pb2
from resultd_server import limits
from resultd_server.errors import (
    GroupConflict,
    GroupNotFound,
    GroupSealed,
    GroupTotalMismatch,
    LimitExceeded,
    RecordCorrupt,
    ValueTooLarge,
)
from resultd_server.ledger import (
    counters,
    group_payloads,
    group_rows,
    keys,
    memberships,
    nesting,
    records,
    usage,
)
from resultd_server.ledger.counters import GONE, Counters
from resultd_server.ledger.group_rows import Shown
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.memberships import Member, Place
from resultd_server.ledger.transitions import TERMINAL
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Unit, View


@dataclass(frozen=True, slots=True)
class NewMember:
    """A member as asked for. `index` None: the next free one."""

    kind: bytes
    id: str
    index: int | None


class Declaration(NamedTuple):
    """A validated CreateGroup. `ttl_ms` 0: the group never expires."""

    group_id: str
    members: Sequence[NewMember]
    said: group_pb2.GroupMeta
    ttl_ms: int
    seal: bool
    new_epoch: bool


def require(view: View, namespace: Namespace, group_id: str) -> Counters:
    """The group. Raises GroupNotFound."""
    group = group_rows.find(view, namespace, group_id)
    if group is None:
        raise GroupNotFound(group_id)
    return group


def create(unit: Unit, namespace: Namespace, declared: Declaration) -> Shown:
    """Declares a group; the same declaration again changes nothing.

    Raises GroupConflict, GroupSealed, GroupNesting, LimitExceeded, Quota, ValueTooLarge.
    """
    said = declared.said
    if said.ByteSize() > limits.RECORD_BYTES_MAX:
        raise ValueTooLarge(
            f"Group {declared.group_id!r}", said.ByteSize(), limits.RECORD_BYTES_MAX
        )
    group = group_rows.find(unit, namespace, declared.group_id)
    if group is None or declared.new_epoch:
        members = declared.members
        grown = _check_new(unit, group or _unborn(namespace, declared.group_id), members)
    else:
        members = _known_places(unit, group, declared.members)
        grown = _check_again(unit, group, declared, members)
    grown += group_rows.growth_bytes(unit, namespace, declared.group_id, said)
    usage.check(unit, namespace, size_bytes=grown)
    states = None
    if group is None:
        group = group_rows.start(unit, namespace, declared.group_id, ttl_ms=declared.ttl_ms)
    elif declared.new_epoch:
        epoch = group.epoch + 1
        # Before the run ends: what it keeps, the next one keeps on.
        states = [_counts_as(unit, namespace, member) for member in members]
        group_rows.drop_run(unit, group)
        group = group_rows.start(
            unit, namespace, declared.group_id, ttl_ms=declared.ttl_ms, epoch=epoch
        )
    else:
        group.ttl_ms = declared.ttl_ms
        group.touch(unit)
        counters.file_expiry(unit, group)
    group.scope = said.claim_scope
    group_payloads.put(unit, group, said)
    _add(unit, group, members, states)
    if declared.seal and not group.sealed:
        _seal(unit, group, _as_many_as_known(group))
    return group_rows.show(unit, group)


def _unborn(namespace: Namespace, group_id: str) -> Counters:
    return Counters(0, namespace, group_id, 1, 0, 0, 0, 0)


def _check_new(unit: Unit, group: Counters, members: Sequence[NewMember]) -> int:
    """The members of a run that has none yet must fit one another; what they take, in bytes.

    `group`: the run that ends with that, if there is one.
    """
    run = Counters(0, group.namespace, group.group_id, group.epoch, 0, 0, 0, 0)
    return _check_members(unit, run, members, ending=group.number)


def _check_again(
    unit: Unit, group: Counters, declared: Declaration, members: Sequence[NewMember]
) -> int:
    """A group that exists takes the declaration if nothing contradicts it.

    What its new members take, in bytes.
    """
    if group.complete or group.sealed:
        said = declared.said
        if group.scope != said.claim_scope or (
            not group_payloads.same_continuation(unit, group, said)
        ):
            raise GroupConflict(
                f"Group {declared.group_id!r} was sealed with another continuation or claim "
                "scope: delete it first, or say new_epoch.",
                group_id=declared.group_id,
            )
    return _check_members(unit, group, members)


def _known_places(view: View, group: Counters, members: Sequence[NewMember]) -> list[NewMember]:
    """Gives members without an index the places their ids have already.

    So that a call made twice adds nothing, and a group declared after its reports finds
    the members they brought. The k-th such mention of an id takes its k-th place.
    """
    named = {member.index for member in members if member.index is not None}
    places: dict[tuple[bytes, str], Iterator[int]] = {}
    known = []
    for member in members:
        if member.index is None:
            who = (member.kind, member.id)
            if who not in places:
                found = memberships.indexes_of(view, group, *who)
                places[who] = iter([index for index in found if index not in named])
            index = next(places[who], None)
            known.append(NewMember(member.kind, member.id, index))
        else:
            known.append(member)
    return known


def add_members(
    unit: Unit, namespace: Namespace, group_id: str, members: Sequence[NewMember]
) -> tuple[Shown, list[int]]:
    """Adds members and counts those that are terminal already.

    Raises GroupNotFound, GroupConflict, GroupSealed, GroupNesting, LimitExceeded, Quota.
    """
    group = require(unit, namespace, group_id)
    members = _known_places(unit, group, members)
    usage.check(unit, namespace, size_bytes=_check_members(unit, group, members))
    indexes = _add(unit, group, members)
    return group_rows.show(unit, group), indexes


def _check_members(
    unit: Unit, group: Counters, members: Sequence[NewMember], *, ending: int = 0
) -> int:
    """Raises where they cannot be members; what those take that are none yet, in bytes.

    `ending`: the number of a run that is over when they are.
    """
    grown = 0
    taken: dict[int, tuple[bytes, str]] = {}
    places: dict[tuple[bytes, str], memberships.Tally] = {}
    above: nesting.Above | None = None
    for member in members:
        kind, id_, index = member.kind, member.id, member.index
        there = None
        if index is not None:
            there = taken.get(index)
            row = memberships.find(unit, group.number, index) if there is None else None
            if row is not None:
                there = (row.kind, row.id)
            if there not in (None, (kind, id_)):
                raise GroupConflict(
                    f"Index {index} of group {group.group_id!r} belongs to another member: "
                    "name a free one, or none.",
                    group_id=group.group_id,
                    index=index,
                )
            if row is not None:
                continue
            taken[index] = (kind, id_)
        if index is None or there is None:
            grown += memberships.rows_bytes(id_)
        who = (kind, id_)
        if who not in places:
            _check_open(group)
            if kind == keys.GROUP:
                above = above or nesting.Above(unit, group)
                above.check(id_)
            places[who] = memberships.Tally(unit, group.namespace, kind, id_, ending=ending)
        places[who].add_one()
    if not taken and all(member.index is not None for member in members):
        return grown
    last = max([*taken, group.next_index - 1])
    if last + sum(member.index is None for member in members) > limits.INDEX_MAX:
        raise LimitExceeded("index", last, limits.INDEX_MAX, "start a new group")
    return grown


def _check_open(group: Counters) -> None:
    if group.sealed:
        raise GroupSealed(
            f"Group {group.group_id!r} is sealed and takes no new members but those that "
            "reports name: raise its total with AddToTotal, or start a new group.",
            group_id=group.group_id,
        )


def _add(
    unit: Unit,
    group: Counters,
    members: Sequence[NewMember],
    states: Sequence[int | None] | None = None,
) -> list[int]:
    """Adds members, counts those that are terminal; their indexes.

    `states`: what each of them counts as, where somebody has looked already.
    """
    # Named places first, so that members without one take what is free after them.
    named = {member.index for member in members if member.index is not None}
    group.next_index = max(group.next_index, *(index + 1 for index in named), 0)
    indexes = []
    for nth, member in enumerate(members):
        kind, id_ = member.kind, member.id
        at = group.next_index if member.index is None else member.index
        indexes.append(at)
        if memberships.find(unit, group.number, at) is not None:
            continue
        # Looked at before it is a member: the group would keep its record, due or not.
        state = _counts_as(unit, group.namespace, member) if states is None else states[nth]
        memberships.insert(unit, group, at, Member(kind, id_))
        if kind == keys.GROUP:
            nesting.raise_heights(unit, group, id_)
        if state is not None:
            memberships.settle(unit, [Place(group, at)], state)
    return indexes


def _counts_as(unit: Unit, namespace: Namespace, member: NewMember) -> int | None:
    """What a new member is counted as; None while it is not terminal.

    What is due goes first, swept or not: the member is what comes after it.
    """
    if member.kind == keys.GROUP:
        group = group_rows.find(unit, namespace, member.id)
        if group is None:
            expire(unit, namespace, member.id)
            return None
        return group.outcome if group.complete else None
    record = records.living(unit, namespace, member.id)
    return record.state if record is not None and record.state in TERMINAL else None


def seal(unit: Unit, namespace: Namespace, group_id: str, total: int | None) -> Shown:
    """Says how many members there will be. Raises GroupNotFound, GroupTotalMismatch."""
    group = require(unit, namespace, group_id)
    if group.sealed:
        if total is not None and total != group.declared:
            raise GroupTotalMismatch(
                f"Group {group_id!r} is sealed with {group.declared} members: seal it with the "
                "same total, or raise it with AddToTotal.",
                group_id=group_id,
                expected_total=group.declared,
            )
        return group_rows.show(unit, group)
    _seal(unit, group, _as_many_as_known(group) if total is None else total)
    return group_rows.show(unit, group)


def _as_many_as_known(group: Counters) -> int:
    # AddToTotal's part comes on top: so that both together are the members there are.
    return max(group.members - group.added, 0)


def _seal(unit: Unit, group: Counters, declared: int) -> None:
    expected = declared + group.added
    if expected < group.members:
        raise GroupTotalMismatch(
            f"Group {group.group_id!r} has {group.members} members already and cannot be sealed "
            f"with {expected}: name the right total.",
            group_id=group.group_id,
            members=group.members,
        )
    if expected > limits.TOTAL_MAX:
        raise LimitExceeded("expected_total", expected, limits.TOTAL_MAX, "start a new group")
    group.sealed, group.declared, group.expected = True, declared, expected
    group.touch(unit)
    memberships.complete_if_due(unit, group)


def add_to_total(
    unit: Unit, namespace: Namespace, group_id: str, delta: int, request_id: str
) -> Shown:
    """Raises the number expected, once per `request_id`.

    Raises GroupNotFound, GroupSealed where the group is complete, LimitExceeded, Quota.
    """
    group = require(unit, namespace, group_id)
    key = keys.group(group.number)
    before = unit.txn.get(Db.TOTALS, key)
    seen = (before or b"").split(b"\0")
    if request_id.encode() in seen:
        return group_rows.show(unit, group)
    if group.complete:
        raise GroupSealed(
            f"Group {group_id!r} is complete: start a new group, or a new epoch.",
            group_id=group_id,
        )
    if group.declared + group.added + delta > limits.TOTAL_MAX:
        raise LimitExceeded("total", group.added + delta, limits.TOTAL_MAX, "start a new group")
    row = b"\0".join([*seen, request_id.encode()][-limits.TOTAL_REQUESTS_REMEMBERED :])
    grown = len(row) + (len(key) if before is None else -len(before))
    usage.check(unit, namespace, size_bytes=grown)
    usage.put(unit, namespace.prefix, Db.TOTALS, key, row)
    group.added += delta
    if group.sealed:
        group.expected += delta
    group.touch(unit)
    return group_rows.show(unit, group)


def read(view: View, namespace: Namespace, group_id: str, *, brief: bool = False) -> Shown:
    """The group, or what is known about its absence."""
    group = group_rows.find(view, namespace, group_id)
    if group is None:
        return Shown(group_rows.absent(view, namespace, group_id))
    return Shown(group_rows.brief(view, group)) if brief else group_rows.show(view, group)


def delete(unit: Unit, namespace: Namespace, group_id: str) -> bool:
    """Deletes a group, not its members' records; whether there was one."""
    return _end(unit, namespace, group_id, state_pb2.EXISTENCE_FORGOTTEN) is not None


def _end(unit: Unit, namespace: Namespace, group_id: str, existence: int) -> Counters | None:
    ended = group_rows.remove(unit, namespace, group_id, existence)
    if ended is not None and not ended.complete:
        places = memberships.of(unit, namespace, keys.GROUP, group_id)
        memberships.settle(unit, places, GONE)
    return ended


def expire(unit: Unit, namespace: Namespace, group_id: str) -> bool:
    """An expiry entry is due: ends the group, or files it for when it is.

    Whether the group is gone now.
    """
    number = group_rows.number_of(unit, namespace, group_id)
    if number is None:
        return False
    group = group_rows.raw_counters(unit, number)
    if group.alive(unit.now_ms):
        counters.file_expiry(unit, group)
        return False
    unit.expired_incomplete += not group.complete
    _end(unit, namespace, group_id, state_pb2.EXISTENCE_EXPIRED)
    return True


def garbage(view: View) -> Iterator[tuple[bytes, bytes]]:
    """Runs that are over and have rows left: keys of GARBAGE, and prefixes of namespaces."""
    return view.txn.scan(Db.GARBAGE, b"", keys.ALL, passing=True)


def collect_garbage(unit: Unit, budget: int) -> int:
    """Deletes up to `budget` rows of runs that are over; how many.

    What cannot be read stays, and holds up nothing: neither the rest of its run nor other runs.
    """
    rows = list(islice(garbage(unit), budget))
    removed = 0
    for key, prefix in rows:
        if removed >= budget:
            break
        number, room = keys.U64.unpack(key)[0], budget - removed
        taken = _collect_run(unit, number, Namespace("", prefix), room)
        removed += taken
        if taken < room:
            _collect_totals(unit, key, prefix)
            unit.txn.remove(Db.GARBAGE, key)
            removed += 1
    return removed


def _collect_run(unit: Unit, number: int, namespace: Namespace, budget: int) -> int:
    removed = 0
    for index, member in list(islice(memberships.scan(unit, number, 0, passing=True), budget)):
        key = keys.membership(namespace, member.kind, member.id, number, index)
        unit.txn.remove(Db.MEMBERSHIPS, key)
        unit.txn.remove(Db.MEMBERS, keys.member(number, index))
        usage.add_if_sound(unit, namespace.prefix, 0, -memberships.rows_bytes(member.id))
        if member.kind == keys.TASK:
            # The group kept it: from now on its own life counts, and those of its others.
            records.file_expiry(unit, namespace, member.id)
        removed += 1
        if unit.exhausted:
            return budget  # as if it were: there is more of the run
    start, stop = keys.group(number), keys.group(number + 1)
    logged = unit.txn.scan(Db.LOG, start, stop, passing=True)
    for key, _ in list(islice(logged, budget - removed)):
        unit.txn.remove(Db.LOG, key)
        removed += 1
    return removed


def _collect_totals(unit: Unit, key: bytes, prefix: bytes) -> None:
    try:
        row = unit.txn.get(Db.TOTALS, key)
    except RecordCorrupt:
        row = b""  # goes all the same: how large it was is found when all is counted again
    if row is not None:
        unit.txn.remove(Db.TOTALS, key)
        usage.add_if_sound(unit, prefix, 0, -len(key) - len(row))
