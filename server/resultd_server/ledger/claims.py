"""The exclusive right to act on a complete group, held for a lease."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from resultd.v1 import group_service_pb2 as pb
from resultd_server import limits
from resultd_server.ledger import counters, keys, usage
from resultd_server.ledger.counters import Counters
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Unit, View

_FIELDS = struct.Struct(">QBB")


@dataclass(frozen=True, slots=True)
class Held:
    """A claim as stored. `token` is empty if it was given back.

    `again`: another token had it before, and may have acted on it.
    """

    lease_ms: int
    token: str
    holder: str
    again: bool


def find(view: View, group: Counters) -> Held | None:
    """The claim on a group: its lease running or run out, or given back."""
    raw = view.txn.get(Db.CLAIMS, keys.group(group.number))
    if raw is None:
        return None
    lease_ms, token_bytes, again = _FIELDS.unpack_from(raw)
    token_end = _FIELDS.size + token_bytes
    token, holder = raw[_FIELDS.size : token_end].decode(), raw[token_end:].decode()
    return Held(lease_ms, token, holder, bool(again))


def _put(unit: Unit, group: Counters, held: Held) -> None:
    """Never refused, or work would wait for room: over a quota the holder is not named.

    So claims exceed it by their tokens, and other things are refused for that.
    """
    key, token = keys.group(group.number), held.token.encode()
    row = _FIELDS.pack(held.lease_ms, len(token), held.again) + token
    named = row + held.holder.encode()
    before = unit.txn.get(Db.CLAIMS, key)
    grown = len(named) + (len(key) if before is None else -len(before))
    fits = usage.fits(unit, group.namespace, records=0, size_bytes=grown)
    usage.put(unit, group.namespace.prefix, Db.CLAIMS, key, named if fits else row)


def acquire(
    unit: Unit, group: Counters, token: str, holder: str, lease_ms: int
) -> pb.ClaimOutcome.ValueType:
    """Takes the claim, or renews it for the token that holds it."""
    if not group.complete:
        return pb.CLAIM_OUTCOME_INCOMPLETE
    if group.claimed_done:
        return pb.CLAIM_OUTCOME_DONE
    held = find(unit, group)
    if held is not None and held.token != token and held.lease_ms > unit.now_ms:
        return pb.CLAIM_OUTCOME_HELD
    again = held is not None and (held.again or held.token != token)
    _put(unit, group, Held(unit.now_ms + lease_ms, token, holder, again))
    group.touch(unit)
    return pb.CLAIM_OUTCOME_GRANTED


def is_first(view: View, group: Counters, token: str) -> bool:
    """Whether this token has the claim, and no other had it before."""
    held = find(view, group)
    return held is not None and held.token == token and not held.again


def finish(unit: Unit, group: Counters, token: str) -> pb.ClaimOutcome.ValueType:
    """Says that the work is done. Nobody is told of this group again.

    A holder whose lease ran out and whose claim nobody took still holds it.
    """
    held = find(unit, group)
    if held is None or held.token != token:
        return pb.CLAIM_OUTCOME_DONE if group.claimed_done else pb.CLAIM_OUTCOME_LOST
    if not group.claimed_done:
        group.claimed_done = True
        unit.txn.delete(Db.CLAIMABLE, keys.claimable(group.namespace, group.scope, group.number))
        group.touch(unit)
    return pb.CLAIM_OUTCOME_GRANTED


def release(unit: Unit, group: Counters, token: str) -> pb.ClaimOutcome.ValueType:
    """Gives the claim back undone."""
    held = find(unit, group)
    if group.claimed_done:
        return pb.CLAIM_OUTCOME_DONE
    if held is None or held.token != token:
        return pb.CLAIM_OUTCOME_LOST
    # Whoever has it next is to know that somebody had it.
    _put(unit, group, Held(0, "", "", again=True))
    group.touch(unit)
    return pb.CLAIM_OUTCOME_GRANTED


def free(view: View, group: Counters) -> bool:
    """Whether a complete group waits for somebody to act on it."""
    if not group.complete or group.claimed_done:
        return False
    held = find(view, group)
    return held is None or held.lease_ms <= view.now_ms


def offer(unit: Unit, group: Counters) -> None:
    """The group is complete: name it to reports of its scope."""
    if group.scope:
        key = keys.claimable(group.namespace, group.scope, group.number)
        unit.txn.put(Db.CLAIMABLE, key, b"")


def withdraw(unit: Unit, group: Counters) -> None:
    """The run is over: nothing to claim."""
    usage.delete(unit, group.namespace.prefix, Db.CLAIMS, keys.group(group.number))
    unit.txn.delete(Db.CLAIMABLE, keys.claimable(group.namespace, group.scope, group.number))


def claimable(view: View, namespace: Namespace, scope: str) -> list[str]:
    """Up to 8 complete groups of a scope whose claim is free."""
    prefix = keys.claimable_scope(namespace, scope)
    found: list[str] = []
    rows = view.txn.scan(Db.CLAIMABLE, prefix, keys.after_prefix(prefix))
    for seen, (key, _) in enumerate(rows):
        # Held ones stand in the way only until their leases run out.
        if seen == limits.CLAIMABLE_SCANNED or len(found) == limits.CLAIMABLE_PER_ANSWER:
            break
        group = counters.load(view, keys.U64.unpack(key[-8:])[0])
        if group is not None and free(view, group):
            found.append(group.group_id)
    return found
