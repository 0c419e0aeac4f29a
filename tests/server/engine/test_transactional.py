"""The contract over transactions: names of namespaces, budgets, what is looked at first."""

from __future__ import annotations

import pytest

from resultd_server.engine.lmdb import LmdbEngine
from resultd_server.engine.transactional import NOWHERE, TransactionalEngine
from resultd_server.errors import RecordCorrupt, ValueTooLarge
from resultd_server.ledger import records
from resultd_server.ledger.records import Report
from resultd_server.ledger.unit import Unit
from tests.support.stores import SECOND_MS, Store, disposition, ids, make_report


async def test_reading_makes_no_namespace(store: Store) -> None:
    """Reading a namespace nobody wrote finds nothing and writes nothing."""
    engine = store.engine
    assert isinstance(engine, TransactionalEngine)
    assert await store.state("t") == "UNKNOWN"
    assert engine._read(lambda view: engine._known(view, "default")) == NOWHERE._replace(
        name="default"
    )
    await store.report("t")
    known = engine._read(lambda view: engine._known(view, "default"))
    assert known.prefix != NOWHERE.prefix
    assert engine._read(lambda view: engine._known(view, "default")) is known


async def test_a_read_keeps_to_its_budget(store: Store) -> None:
    """A read with a budget answers the first records only, at least one."""
    names = [f"t{number}" for number in range(5)]
    await store.put([make_report(name, value=bytes(1000)) for name in names])
    for budget, count in ((None, 5), (0, 1), (1_500, 2), (100_000, 5)):
        found = await store.engine.get("default", names, budget_bytes=budget)
        assert ids(record.wire for record in found) == names[:count]


async def test_a_sweep_commits_nothing_where_nothing_is_due(store: Store) -> None:
    """A store with nothing due is looked at, not written."""
    await store.report("t", ttl_ms=SECOND_MS)
    engine = store.engine
    before = engine.commits if isinstance(engine, LmdbEngine) else 0
    assert await engine.sweep(5) == (0, 0, 0)
    assert (engine.commits if isinstance(engine, LmdbEngine) else 0) == before


async def test_reports_that_meet_damage_do_not_harm_their_neighbours(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one report of a batch meets a corrupt row, the others are stored, in their order."""
    rule = records.store

    def damaged(unit: Unit, namespace: object, report: Report) -> object:
        answer = rule(unit, namespace, report)  # type: ignore[arg-type]  # handed through
        if report.meta.task_id == "bad":
            raise RecordCorrupt("A row met in the middle.")
        return answer

    monkeypatch.setattr(records, "store", damaged)
    huge = make_report("huge", value=bytes(4_000_000))
    batch = [make_report("t", "STARTED"), make_report("bad"), huge, make_report("t")]
    first, bad, large, last = await store.put(batch)
    assert isinstance(bad, RecordCorrupt)
    assert isinstance(large, ValueTooLarge)
    assert not isinstance(first, Exception)
    assert not isinstance(last, Exception)
    assert [disposition(first), disposition(last)] == ["APPLIED", "APPLIED"]
    assert (await store.meta("t")).version == 2
    assert await store.state("bad") == "UNKNOWN"
