"""Joining a group, and being counted in it exactly once, whatever came first."""

from __future__ import annotations

import pytest

from resultd.v1 import state_pb2
from resultd_server import limits
from resultd_server.errors import LimitExceeded, Overloaded
from resultd_server.ledger import counters
from resultd_server.ledger.counters import Counters
from resultd_server.ledger.unit import View
from tests.support.stores import SECOND_MS, Store, disposition, make_report, membership, task


async def test_a_sealed_group_short_of_its_total_takes_what_reports_name(store: Store) -> None:
    """A sealed group that is still short is completed by members that reports name."""
    await store.create("g", task("a"))
    await store.seal("g", 3)
    assert membership(await store.report("b", group="g")) == "COUNTED"
    assert membership(await store.report("a", group="g")) == "COUNTED"
    assert "complete" not in await store.counts("g")
    answer = await store.report("c", group="g", index=7)
    assert (membership(answer), list(answer.complete_group_ids)) == ("COUNTED", ["g"])
    late = await store.report("d", group="g")
    assert (membership(late), disposition(late)) == ("SEALED", "APPLIED")
    assert await store.state("d") == "SUCCESS"
    assert await store.log("g") == ["b", "a", "c"]


async def test_a_repeated_completing_report_names_the_group_again(store: Store) -> None:
    """Every repeat of a completing report names the complete group, until its claim is done."""
    await store.create("g", task("a"), seal=True)
    for _ in range(3):
        assert (await store.report("a", group="g")).complete_group_ids == ["g"]
    await store.claim("g", "token")
    assert (await store.report("a")).complete_group_ids == ["g"]
    await store.claim("g", "token", "DONE")
    assert (await store.report("a")).complete_group_ids == []
    assert await store.log("g") == ["a"]


@pytest.mark.parametrize("index", [None, 5])
async def test_repeats_are_counted_once(store: Store, index: int | None) -> None:
    """A member is counted once, however often its report comes and whether it names its index."""
    first = await store.report("t", group="g", index=index)
    again = await store.report("t", group="g", index=index)
    without = await store.report("t", group="g")
    assert [membership(each) for each in (first, again, without)] == [
        "COUNTED",
        "ALREADY",
        "ALREADY",
    ]
    assert await store.counts("g") == {"members": 1, "done": 1, "succeeded": 1, "epoch": 1}


async def test_a_member_that_is_not_terminal_is_pending(store: Store) -> None:
    """A report that is not terminal joins the group and is not counted yet."""
    answer = await store.report("t", "STARTED", group="g")
    assert membership(answer) == "PENDING"
    assert await store.counts("g") == {"members": 1, "epoch": 1}
    assert membership(await store.report("t")) == "UNSPECIFIED"
    assert await store.log("g") == ["t"]


async def test_a_taken_index_does_not_throw_a_result_away(store: Store) -> None:
    """A report that names another member's index is stored, and told so."""
    await store.report("a", group="g", index=0)
    answer = await store.report("b", group="g", index=0)
    assert (disposition(answer), membership(answer)) == ("APPLIED", "INDEX_TAKEN")
    assert await store.log("g") == ["a"]


async def test_failure_then_success_moves_counts_without_a_second_entry(store: Store) -> None:
    """A FAILURE that becomes SUCCESS changes the counts; the log does not repeat."""
    await store.create("g", task("a"), task("b"), seal=True)
    await store.report("a", "FAILURE")
    assert (await store.counts("g"))["failed"] == 1
    await store.report("b", "IGNORED")
    assert await store.outcome("g") == "FAILURE"
    await store.report("a", "SUCCESS")
    counts = await store.counts("g")
    assert (counts["succeeded"], counts["ignored"], "failed" in counts) == (1, 1, False)
    assert await store.outcome("g") == "SUCCESS"
    assert await store.log("g") == ["a", "b"]


async def test_failure_then_revoked_moves_counts_too(store: Store) -> None:
    """Counts by state follow whatever terminal state the record comes to have."""
    await store.report("a", "FAILURE", group="g")
    await store.report("a", "REVOKED")
    assert await store.counts("g") == {"members": 1, "done": 1, "revoked": 1, "epoch": 1}


