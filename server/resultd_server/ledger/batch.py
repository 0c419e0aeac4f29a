"""Many reports at once: what most of them need is done for all of them together.

Most are the first of their task and concern nothing else: no record, no tombstone, no group,
nobody's wish. Such `plain` ones stand for themselves, so they are found with a few looks for
all, and put with two. The others go one by one through `records.store`, in their turn. What
comes of it is the same: the tests compare.
"""

from __future__ import annotations

from collections.abc import Sequence

from resultd_server import limits
from resultd_server.errors import DomainError, RecordCorrupt
from resultd_server.ledger import keys, memberships, records
from resultd_server.ledger.claiming import Owing
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.records import Report
from resultd_server.ledger.transitions import CUSTOM
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Unit

Outcome = bytes | Owing | DomainError
"""A serialized StoreResultResponse, or what there is of it, or why the report was refused."""

_LOOK_BYTES = 1 * limits.MIB
"""So much of what is there is read to see that it is there."""


def store_all(
    unit: Unit, namespace: Namespace, reports: Sequence[Report], room_bytes: int
) -> list[Outcome]:
    """Applies reports one after another; what came of each. Raises RecordCorrupt.

    The first of them only, at least one, where that exhausts the unit. `room_bytes`: for claims,
    of a `ClaimRoom`. After an error it may have changed something: the transaction is to be
    taken back.
    """
    if len(reports) == 1:
        report = reports[0] if room_bytes >= 0 else ClaimRoom(room_bytes).report(reports[0])
        return [_store(unit, namespace, report)]
    record_keys = [keys.record(namespace, report.task_id) for report in reports]
    plain = _plain(unit, namespace, reports, record_keys)
    plain.append(False)  # where the last run ends
    outcomes: list[Outcome] = []
    room = ClaimRoom(room_bytes)
    while (begin := len(outcomes)) < len(reports) and not (outcomes and unit.exhausted):
        end = plain.index(False, begin)
        new = reports[begin:end]
        if new:
            stored = records.store_new(unit, namespace, record_keys[begin:end], new)
            outcomes += stored or [_store(unit, namespace, report) for report in new]
        else:
            report = room.report(reports[begin])
            outcomes.append(_store(unit, namespace, report))
            room.take(report, outcomes[-1])
    return outcomes


class ClaimRoom:
    """What is left of a batch's answer for the claims of its reports."""

    def __init__(self, left_bytes: int) -> None:
        self.left_bytes = left_bytes

    def report(self, report: Report) -> Report:
        """The report; without its claim once there is no room to tell what it took."""
        if report.claim is None or self.left_bytes >= 0:
            return report
        return report._replace(claim=None)

    def take(self, report: Report, outcome: Outcome) -> None:
        """Counts what the answer to a report takes."""
        if report.claim is None or isinstance(outcome, DomainError):
            return
        if isinstance(outcome, Owing):
            self.left_bytes -= outcome.owed.size_bytes
            outcome = outcome.wire
        self.left_bytes -= len(outcome)


def _store(unit: Unit, namespace: Namespace, report: Report) -> Outcome:
    try:
        return records.store(unit, namespace, report)
    except RecordCorrupt:
        raise  # met in the middle: what came before it is to be taken back
    except DomainError as error:
        return error


def _plain(
    unit: Unit, namespace: Namespace, reports: Sequence[Report], record_keys: list[bytes]
) -> list[bool]:
    """Of each report, whether it is the first of its task and concerns nothing else.

    A report changes no other task's rows, so this holds until its turn comes.
    """
    if len(set(record_keys)) < len(record_keys):
        return [False] * len(reports)  # a task twice: the second finds what the first left
    looks = [_there(unit, Db.TASKS, record_keys)]
    if not unit.empty(Db.TOMBSTONES, namespace.prefix):
        stones = [keys.tombstone(namespace, keys.TASK, report.task_id) for report in reports]
        looks.append(_there(unit, Db.TOMBSTONES, stones))
    if not unit.empty(Db.REVOCATIONS, namespace.prefix):
        looks.append(_there(unit, Db.REVOCATIONS, record_keys))
    if not unit.empty(Db.MEMBERSHIPS, keys.members_of_kind(namespace, keys.TASK)):
        looks.append(
            [memberships.any_row(unit, namespace, keys.TASK, each.task_id) for each in reports]
        )
    return [
        not (concerned or report.group_id or report.claim_scope or report.state == CUSTOM)
        for concerned, report in zip(map(any, zip(*looks, strict=True)), reports, strict=True)
    ]


def _there(unit: Unit, db: Db, wanted: Sequence[bytes]) -> list[bool]:
    """Of each key, whether there is a row; so it is said too of those not looked at."""
    rows = unit.txn.get_many(db, wanted, _LOOK_BYTES)
    return [row is not None for row in rows] + [True] * (len(wanted) - len(rows))
