"""Where a group is kept: its number, its payloads, its tombstone."""

from __future__ import annotations

from typing import NamedTuple

from resultd.v1 import group_pb2, state_pb2
from resultd_server import limits
from resultd_server.errors import RecordCorrupt
from resultd_server.ledger import (
    claims,
    counters,
    group_payloads,
    keys,
    namespaces,
    tombstones,
    usage,
)
from resultd_server.ledger.counters import Counters
from resultd_server.ledger.group_payloads import Owed
from resultd_server.ledger.keys import U64, Namespace
from resultd_server.ledger.times import set_ms
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import GROUP, Unit, View

_NEXT = b"next_group"


class Shown(NamedTuple):
    """A group as it goes over the wire, but for what is owed."""

    meta: group_pb2.GroupMeta
    owed: Owed | None = None


def find(view: View, namespace: Namespace, group_id: str) -> Counters | None:
    """The group's present run, unless there is none or it has expired."""
    raw = view.txn.get(Db.GROUPS, keys.record(namespace, group_id))
    return None if raw is None else counters.load(view, U64.unpack_from(raw)[0])


def number_of(view: View, namespace: Namespace, group_id: str) -> int | None:
    """The number of the present run, expired or not."""
    raw = view.txn.get(Db.GROUPS, keys.record(namespace, group_id))
    return None if raw is None else int(U64.unpack_from(raw)[0])


def growth_bytes(
    view: View, namespace: Namespace, group_id: str, said: group_pb2.GroupMeta | None = None
) -> int:
    """By how much a namespace grows when a group is declared (again), its members apart."""
    grown = group_payloads.growth_bytes(view, namespace, group_id, said)
    if number_of(view, namespace, group_id) is None:
        grown += counters.size_bytes(group_id)
    if tombstones.there(view, namespace, keys.GROUP, group_id) is not None:
        grown -= tombstones.size_bytes(namespace, keys.GROUP, group_id)
    return grown


def deleted(view: View, namespace: Namespace, group_id: str) -> bool:
    """Whether somebody deleted this group lately, so that late reports do not revive it."""
    stone = tombstones.find(view, namespace, keys.GROUP, group_id)
    return stone is not None and stone.existence == state_pb2.EXISTENCE_FORGOTTEN


def start(
    unit: Unit,
    namespace: Namespace,
    group_id: str,
    *,
    ttl_ms: int = limits.TTL_DEFAULT_MS,
    epoch: int = 0,
) -> Counters:
    """Begins a run. `epoch` 0: the one after the last that is remembered."""
    if number_of(unit, namespace, group_id) is not None:
        # Expired and not swept yet. Groups it is in keep its slot for this new run.
        ended = remove(unit, namespace, group_id, state_pb2.EXISTENCE_EXPIRED)
        unit.expired_incomplete += ended is not None and not ended.complete
    there = tombstones.there(unit, namespace, keys.GROUP, group_id)
    stone = tombstones.in_force(unit, there)
    if not epoch:
        epoch = 1 if stone is None else stone.version + 1
    if there is not None:
        tombstones.remove(unit, namespace, keys.GROUP, group_id)
    group = Counters(
        number=U64.unpack(namespaces.next_number(unit.txn, _NEXT))[0],
        namespace=namespace,
        group_id=group_id,
        epoch=epoch,
        created_ms=unit.now_ms,
        updated_ms=unit.now_ms,
        expire_ms=0,
        ttl_ms=ttl_ms,
    )
    unit.counters[group.number] = group
    usage.add(unit, namespace.prefix, 0, counters.size_bytes(group_id))
    group.touch(unit)
    group_payloads.put(unit, group, group_pb2.GroupMeta())
    counters.file_expiry(unit, group)
    return group


def remove(unit: Unit, namespace: Namespace, group_id: str, existence: int) -> Counters | None:
    """Ends the present run and leaves a tombstone. Its rows go bit by bit, later.

    Returns the run that ended, or None if there was none.
    """
    number = number_of(unit, namespace, group_id)
    if number is None:
        return None
    group = raw_counters(unit, number)
    tombstones.put(unit, namespace, keys.GROUP, group_id, existence=existence, version=group.epoch)
    drop_run(unit, group)
    return group


def drop_run(unit: Unit, group: Counters) -> None:
    """Ends a run: no name, no numbers, no claim, its members' rows left for the sweeper."""
    group_payloads.delete(unit, group)
    claims.withdraw(unit, group)
    counters.unfile(unit, group)
    counters.discard(unit, group.number)
    usage.add(unit, group.namespace.prefix, 0, -counters.size_bytes(group.group_id))
    unit.txn.put(Db.GARBAGE, keys.group(group.number), group.namespace.prefix)
    unit.hint(group.namespace, GROUP, group.group_id)


def raw_counters(unit: Unit, number: int) -> Counters:
    """The numbers of a run, expired or not. Raises RecordCorrupt if there are none."""
    kept = unit.counters.get(number)
    if kept is not None:
        return kept
    raw = unit.txn.get(Db.COUNTERS, keys.group(number))
    if raw is None:
        raise RecordCorrupt(
            "A group's numbers are gone: restore the store from a backup.",
            key=keys.group(number).hex(),
        )
    return Counters.unpack(number, raw)


def show(view: View, group: Counters) -> Shown:
    """The group as it goes over the wire."""
    meta, owed = group_payloads.read(group, group_payloads.row(view, group))
    _add_numbers(view, group, meta)
    return Shown(meta, owed)


def brief(view: View, group: Counters, row: bytes | None = None) -> group_pb2.GroupMeta:
    """The same without continuation and extra. `row`: the group's, where it was read already."""
    meta = group_payloads.small(group_payloads.row(view, group) if row is None else row)
    _add_numbers(view, group, meta)
    return meta


def _add_numbers(view: View, group: Counters, meta: group_pb2.GroupMeta) -> None:
    meta.group_id = group.group_id
    meta.existence = state_pb2.EXISTENCE_KNOWN
    meta.counts.CopyFrom(group.to_message())
    set_ms(meta.created_time, group.created_ms)
    set_ms(meta.updated_time, group.updated_ms)
    if group.expire_ms:
        set_ms(meta.expire_time, group.expire_ms)
    if group.complete:
        meta.outcome = group.outcome
        set_ms(meta.completed_time, group.completed_ms)
    _add_claim(view, group, meta)


def _add_claim(view: View, group: Counters, meta: group_pb2.GroupMeta) -> None:
    held = claims.find(view, group)
    if group.claimed_done:
        meta.claim.state = group_pb2.CLAIM_STATE_DONE
    elif held is not None and held.lease_ms > view.now_ms:
        meta.claim.state = group_pb2.CLAIM_STATE_HELD
        set_ms(meta.claim.lease_expire_time, held.lease_ms)
    if held is not None:
        meta.claim.holder = held.holder


def absent(view: View, namespace: Namespace, group_id: str) -> group_pb2.GroupMeta:
    """What is read where there is no group."""
    meta = group_pb2.GroupMeta(group_id=group_id, existence=state_pb2.EXISTENCE_UNKNOWN)
    stone = tombstones.find(view, namespace, keys.GROUP, group_id)
    if stone is not None:
        meta.existence = stone.existence  # type: ignore[assignment]  # stored as its number
    elif number_of(view, namespace, group_id) is not None:
        meta.existence = state_pb2.EXISTENCE_EXPIRED
    return meta