async def test_a_size_that_comes_after_the_parts(store: Store) -> None:
    """Parts that report before anybody declared or sized the group count all the same."""
    await store.report("a", group="g", index=1)
    await store.report("b", group="g", index=0)
    await store.create("g")
    assert "complete" not in await store.counts("g")
    sealed = await store.seal("g", 2)
    assert sealed.counts.complete
    assert sealed.outcome == state_pb2.STATE_SUCCESS


async def test_an_id_may_stand_at_two_indexes(store: Store) -> None:
    """The same id at two indexes counts twice, at each index once."""
    await store.create("g", task("a", 0), task("b", 1), task("a", 2), seal=True)
    await store.report("a")
    assert [(event.position, event.index) for event in await store.events("g")] == [(1, 0), (2, 2)]
    answer = await store.report("b")
    assert answer.complete_group_ids == ["g"]
    assert (await store.counts("g"))["succeeded"] == 3


async def test_an_id_may_be_in_several_groups(store: Store) -> None:
    """A task counts in every group it is in, those it was added to after it ended too."""
    await store.create("g1", task("t"), seal=True)
    await store.report("t", group="g2")
    await store.create("g3", task("t"), seal=True)
    for name in ("g1", "g2", "g3"):
        assert await store.log(name) == ["t"]
    assert set((await store.report("t")).complete_group_ids) == {"g1", "g3"}


async def test_a_repeat_that_names_a_further_group_joins_it(store: Store) -> None:
    """A duplicate or superseded report that names a group counts there as what is stored."""
    await store.report("t")
    repeat = await store.report("t", group="g")
    assert (disposition(repeat), membership(repeat)) == ("DUPLICATE", "COUNTED")
    late = await store.report("t", "STARTED", group="h")
    assert (disposition(late), membership(late)) == ("SUPERSEDED", "COUNTED")
    assert (await store.counts("h"))["succeeded"] == 1


async def test_a_deleted_group_is_not_revived_by_late_reports(store: Store) -> None:
    """A report that names a deleted group is stored; the group stays deleted."""
    await store.create("g", task("a"))
    assert await store.delete_group("g")
    answer = await store.report("a", group="g")
    assert (disposition(answer), membership(answer)) == ("APPLIED", "NOT_A_MEMBER")
    assert await store.existence("g") == "FORGOTTEN"
    await store.create("g", task("a"))
    assert (await store.group("g")).counts.epoch == 2
    assert await store.log("g") == ["a"]


