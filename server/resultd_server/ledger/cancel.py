"""Cancellation: what nobody started ends at once, the rest is asked of its worker."""

from __future__ import annotations

from collections.abc import Sequence

from resultd.v1 import state_pb2, task_pb2, value_pb2, worker_service_pb2
from resultd_server.errors import Quota, ValueTooLarge
from resultd_server.ledger import records, revocations, usage
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.records import report_of
from resultd_server.ledger.transitions import TERMINAL
from resultd_server.ledger.unit import Unit

_NOT_STARTED = frozenset(
    {
        None,
        state_pb2.STATE_PENDING,
        state_pb2.STATE_RECEIVED,
        state_pb2.STATE_RETRY,
        state_pb2.STATE_REJECTED,
    }
)


def revoke(
    unit: Unit, namespace: Namespace, wishes: Sequence[worker_service_pb2.Revocation]
) -> list[int]:
    """Stores the wishes; for each the task's state now (0: its worker has to act).

    Terminal tasks are left alone. Raises Quota where there is no room for the wishes; that
    there is none for what they make of records refuses none.
    """
    states = [records.live_state(unit, namespace, wish.task_id) for wish in wishes]
    kept = [wish for wish, state in zip(wishes, states, strict=True) if state not in TERMINAL]
    grown = sum(revocations.growth_bytes(unit, namespace, wish) for wish in kept)
    usage.check(unit, namespace, size_bytes=grown)
    for wish in kept:
        revocations.put(unit, namespace, wish)
    return [_end(unit, namespace, wish, state) for wish, state in zip(wishes, states, strict=True)]


def _end(
    unit: Unit, namespace: Namespace, wish: worker_service_pb2.Revocation, state: int | None
) -> int:
    """Ends a task that nobody started; its state now, or 0."""
    if state in TERMINAL:
        return int(state or 0)
    if state not in _NOT_STARTED:
        return 0
    reason = wish.reason or "revoked"
    meta = task_pb2.TaskMeta(
        task_id=wish.task_id,
        state=state_pb2.STATE_REVOKED,
        failure=value_pb2.Failure(
            # What Celery stores for a revoked task, so that its readers know it.
            type="TaskRevokedError",
            module="celery.exceptions",
            message=reason,
        ),
    )
    ttl_ms = records.ttl_ms(unit, namespace, wish.task_id)
    try:
        records.store(unit, namespace, report_of(meta, ttl_ms))
    except (ValueTooLarge, Quota):
        return 0  # no room for the word, and nothing was changed: its worker says it
    return state_pb2.STATE_REVOKED
