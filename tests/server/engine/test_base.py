"""What every engine promises (`engine/base.py`), tried on each of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from resultd.v1 import group_service_pb2, worker_service_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server import limits
from resultd_server.engine.transactional import TransactionalEngine
from resultd_server.errors import DomainError, FieldInvalid, GroupNotFound, Quota, ValueTooLarge
from resultd_server.ledger import namespaces
from resultd_server.ledger.claiming import ClaimRequest
from resultd_server.ledger.unit import GROUP, REVOCATION, TASK
from resultd_server.ledger.usage import UNLIMITED, Allowance
from tests.support.stores import (
    DAY_MS,
    ENGINES,
    HOUR_MS,
    Clock,
    Store,
    disposition,
    ids,
    make_engine,
    make_report,
    task,
)


async def test_what_was_put_is_read_back(store: Store) -> None:
    """A report that was answered is what the next read shows."""
    answer = await store.report("t", "STARTED", b"half", worker="w1")
    assert (disposition(answer), answer.version) == ("APPLIED", 1)
    meta = await store.meta("t")
    assert (meta.value.data, meta.worker, meta.version, meta.terminal) == (b"half", "w1", 1, False)


async def test_reads_answer_in_the_order_asked(store: Store) -> None:
    """`get` answers one record for each id, in their order, repeats and unknown ones too."""
    await store.put([make_report("a"), make_report("b", "FAILURE")])
    records = await store.engine.get("default", ["b", "nobody", "a", "b"])
    assert ids(record.wire for record in records) == ["b", "nobody", "a", "b"]
    assert [record.version for record in records] == [1, 0, 1, 1]


async def test_reports_of_one_call_stand_alone(store: Store) -> None:
    """A refused report of a batch leaves the others of the batch alone."""
    huge = make_report("huge", value=bytes(limits.RECORD_BYTES_MAX))
    outcomes = await store.put([make_report("a"), huge, make_report("b")])
    assert [isinstance(outcome, DomainError) for outcome in outcomes] == [False, True, False]
    assert isinstance(outcomes[1], ValueTooLarge)
    assert [await store.state(id_) for id_ in ("a", "huge", "b")] == [
        "SUCCESS",
        "UNKNOWN",
        "SUCCESS",
    ]


async def test_reports_of_one_call_come_in_order(store: Store) -> None:
    """An id may stand twice in a batch: the later report finds what the earlier one left."""
    outcomes = await store.put(
        [make_report("t", "STARTED"), make_report("t"), make_report("t"), make_report("t", "RETRY")]
    )
    said = [disposition(each) for each in outcomes if isinstance(each, pb.StoreResultResponse)]
    assert said == ["APPLIED", "APPLIED", "DUPLICATE", "SUPERSEDED"]


async def test_forgetting_counts_what_was_there(store: Store) -> None:
    """`delete` answers how many records there were, and is idempotent."""
    await store.put([make_report("a"), make_report("b")])
    assert await store.forget("a", "b", "nobody") == 2
    assert await store.forget("a", "b") == 0
    assert await store.state("a") == "FORGOTTEN"


async def test_wishes_to_stop_are_kept(store: Store) -> None:
    """`revoked` shows what `revoke` was told, and nothing where nobody asked."""
    await store.report("t", "STARTED")
    assert await store.revoke("t", terminate=True, signal="SIGKILL") == [0]
    wish, none = await store.engine.revoked("default", ["t", "other"])
    assert none is None
    assert wish is not None
    found = worker_service_pb2.Revocation.FromString(wish)
    assert (found.terminate, found.signal) == (True, "SIGKILL")
    assert (await store.report("t", "STARTED")).cancel_requested


async def test_namespaces_are_apart(store: Store) -> None:
    """Ids, groups, wishes and claims of one namespace are nothing in another."""
    other = Store(store.engine, store.clock, "other")
    await store.report("t", group="g", scope="s")
    await store.create("g", seal=True, scope="s")
    await store.revoke("u")
    assert await other.state("t") == "UNKNOWN"
    assert await other.existence("g") == "UNKNOWN"
    assert await other.engine.revoked("other", ["u"]) == [None]
    assert (await other.report("t", "FAILURE", scope="s")).claimable_group_ids == []
    assert await other.forget("u") == 0
    assert await store.state("t") == "SUCCESS"
    assert (await other.engine.scan("other", pb.ListResultsRequest(page_size=9))).rows != []
    listed = group_service_pb2.ListGroupsRequest(page_size=9)
    assert (await other.engine.group_list("other", listed)).rows == []
    assert (await other.engine.group_list("never written", listed)).rows == []


async def test_a_group_that_is_not_there_is_said_so(store: Store) -> None:
    """Writing to an unknown group raises GroupNotFound; reading it answers its absence."""
    for attempt in (
        store.add("nobody", task("t")),
        store.seal("nobody"),
        store.add_to_total("nobody", 1, "r"),
        store.claim("nobody", "token"),
        store.members("nobody"),
    ):
        with pytest.raises(GroupNotFound, match="create it first"):
            await attempt
    assert await store.existence("nobody") == "UNKNOWN"
    assert not await store.delete_group("nobody")
    assert (await store.step("nobody")).group is None


async def test_record_group_and_log_show_a_report_together(store: Store) -> None:
    """After a report was answered, record, counts, members and log all show it."""
    await store.create("g", task("a"), task("b"), seal=True)
    answer = await store.report("b", group="g")
    assert answer.membership == pb.MEMBERSHIP_COUNTED
    assert await store.state("b") == "SUCCESS"
    assert (await store.counts("g"))["succeeded"] == 1
    assert [member.position for member in await store.members("g")] == [0, 1]
    assert await store.log("g") == ["b"]


async def test_a_claim_shows_the_continuation_to_its_holder(store: Store) -> None:
    """Who is granted a claim reads the continuation with the answer; who is not, does not."""
    await store.create("g", seal=True, continuation=b"then add")

    def asking(token: str) -> ClaimRequest:
        return ClaimRequest("g", group_service_pb2.CLAIM_ACTION_ACQUIRE, token, "me", 1_000)

    mine = await store.engine.group_claim("default", asking("mine"))
    theirs = await store.engine.group_claim("default", asking("theirs"))
    assert mine.group.continuation.data == b"then add"
    assert not theirs.group.HasField("continuation")
    assert theirs.group.claim.holder == "me"


async def test_every_change_of_a_key_is_hinted(store: Store) -> None:
    """Once `add` has returned, whatever changes a key yields it."""
    subscription = store.engine.subscribe("default")
    subscription.add(TASK, ["t"])
    subscription.add(GROUP, ["g"])
    subscription.add(REVOCATION, ["t"])

    async def hinted() -> set[tuple[str, str]]:
        return set(subscription.take()) if await subscription.wait(5) else set()

    await store.report("t", "STARTED")
    assert await hinted() == {(TASK, "t")}
    await store.report("t", "STARTED", group="g")
    assert await hinted() == {(TASK, "t"), (GROUP, "g")}
    await store.revoke("t")
    assert await hinted() == {(REVOCATION, "t")}
    await store.seal("g")
    assert await hinted() == {(GROUP, "g")}
    await store.report("t")
    assert await hinted() == {(TASK, "t"), (GROUP, "g")}
    await store.claim("g", "token")
    assert await hinted() == {(GROUP, "g")}
    await store.forget("t")
    assert await hinted() == {(TASK, "t")}
    await store.delete_group("g")
    assert await hinted() == {(GROUP, "g")}
    subscription.close()


async def test_expiry_is_hinted(store: Store) -> None:
    """Who waits for something that expires is told when it goes."""
    await store.report("t", ttl_ms=HOUR_MS)
    await store.create("g", ttl_ms=HOUR_MS)
    subscription = store.engine.subscribe("default")
    subscription.add(TASK, ["t"])
    subscription.add(GROUP, ["g"])
    store.clock.advance(HOUR_MS)
    await store.sweep()
    assert await subscription.wait(5)
    assert set(subscription.take()) == {(TASK, "t"), (GROUP, "g")}
    subscription.close()


async def test_what_changes_nothing_is_not_hinted(store: Store) -> None:
    """A superseded report and a repeated one wake nobody."""
    await store.report("t")
    subscription = store.engine.subscribe("default")
    subscription.add(TASK, ["t"])
    await store.report("t")
    await store.report("t", "RETRY")
    assert not await subscription.wait(0.01)
    subscription.close()


async def test_a_scan_pages_through_every_record(store: Store) -> None:
    """Pages of `scan` hold every record once, by id, whatever their size."""
    names = [f"t{number:02}" for number in range(25)]
    await store.put([make_report(name) for name in reversed(names)])
    found, token = [], ""
    while True:
        wanted = pb.ListResultsRequest(page_size=4, page_token=token)
        page = await store.engine.scan("default", wanted)
        found += ids(page.rows)
        token = page.next_token
        if not token:
            break
    assert found == names


async def test_a_page_token_of_somebody_else_is_refused(store: Store) -> None:
    """Tokens that are not ours raise FieldInvalid and name the remedy."""
    await store.create("g", task("a"))
    with pytest.raises(FieldInvalid, match="pass the next_page_token"):
        await store.engine.scan("default", pb.ListResultsRequest(page_token="ä!"))
    with pytest.raises(FieldInvalid, match="pass the next_page_token"):
        await store.engine.group_members("default", "g", 1, "AAAA")


async def test_a_sweep_with_nothing_due_does_nothing(store: Store) -> None:
    """Sweeping a store in which nothing is due takes no steps."""
    await store.report("t")
    assert await store.engine.sweep(10) == (0, 0, 0, False)


async def test_a_sweep_is_bounded(store: Store) -> None:
    """One sweep deletes about as much as its budget, and says when there is more."""
    await store.put([make_report(f"t{number}", ttl_ms=HOUR_MS) for number in range(25)])
    store.clock.advance(HOUR_MS)
    assert await store.engine.sweep(10) == (10, 10, 0, True)
    assert await store.engine.sweep(10) == (10, 10, 0, True)
    assert await store.engine.sweep(10) == (5, 5, 0, False)
    assert await store.engine.sweep(10) == (0, 0, 0, False)


async def test_a_group_that_expires_incomplete_is_counted(store: Store) -> None:
    """A sweep says how many of the groups that expired were not complete."""
    await store.create("short", task("a"), ttl_ms=HOUR_MS)
    await store.create("done", seal=True, ttl_ms=HOUR_MS)
    store.clock.advance(HOUR_MS)
    assert await store.existence("short") == "EXPIRED"
    swept = await store.sweep()
    assert (swept.expired, swept.expired_incomplete) == (2, 1)
    assert await store.existence("short") == "EXPIRED"
    store.clock.advance(DAY_MS)
    await store.sweep()
    assert await store.existence("short") == "UNKNOWN"


async def test_a_group_that_expired_incomplete_is_counted_once(store: Store) -> None:
    """By a sweep, or by who declares it again before one, or names it in a report."""
    for name in ("swept", "declared", "named", "begun again", "lives"):
        await store.create(name, task("a"), ttl_ms=DAY_MS if name == "lives" else HOUR_MS)
    await store.create("done", seal=True, ttl_ms=HOUR_MS)
    store.clock.advance(HOUR_MS)
    await store.create("declared")
    await store.report("t", group="named")
    await store.create("begun again", new_epoch=True)
    await store.create("done")
    await store.delete_group("lives")
    assert store.engine.stats().groups_incomplete == 3
    assert (await store.sweep()).expired_incomplete == 1
    assert store.engine.stats().groups_incomplete == 4


async def test_writers_at_once_all_count(store: Store) -> None:
    """However many report at once, each member is counted once and the log is dense."""
    names = [f"t{number}" for number in range(300)]
    await store.create("g", *map(task, names), seal=True)
    answers = await asyncio.gather(
        *(store.report(name, group="g") for name in names),
        *(store.report(name, group="g") for name in names),
    )
    assert sorted(await store.log("g")) == sorted(names)
    told = [answer for answer in answers if answer.complete_group_ids == ["g"]]
    assert len(told) >= 1
    assert (await store.group("g")).counts.complete


@pytest.mark.parametrize("name", ENGINES)
async def test_every_store_has_an_id_of_its_own(name: str, clock: Clock, tmp_path: Path) -> None:
    """Two stores have different ids, so that a client notices when one took the other's place."""
    found = set()
    for number in range(2):
        engine = make_engine(name, clock, tmp_path / str(number))
        await engine.start()
        found.add(engine.store_id)
        assert engine.name == ("memory" if name == "memory" else "lmdb")
        await engine.close()
    assert len(found) == 2


