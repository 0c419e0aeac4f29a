"""What is asked about a claim, by a call of its own or by a report, and what is answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from resultd.v1 import group_service_pb2 as pb
from resultd.v1 import result_service_pb2
from resultd_server.ledger import claims, group_rows
from resultd_server.ledger.counters import Counters
from resultd_server.ledger.group_payloads import Owed
from resultd_server.ledger.memberships import Place
from resultd_server.ledger.unit import Unit
from resultd_server.ledger.wire import message_field, number_field

_ANSWER = result_service_pb2.StoreResultResponse.DESCRIPTOR.fields_by_name
_CLAIM = _ANSWER["claim"].number
_DONE = _ANSWER["group_done"].number
_EXPECTED_TOTAL = _ANSWER["group_expected_total"].number

ENDS = (pb.CLAIM_ACTION_DONE, pb.CLAIM_ACTION_RELEASE)
"""Actions of who has the claim already; the others take it."""


class ClaimRequest(NamedTuple):
    """A validated ClaimGroup, or the claim of a report on the group it names."""

    group_id: str
    action: pb.ClaimAction.ValueType
    token: str
    holder: str
    lease_ms: int


class Claimed(NamedTuple):
    """What is answered, but for what its group is owed."""

    answer: pb.ClaimGroupResponse
    owed: Owed | None = None


def apply(unit: Unit, group: Counters, request: ClaimRequest) -> Claimed:
    """Takes, finishes or gives back the claim on a group."""
    first = False
    if request.action == pb.CLAIM_ACTION_DONE:
        outcome = claims.finish(unit, group, request.token)
    elif request.action == pb.CLAIM_ACTION_RELEASE:
        outcome = claims.release(unit, group, request.token)
    else:
        outcome = claims.acquire(unit, group, request.token, request.holder, request.lease_ms)
        first = claims.is_first(unit, group, request.token)
    # Who says that it is done, or gives it back, has seen what was to be done.
    if outcome == pb.CLAIM_OUTCOME_GRANTED and request.action not in ENDS:
        meta, owed = group_rows.show(unit, group)
        return Claimed(pb.ClaimGroupResponse(outcome=outcome, group=meta, first=first), owed)
    meta = group_rows.brief(unit, group)
    return Claimed(pb.ClaimGroupResponse(outcome=outcome, group=meta, first=first))


class Owing(NamedTuple):
    """A serialized StoreResultResponse whose claim grants a group, but for what it is owed."""

    wire: bytes
    owed: Owed


def of_report(
    unit: Unit, groups: Iterable[Place], wanted: ClaimRequest
) -> tuple[bytes, Owed | None]:
    """What came of a report's claim, as it stands in the answer, but for what is owed.

    How far the group is while it is not complete; nothing unless the task is in it.
    """
    for place in groups:
        group = place.group
        if group.group_id != wanted.group_id:
            continue
        if not group.complete:
            far = number_field(_DONE, group.done) + number_field(_EXPECTED_TOTAL, group.expected)
            return far, None
        said, owed = apply(unit, group, wanted)
        return message_field(_CLAIM, said.SerializeToString()), owed
    return b"", None


def with_large(answer: bytes, large: bytes | None) -> bytes:
    """An answer with what it owed, which is a GroupMeta of its own; None: nobody can act on it."""
    said = result_service_pb2.StoreResultResponse.FromString(answer)
    if large is None:
        said.ClearField("claim")  # as if the group had gone before
    else:
        # Not appended as a claim of its own: where a message comes twice not every language
        # takes the fields of both, as it should.
        said.claim.group.MergeFromString(large)
    return said.SerializeToString()
