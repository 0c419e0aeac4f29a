"""What a report may do to a record: one table, the same in every engine.

The first row whose three conditions hold decides; no row, no change. Attempts count
from 1; 0 says the worker does not number them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2, task_pb2

APPLIED = pb.DISPOSITION_APPLIED
DUPLICATE = pb.DISPOSITION_DUPLICATE
SUPERSEDED = pb.DISPOSITION_SUPERSEDED

SUCCESS = state_pb2.STATE_SUCCESS
CUSTOM = state_pb2.STATE_CUSTOM
TERMINAL_RANK = 5

RANK: dict[int, int] = {
    state_pb2.STATE_PENDING: 0,
    state_pb2.STATE_RECEIVED: 1,
    state_pb2.STATE_REJECTED: 1,
    state_pb2.STATE_STARTED: 2,
    state_pb2.STATE_PROGRESS: 3,
    state_pb2.STATE_CUSTOM: 3,
    state_pb2.STATE_RETRY: 4,
    state_pb2.STATE_SUCCESS: TERMINAL_RANK,
    state_pb2.STATE_FAILURE: TERMINAL_RANK,
    state_pb2.STATE_REVOKED: TERMINAL_RANK,
    state_pb2.STATE_IGNORED: TERMINAL_RANK,
}

TERMINAL = frozenset(state for state, rank in RANK.items() if rank == TERMINAL_RANK)


class Standing(NamedTuple):
    """As much of a record, tombstone or report as the rule looks at."""

    state: int
    attempt: int
    digest: Callable[[], bytes]

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL

    @property
    def success(self) -> bool:
        return self.state == SUCCESS

    @property
    def numbered(self) -> bool:
        return self.attempt > 0


def content_digest(meta: task_pb2.TaskMeta) -> bytes:
    """16 bytes that tell what was reported, whoever repeats it and when."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(bytes([meta.state]))
    for part in (meta.value, meta.failure):
        encoded = part.SerializeToString(deterministic=True)
        digest.update(len(encoded).to_bytes(4, "big"))
        digest.update(encoded)
    return digest.digest()


def same_report(stored: Standing, report: Standing) -> bool:
    """Whether a report repeats the one that was stored.

    A report without a number repeats whatever attempt the record stands at: it has no
    other way to say which one it meant.
    """
    return (
        stored.state == report.state
        and report.attempt in (stored.attempt, 0)
        and stored.digest() == report.digest()
    )


def _any(_: Standing) -> bool:
    return True


def _always(_: Standing, __: Standing) -> bool:
    return True


def _terminal(standing: Standing) -> bool:
    return standing.terminal


def _not_terminal(standing: Standing) -> bool:
    return not standing.terminal


def _success(standing: Standing) -> bool:
    return standing.success


def _numbered(standing: Standing) -> bool:
    return standing.numbered


def _both_numbered_and_no_better(stored: Standing, report: Standing) -> bool:
    return (stored.numbered and report.numbered) and (report.success, report.attempt) <= (
        stored.success,
        stored.attempt,
    )


def _no_worse(stored: Standing, report: Standing) -> bool:
    return (report.success, report.attempt, RANK[report.state]) >= (
        stored.success,
        stored.attempt,
        RANK[stored.state],
    )


class Row(NamedTuple):
    """If the stored record, the report and both together are so, then this."""

    stored: Callable[[Standing], bool]
    report: Callable[[Standing], bool]
    both: Callable[[Standing, Standing], bool]
    then: pb.Disposition.ValueType


TABLE: tuple[Row, ...] = (
    Row(_terminal, _terminal, same_report, DUPLICATE),
    Row(_success, _any, _always, SUPERSEDED),
    # Who will try again reports RETRY, not FAILURE: what is terminal stays terminal.
    Row(_terminal, _not_terminal, _always, SUPERSEDED),
    Row(_terminal, _terminal, _both_numbered_and_no_better, SUPERSEDED),
    # A lost worker's FAILURE may still become SUCCESS.
    Row(_terminal, _terminal, _always, APPLIED),
    Row(_numbered, _numbered, _no_worse, APPLIED),
    Row(_numbered, _numbered, _always, SUPERSEDED),
    Row(_not_terminal, _any, _always, APPLIED),
)


def decide(stored: Standing, report: Standing) -> pb.Disposition.ValueType:
    """What becomes of `report` where `stored` is what there is."""
    for row in TABLE:
        if row.stored(stored) and row.report(report) and row.both(stored, report):
            return row.then
    return SUPERSEDED
