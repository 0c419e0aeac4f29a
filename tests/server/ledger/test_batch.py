"""Many reports at once: the same comes of it as of one after another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resultd_server import limits
from resultd_server.engine.memory import MemoryEngine
from resultd_server.errors import DomainError, ValueTooLarge
from resultd_server.ledger import records
from resultd_server.ledger.records import Report
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Changed
from resultd_server.ledger.usage import Allowance
from tests.support.stored import broken_in, rows_of, usage_of
from tests.support.stores import (
    DAY_MS,
    HOUR_MS,
    NEVER,
    SECOND_MS,
    Clock,
    Store,
    disposition,
    make_report,
    task,
)

Step = tuple[str, Any]
"""What is done next, and with what."""

_TASKS = st.sampled_from([f"task-{number}" for number in range(8)])


def _make_report(task_id: str, state: str, value: bytes, **said: Any) -> Report:
    if state == "CUSTOM":
        said["custom_state"] = "HALF"
    return make_report(task_id, state, value, **said)


_REPORTS = st.builds(
    _make_report,
    _TASKS,
    st.sampled_from(["SUCCESS", "SUCCESS", "FAILURE", "STARTED", "CUSTOM"]),
    st.sampled_from([b"1", b"2" * 50]),
    attempt=st.integers(0, 2),
    group=st.sampled_from(["", "", "", "g"]),
    ttl_ms=st.sampled_from([DAY_MS, DAY_MS, SECOND_MS, NEVER]),
    scope=st.sampled_from(["", "", "", "s"]),
    worker=st.sampled_from(["", "w"]),
)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.lists(_REPORTS, min_size=1, max_size=8)),
        st.tuples(
            st.just("report"),
            st.lists(_REPORTS, min_size=1, max_size=8, unique_by=lambda it: it.task_id),
        ),
        st.tuples(st.sampled_from(["forget", "revoke", "declare"]), _TASKS),
        st.tuples(st.just("wait"), st.sampled_from([SECOND_MS, HOUR_MS])),
    ),
    max_size=8,
)


class Seen:
    """Does steps, and keeps what came of them."""

    def __init__(self, allowance: Allowance, *, at_once: bool) -> None:
        self._at_once = at_once
        clock = Clock()
        self._engine = MemoryEngine(clock, allowance=allowance)
        self._store = Store(self._engine, clock)
        self.outcomes: list[Any] = []
        self.hints: set[Changed] = set()
        self._engine.hub.outlet = lambda changed, _: self.hints.update(changed)

    async def do(self, kind: str, what: Any) -> None:
        """One step."""
        if kind == "report":
            for part in [what] if self._at_once else [[each] for each in what]:
                outcomes = await self._engine.put("default", part)
                self.outcomes += map(_comparable, outcomes)
        elif kind == "declare":
            await self._store.create(f"of {what}", task(what))
        elif kind == "wait":
            self._store.clock.advance(what)
            await self._store.sweep()
        else:
            await getattr(self._store, kind)(what)

    def rows(self) -> list[list[tuple[bytes, bytes]]]:
        """Everything that is stored."""
        assert broken_in(self._engine) == []
        usage_of(self._engine)
        return [rows_of(self._engine, db) for db in Db]


def _comparable(outcome: Any) -> Any:
    if isinstance(outcome, DomainError):
        return type(outcome), outcome.sentence, outcome.metadata
    return outcome


@settings(max_examples=25)
@given(
    _STEPS,
    st.one_of(st.none(), st.integers(0, 8)),
    st.one_of(st.none(), st.integers(0, 2_000)),
)
def test_a_batch_is_its_reports_one_after_another(
    steps: list[Step], records_max: int | None, bytes_max: int | None
) -> None:
    """Whatever was there: the same answers, refusals, hints and rows, to the byte."""

    async def compare() -> None:
        allowances = Allowance(records_max, bytes_max), Allowance(records_max, bytes_max)
        together, singly = Seen(allowances[0], at_once=True), Seen(allowances[1], at_once=False)
        for kind, what in steps:
            outcomes: list[Any] = []
            for each in (together, singly):
                try:
                    await each.do(kind, what)
                    outcomes.append(None)
                except DomainError as error:  # there is no room
                    outcomes.append(_comparable(error))
            assert outcomes[0] == outcomes[1]
            assert together.outcomes == singly.outcomes
            assert together.hints == singly.hints
            assert together.rows() == singly.rows()
            assert allowances[0].refused == allowances[1].refused

    asyncio.run(compare())


async def test_new_tasks_are_stored_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a namespace has everything there is, those that concern nothing are stored at once."""
    await store.revoke("wished")
    await store.forget("wished")
    store.clock.advance(HOUR_MS)
    await store.sweep()  # nothing is left of it but the wish
    await store.report("known")
    await store.report("forgotten")
    await store.forget("forgotten")
    await store.create("g", task("member"))
    runs: list[int] = []
    store_new = records.store_new

    def counted(*given: Any) -> Any:
        runs.append(len(given[-1]))
        return store_new(*given)

    monkeypatch.setattr(records, "store_new", counted)
    concerned = ["known", "forgotten", "member", "wished"]
    order = ["a", "b", *concerned, "c", "d", "e"]
    outcomes: list[Any] = await store.put([make_report(task_id) for task_id in order])
    assert runs == [2, 3]
    repeats = [task_id for task_id, each in zip(order, outcomes, strict=True) if not is_new(each)]
    assert repeats == ["known", "forgotten"]
    assert [each.cancel_requested for each in outcomes].index(True) == order.index("wished")


def is_new(outcome: Any) -> bool:
    """Whether a report was accepted as the task's first."""
    return disposition(outcome) == "APPLIED" and outcome.version == 1


async def test_one_that_is_too_large_is_refused_alone(store: Store) -> None:
    """The others of its batch are stored."""
    large = make_report("large", value=b"x" * limits.RECORD_BYTES_MAX)
    outcomes = await store.put([make_report("a"), large, make_report("b")])
    assert [isinstance(each, ValueTooLarge) for each in outcomes] == [False, True, False]
    assert [await store.state(each) for each in ("a", "large", "b")] == [
        "SUCCESS",
        "UNKNOWN",
        "SUCCESS",
    ]


async def test_large_records_that_are_there_are_found(store: Store) -> None:
    """However much lies under a batch's tasks, and is not all looked at: none is stored anew."""
    value = b"x" * (limits.RECORD_BYTES_MAX // 2)
    ids = [f"t{number}" for number in range(6)]
    for task_id in ids:
        await store.report(task_id, "STARTED", value)
    outcomes = await store.put([make_report(task_id) for task_id in ids])
    assert [getattr(each, "version", 0) for each in outcomes] == [2] * len(ids)
