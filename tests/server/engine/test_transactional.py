"""The contract over transactions: names of namespaces, budgets, what is looked at first."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2
from resultd.v1.group_service_pb2 import CLAIM_OUTCOME_GRANTED
from resultd_server import limits
from resultd_server.engine.lmdb import LmdbEngine
from resultd_server.engine.transactional import NOWHERE, TransactionalEngine
from resultd_server.errors import GroupNotFound, RecordCorrupt, ValueTooLarge
from resultd_server.ledger import group_payloads, records
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.records import Report
from resultd_server.ledger.unit import Unit
from tests.support.in_process import until
from tests.support.stored import times_filed
from tests.support.stores import (
    DAY_MS,
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
    assert await engine.sweep(5) == (0, 0, 0, False)
    assert (engine.commits if isinstance(engine, LmdbEngine) else 0) == before


def writes_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each transaction from now on, none of which does more than it must."""
    monkeypatch.setattr(limits, "COMMIT_WORK_US", 1)
    found: list[None] = []
    write = store.engine._write  # type: ignore[attr-defined]  # below the contract

    async def counted(*args: Any, **said: Any) -> Any:
        found.append(None)
        return await write(*args, **said)

    monkeypatch.setattr(store.engine, "_write", counted)
    return found


async def test_many_records_are_forgotten_in_several_transactions(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes long to forget is forgotten bit by bit; how many there were is told at the end."""
    await store.put([make_report(f"t{number}") for number in range(4)])
    writes = writes_of(store, monkeypatch)
    names = ["none", "t0", "t1", "no", "t2", "t3", "nothing"]
    assert await store.engine.delete("default", names) == 4
    assert len(writes) == 5
    assert await store.engine.delete("default", []) == 0
    assert [await store.state(f"t{number}") for number in range(4)] == ["FORGOTTEN"] * 4


async def test_a_sweep_ends_where_it_was_work_enough(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of records that take long to bury fewer go in one step, and it says that there are more."""
    await store.put([make_report(f"t{number}", ttl_ms=SECOND_MS) for number in range(3)])
    writes_of(store, monkeypatch)
    store.clock.advance(SECOND_MS)
    assert [await store.engine.sweep(10) for _ in range(4)] == [
        *[(1, 1, 0, True)] * 3,
        (0, 0, 0, False),
    ]


@pytest.fixture
def expired(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each record was tried to be expired; those named "bad" cannot be read."""
    tried: Counter[str] = Counter()
    expire = records.expire

    def counted(unit: Unit, namespace: Namespace, task_id: str) -> bool:
        tried[task_id] += 1
        if task_id.startswith("bad"):
            raise RecordCorrupt("A row that it led to.")
        return expire(unit, namespace, task_id)

    monkeypatch.setattr(records, "expire", counted)
    return tried


async def sweep_all(store: Store) -> int:
    """Sweeps until there is nothing to do; how often that was refused."""
    refused = 0
    while True:
        try:
            if not (await store.engine.sweep(500)).steps:
                return refused
        except RecordCorrupt:
            refused += 1


async def test_what_can_be_read_is_not_done_again_for_what_cannot(
    store: Store, expired: Counter[str]
) -> None:
    """Entries before one that leads to damage are swept by themselves, and those behind it then."""
    names = [f"{'bad' if number % 3 == 2 else 't'}{number:02}" for number in range(30)]
    for name in names:
        await store.report(name, ttl_ms=SECOND_MS)
        store.clock.advance(1)
    store.clock.advance(SECOND_MS)
    assert await sweep_all(store) == 10
    assert [await store.state(name) for name in names] == ["EXPIRED"] * 30
    assert {expired[name] for name in names if name.startswith("t")} == {2}


async def test_what_many_lead_to_is_met_a_few_times(store: Store, expired: Counter[str]) -> None:
    """While nothing of a namespace can be read, more and more of it are put off for a day; of
    others, due between them, nothing is.
    """
    other = Store(store.engine, store.clock, "other")
    for number in range(100):
        await store.report(f"bad{number}", ttl_ms=SECOND_MS)
        await other.report(f"t{number}", ttl_ms=SECOND_MS)
        store.clock.advance(1)
    store.clock.advance(SECOND_MS)
    assert await sweep_all(store) == 7, "1, 2, 4, 8, 16, 32, 64"
    assert sum(expired[f"t{number}"] > 0 for number in range(100)) == 100
    assert times_filed(store.engine).count(store.clock() + DAY_MS) == 100
    store.clock.advance(DAY_MS)
    assert await sweep_all(store) == 7, "begun anew"


async def test_what_groups_leave_behind_is_swept_bit_by_bit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that a deleted group kept are looked at again, fewer at once where they are large."""
    names = [f"t{number}" for number in range(3)]
    await store.create("g", *map(task, names))
    await store.put([make_report(name, value=bytes(20_000), ttl_ms=SECOND_MS) for name in names])
    store.clock.advance(SECOND_MS)
    await store.sweep()
    await store.delete_group("g")
    writes_of(store, monkeypatch)
    swept = [await store.engine.sweep(100) for _ in range(8)]
    assert sum(each.expired for each in swept) == 3
    assert [each.expired for each in swept].count(1) == 3, "one at a time"
    assert swept[-1] == (0, 0, 0, False)


async def test_large_records_are_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports on large records are not all of one transaction, though they are small."""
    names = [f"t{number}" for number in range(4)]
    args = {"data": bytes(20_000)}
    await store.put([make_report(name, "STARTED", args=args) for name in names])
    writes = writes_of(store, monkeypatch)
    said = await store.put([make_report(name) for name in names])
    assert [disposition(each) for each in said] == ["APPLIED"] * 4  # type: ignore[arg-type]  # none is refused
    assert len(writes) == 4
    await store.put([make_report(f"n{number}") for number in range(50)])
    assert len(writes) == 5, "what is in proportion is no such work"


async def test_members_of_many_groups_are_counted_in_several_transactions(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch goes on in another transaction; each report has its outcome, in its place."""
    names = [f"t{number}" for number in range(4)]
    for group in ("g", "h"):
        await store.create(group, *map(task, names), seal=True)
    writes = writes_of(store, monkeypatch)
    batch = [make_report("first"), *map(make_report, names), make_report("last")]
    said: list[Any] = await store.put(batch)
    assert [disposition(each) for each in said] == ["APPLIED"] * 6
    assert [list(each.complete_group_ids) for each in said[3:]] == [[], ["g", "h"], []]
    assert len(writes) == 5
    assert await store.log("g") == names


async def test_claims_of_a_batch_have_room_together(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many transactions a batch takes, claims are taken while its answer has room."""
    for group in ("g", "h", "i", "j"):
        await store.create(group, task(f"of {group}"), seal=True)
    writes = writes_of(store, monkeypatch)
    monkeypatch.setattr(limits, "RESPONSE_BYTES_MAX", 200)
    batch = [make_report(f"of {group}", group=group, claim="me") for group in ("g", "h", "i", "j")]
    said: list[Any] = await store.put(batch)
    assert len(writes) == 4
    taken = [each.HasField("claim") for each in said]
    assert taken == sorted(taken, reverse=True)
    assert set(taken) == {True, False}


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


async def test_a_claim_with_much_stands_once_in_its_answer(store: Store) -> None:
    """Where a message comes twice, some languages take the last one alone."""
    await store.create("g", task("t"), seal=True, continuation=LARGE)
    (said,) = await store.engine.put("default", [make_report("t", group="g", claim="me")])
    assert isinstance(said, bytes)
    found = pb.StoreResultResponse.FromString(said)
    assert found.claim.outcome == CLAIM_OUTCOME_GRANTED
    assert found.claim.group.continuation.data == LARGE
    assert said == found.SerializeToString(), "with a field twice it would be longer"


async def test_what_cannot_be_told_of_a_claim_does_not_hide_what_was_stored(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is stored, once; there is no claim in its answer."""
    await store.create("g", task("t"), seal=True, continuation=LARGE)

    def damaged(*_: Any) -> bytes:
        raise RecordCorrupt("A row does not match its checksum.")

    monkeypatch.setattr(group_payloads, "large", damaged)
    first, said = await store.put(
        [make_report("p", "PROGRESS"), make_report("t", group="g", claim="me")]
    )
    assert not isinstance(first, Exception)
    assert not isinstance(said, Exception)
    assert [disposition(first), disposition(said)] == ["APPLIED", "APPLIED"]
    assert not said.HasField("claim")
    assert (await store.meta("p")).version == 1


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