async def test_a_namespace_begins_with_something_in_it(store: Store) -> None:
    """What needs a record or group that is there makes no namespace by asking."""
    engine = store.engine
    await store.report("t1")
    assert await engine.delete("elsewhere", ["t1"]) == 0
    assert await engine.group_delete("elsewhere", "g") is False
    with pytest.raises(GroupNotFound):
        await engine.group_seal("elsewhere", "g", None)
    assert names_of(store) == [store.namespace]


def names_of(store: Store) -> list[str]:
    """The namespaces there are."""
    assert isinstance(store.engine, TransactionalEngine)
    found = store.engine._read(lambda view: namespaces.names(view.txn))
    return [namespace.name for namespace in found.values()]


async def test_who_is_refused_makes_no_namespace(store: Store) -> None:
    """Whatever was asked for; who is let in at the same time has one, and it is nobody else's."""
    large = b"x" * (limits.RECORD_BYTES_MAX + 1)
    other = Store(store.engine, store.clock, "other")
    (refused,), there = await asyncio.gather(
        store.put([make_report("t", value=large)]), other.report("t")
    )
    assert (type(refused), disposition(there)) == (ValueTooLarge, "APPLIED")
    with pytest.raises(ValueTooLarge):
        await store.create("g", continuation=large)
    assert isinstance(store.engine, TransactionalEngine)
    store.engine.allowance = Allowance(bytes_max=1)
    with pytest.raises(Quota):
        await store.revoke("t")
    assert names_of(store) == ["other"]
    store.engine.allowance = UNLIMITED
    assert (await store.state("t"), await other.state("t")) == ("UNKNOWN", "SUCCESS")
    await store.put([make_report("t", value=large), make_report("u")])
    assert sorted(names_of(store)) == ["default", "other"]
    assert (await store.state("u"), await other.state("u")) == ("SUCCESS", "UNKNOWN")


async def test_an_engine_counts_what_it_commits(store: Store) -> None:
    """Every commit has a duration and a size; a refusal or a read is none."""
    await store.report("t1")
    await store.revoke("t2", "t3")
    await store.meta("t1")
    stats = store.engine.stats()
    assert stats.commit_seconds.count == stats.commit_operations.count == 2
    assert stats.commit_operations.sum == 2
    assert (stats.revocations, stats.writes_queued, stats.writing_s) == (2, 0, 0.0)
