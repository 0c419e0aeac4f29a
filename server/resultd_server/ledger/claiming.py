"""What is asked about a claim, by a call of its own or by a report, and what is answered."""

from __future__ import annotations

from typing import NamedTuple

from resultd.v1 import group_service_pb2 as pb
from resultd_server.ledger import claims, group_rows
from resultd_server.ledger.counters import Counters
from resultd_server.ledger.unit import Unit

ENDS = (pb.CLAIM_ACTION_DONE, pb.CLAIM_ACTION_RELEASE)
"""Actions of who has the claim already; the others take it."""


class ClaimRequest(NamedTuple):
    """A validated ClaimGroup, or the claim of a report on the group it names."""

    group_id: str
    action: pb.ClaimAction.ValueType
    token: str
    holder: str
    lease_ms: int


def apply(unit: Unit, group: Counters, request: ClaimRequest) -> pb.ClaimGroupResponse:
    """Takes, finishes or gives back the claim on a group."""
    first = False
    if request.action == pb.CLAIM_ACTION_DONE:
        outcome = claims.finish(unit, group, request.token)
    elif request.action == pb.CLAIM_ACTION_RELEASE:
        outcome = claims.release(unit, group, request.token)
    else:
        outcome = claims.acquire(unit, group, request.token, request.holder, request.lease_ms)
        first = claims.is_first(unit, group, request.token)
    granted = outcome == pb.CLAIM_OUTCOME_GRANTED
    return pb.ClaimGroupResponse(
        outcome=outcome,
        group=group_rows.to_message(unit, group, brief=not granted),
        first=first,
    )
