"""The contract over transactions: names of namespaces, budgets, what is looked at first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from resultd.v1 import state_pb2
from resultd_server.engine.lmdb import LmdbEngine
from resultd_server.engine.transactional import NOWHERE, TransactionalEngine
from resultd_server.errors import GroupNotFound, RecordCorrupt, ValueTooLarge
from resultd_server.ledger import group_payloads, records
from resultd_server.ledger.records import Report
from resultd_server.ledger.unit import Unit
from tests.support.in_process import until
from tests.support.stores import (
    SECOND_MS,
    Store,
    asking,
    disposition,
    ids,
    make_report,
    task,
)


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


LARGE = bytes(1_000_000)


async def test_what_is_answered_is_read_in_turn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many small calls of one commit, each answered with a large continuation: a few hold theirs
    at a time. All are told it.
    """
    await store.create("g", task("t"), seal=True, continuation=LARGE)
    await store.report("t")
    held, most = 0, 0
    read = group_payloads.large

    def counted(*what: Any) -> bytes | None:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return read(*what)

    monkeypatch.setattr(group_payloads, "large", counted)

    async def ask(number: int) -> int:
        nonlocal held
        if number % 3 == 0:
            found = (await store.engine.group_claim("default", asking("g", "me"))).group
        elif number % 3 == 1:
            found = (await store.report("t", group="g", claim="me")).claim.group
        else:
            found = await store.seal("g")
        held -= 1  # it is sent
        return len(found.continuation.data)

    assert set(await asyncio.gather(*map(ask, range(60)))) == {len(LARGE)}
    assert most <= 3


async def test_who_asked_of_what_went_meanwhile_is_told_so(store: Store) -> None:
    """The group was deleted after the commit and before the answer: there is none to act on."""
    await store.create("g", task("t"), seal=True, continuation=LARGE)
    await store.report("t")
    engine: Any = store.engine
    async with engine._turn:
        asked = [
            asyncio.ensure_future(work)
            for work in (
                store.claim("g", "me"),
                store.seal("g"),
                store.report("t", group="g", claim="me"),
                store.group("g"),
            )
        ]
        await until(lambda: len(engine._turn._waiters or ()) == len(asked))
        await store.delete_group("g")
    said: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
    claim, sealed, report, read = said
    assert isinstance(claim, GroupNotFound)
    assert isinstance(sealed, GroupNotFound)
    assert disposition(report) == "DUPLICATE"
    assert not report.HasField("claim")
    assert read.existence == state_pb2.EXISTENCE_FORGOTTEN
