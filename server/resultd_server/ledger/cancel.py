"""Cancellation: what nobody started ends at once, the rest is asked of its worker."""

from __future__ import annotations

from resultd.v1 import state_pb2, task_pb2, value_pb2, worker_service_pb2
from resultd_server.errors import ValueTooLarge
from resultd_server.ledger import records, revocations
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


def revoke(unit: Unit, namespace: Namespace, wish: worker_service_pb2.Revocation) -> int:
    """Stores the wish; the task's state now (0: its worker has to act).

    A terminal task is left alone.
    """
    state = records.live_state(unit, namespace, wish.task_id)
    if state in TERMINAL:
        return int(state or 0)
    revocations.put(unit, namespace, wish)
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
    except ValueTooLarge:
        return 0  # no room for the word, and nothing was changed: its worker says it
    return state_pb2.STATE_REVOKED