async def test_a_member_is_in_a_bounded_number_of_groups(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report beyond the groups a member may be in is stored, and is no member."""
    monkeypatch.setattr(limits, "GROUPS_PER_MEMBER", 2)
    for number in range(2):
        assert membership(await store.report("t", group=f"g{number}")) == "COUNTED"
    assert membership(await store.report("t", group="g2")) == "NOT_A_MEMBER"
    over = await store.report("u", group="g0", index=limits.INDEX_MAX + 1)
    assert membership(over) == "NOT_A_MEMBER"


async def test_groups_that_are_over_do_not_count(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member may be in as many groups that live, whatever rows are left of others."""
    monkeypatch.setattr(limits, "GROUPS_PER_MEMBER", 2)
    for number in range(2):
        await store.create(f"old{number}", task("t"), task("u"), ttl_ms=SECOND_MS)
    with pytest.raises(LimitExceeded):
        await store.create("g0", task("t"))
    store.clock.advance(SECOND_MS)
    await store.create("g0", task("t"), task("u", 5))
    assert membership(await store.report("t", group="g1")) == "COUNTED"
    assert membership(await store.report("t", group="g2")) == "NOT_A_MEMBER"
    with pytest.raises(LimitExceeded, match="groups of 'u': 3 are more than the 2"):
        await store.add("g0", task("u", 10), task("u", 11))


async def test_places_in_groups_that_are_over_are_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would add one too many changes nothing and is refused, until the sweeper was there."""
    monkeypatch.setattr(limits, "MEMBER_PLACES_MAX", 4)
    for _ in range(2):
        await store.create("g", task("t"), task("t"), new_epoch=True)
    for _ in range(2):
        with pytest.raises(Overloaded, match="'t' was in are over"):
            await store.create("g", task("t"), new_epoch=True)
        with pytest.raises(Overloaded):
            await store.report("t", group="h")
    assert (await store.counts("g"))["epoch"] == 2
    assert await store.state("t") == "UNKNOWN"
    await store.report("t", group="g")
    await store.sweep()
    assert membership(await store.report("t", group="h")) == "COUNTED"
    await store.create("g", task("t"), new_epoch=True)


async def test_who_reads_looks_at_one_group_that_lives(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a record past its own time is kept is known with the first group that keeps it."""
    await store.create("over", task("t"), ttl_ms=SECOND_MS)
    for number in range(20):
        await store.create(f"g{number}", task("t"))
    await store.report("t", ttl_ms=SECOND_MS)
    store.clock.advance(SECOND_MS)
    looked: list[int] = []
    load = counters.load

    def counted(view: View, number: int) -> Counters | None:
        looked.append(number)
        return load(view, number)

    monkeypatch.setattr(counters, "load", counted)
    assert await store.state("t") == "SUCCESS"
    assert len(looked) == 2


async def test_a_report_that_only_repeats_begins_no_group(store: Store) -> None:
    """The late repeat of a forgotten report neither revives it nor joins a group."""
    await store.report("t", group="g")
    await store.forget("t")
    await store.create("empty")
    for name, said in (("g", "ALREADY"), ("nobody", "NOT_A_MEMBER"), ("empty", "NOT_A_MEMBER")):
        answer = await store.report("t", group=name)
        assert (disposition(answer), membership(answer)) == ("DUPLICATE", said)
    assert await store.existence("nobody") == "UNKNOWN"
    assert await store.counts("empty") == {"epoch": 1}


async def test_forgotten_before_terminal_the_slot_waits(store: Store) -> None:
    """A member forgotten before it was terminal keeps its slot, for the report to come."""
    await store.create("g", task("t"), seal=True)
    await store.report("t", "STARTED")
    await store.forget("t")
    assert "done" not in await store.counts("g")
    assert (await store.report("t")).complete_group_ids == ["g"]


async def test_forgotten_after_terminal_the_entry_stays(store: Store) -> None:
    """A member forgotten after it was counted stays counted; its event says FORGOTTEN."""
    await store.create("g", task("t"), seal=True)
    await store.report("t")
    await store.forget("t")
    (event,) = await store.events("g")
    assert (event.task.task_id, event.task.existence) == ("t", state_pb2.EXISTENCE_FORGOTTEN)
    assert (await store.group("g")).counts.complete
    store.clock.advance(limits.TOMBSTONE_MS)
    await store.sweep()
    (event,) = await store.events("g")
    assert event.task.existence == state_pb2.EXISTENCE_FORGOTTEN


async def test_a_new_life_of_a_member_changes_counts_only(store: Store) -> None:
    """A counted member that was forgotten and reports anew keeps its one entry."""
    await store.create("g", task("t"), seal=True)
    await store.report("t", "FAILURE")
    await store.forget("t")
    await store.report("t", "STARTED")
    assert (await store.counts("g"))["failed"] == 1
    await store.report("t", "SUCCESS")
    assert (await store.counts("g"))["succeeded"] == 1
    assert await store.log("g") == ["t"]


async def test_complete_groups_of_an_answer_are_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer names at most so many complete groups, each once."""
    monkeypatch.setattr(limits, "COMPLETE_GROUPS_PER_ANSWER", 2)
    for number in range(3):
        await store.create(f"g{number}", task("t", 0), task("t", 1), seal=True)
    assert len((await store.report("t")).complete_group_ids) == 2


async def test_reports_of_one_commit_count_like_reports_apart(store: Store) -> None:
    """Many members of one batch are counted in their order."""
    await store.put([make_report(f"t{number}", group="g") for number in range(20)])
    assert await store.log("g") == [f"t{number}" for number in range(20)]
