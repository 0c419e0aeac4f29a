"""The members that come with a granted claim, asked for by a call or by a group's last report."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from resultd.v1 import group_pb2, result_service_pb2
from resultd.v1 import group_service_pb2 as pb
from resultd_server import limits
from resultd_server.errors import RecordCorrupt
from resultd_server.service import claimed
from tests.support import reports
from tests.support.in_process import Served, until
from tests.support.refusals import taken_apart

Ask = Callable[[Served, result_service_pb2.StoreResultRequest], Awaitable[pb.ClaimGroupResponse]]


async def by_call(
    served: Served, last: result_service_pb2.StoreResultRequest
) -> pb.ClaimGroupResponse:
    """The last report is stored, and then the group claimed."""
    await served.results.StoreResult(last)
    return await served.groups.ClaimGroup(
        pb.ClaimGroupRequest(group_id=last.meta.group_id, token="me", with_members=True)
    )


async def by_report(
    served: Served, last: result_service_pb2.StoreResultRequest
) -> pb.ClaimGroupResponse:
    """The last report claims it."""
    last.claim.token, last.claim.with_members = "me", True
    answer = await served.results.StoreResult(last)
    assert answer.complete_group_ids == [last.meta.group_id]
    return answer.claim


both_ways = pytest.mark.parametrize("ask", [by_call, by_report])


def member(index: int, value: bytes) -> result_service_pb2.StoreResultRequest:
    """A member's report."""
    report = reports.success(f"t{index}", value)
    report.meta.group_id, report.meta.index = "g", index
    return report


async def create(served: Served, **how: object) -> None:
    """The group, sealed with so many."""
    await served.groups.CreateGroup(pb.CreateGroupRequest(group_id="g", **how))  # type: ignore[arg-type]  # the test's own words


@both_ways
@pytest.mark.parametrize(
    ("count", "value_bytes"), [(1, 10), (300, 10), (1_000, 10), (5, 400_000), (3, 2_000_000)]
)
async def test_a_granted_claim_brings_the_first_members(
    served: Served, ask: Ask, count: int, value_bytes: int
) -> None:
    """With Iterate's rest after them all members as done; the answer fits what clients take."""
    await create(served)
    await served.groups.SealGroup(pb.SealGroupRequest(group_id="g", expected_total=count))
    *others, last = [member(index, b"x" * value_bytes) for index in range(count)]
    for report in others:
        await served.results.StoreResult(report)
    answer = await ask(served, last)
    assert answer.outcome == pb.CLAIM_OUTCOME_GRANTED
    assert answer.HasField("members")
    assert answer.ByteSize() <= limits.RESPONSE_BYTES_MAX
    assert answer.group.claim.state == group_pb2.CLAIM_STATE_HELD
    events = list(answer.members.events)
    assert bool(answer.members.after) == (value_bytes * count > limits.FRAME_BYTES)
    if answer.members.after:
        rest = result_service_pb2.IterateRequest(
            group_id="g",
            order=result_service_pb2.MEMBER_ORDER_AS_COMPLETED,
            after=answer.members.after,
        )
        events += [event async for frame in served.results.Iterate(rest) for event in frame.events]
    assert [(event.index, event.task.task_id) for event in events] == [
        (index, f"t{index}") for index in range(count)
    ]
    assert all(len(event.task.value.data) == value_bytes for event in events)


async def test_a_complete_group_of_nobody_brings_none(served: Served) -> None:
    """And says that these are all."""
    await create(served, seal=True)
    asked = pb.ClaimGroupRequest(group_id="g", token="me", with_members=True)
    answer = await served.groups.ClaimGroup(asked)
    assert answer.HasField("members")
    assert not answer.members.events
    assert not answer.members.after


@both_ways
async def test_a_group_that_leaves_no_room_comes_without_members(served: Served, ask: Ask) -> None:
    """Its continuation is the claimant's first of all; Iterate has the members."""
    body = b"x" * (limits.RECORD_BYTES_MAX - 100)
    create = pb.CreateGroupRequest(group_id="g", members=[group_pb2.GroupMember(id="t0")])
    create.continuation.data, create.seal = body, True
    await served.groups.CreateGroup(create)
    answer = await ask(served, member(0, b"y" * (limits.RECORD_BYTES_MAX - 100)))
    assert answer.outcome == pb.CLAIM_OUTCOME_GRANTED
    assert answer.group.continuation.data == body
    assert not answer.HasField("members")


@pytest.mark.parametrize("ask", [by_call, by_report])
async def test_members_that_cannot_be_read_do_not_hide_what_was_stored(
    served: Served, monkeypatch: pytest.MonkeyPatch, ask: Ask
) -> None:
    """The report, or call, is answered, with its claim; Iterate says what is wrong."""
    await create(served, members=[group_pb2.GroupMember(id="t0")], seal=True)

    async def corrupt(*_: object) -> None:
        raise RecordCorrupt("A record does not match its checksum: restore a backup.")

    monkeypatch.setattr(served.app.engine, "group_step", corrupt)
    answer = await ask(served, member(0, b"1"))
    assert answer.outcome == pb.CLAIM_OUTCOME_GRANTED
    assert not answer.HasField("members")


async def test_who_does_not_get_the_claim_gets_no_members(served: Served) -> None:
    """Neither does who says DONE, nor who does not ask for them."""
    await create(served, members=[group_pb2.GroupMember(id="t0")], seal=True)
    held = pb.ClaimGroupRequest(group_id="g", token="me", with_members=True)
    assert not (await served.groups.ClaimGroup(held)).HasField("members")
    assert (await by_report(served, member(0, b"1"))).HasField("members")
    assert (await served.groups.ClaimGroup(held)).HasField("members")
    for token, asks in (("you", True), ("me", False)):
        again = member(0, b"1")
        again.claim.token, again.claim.with_members = token, asks
        answer = await served.results.StoreResult(again)
        assert answer.HasField("claim")
        assert not answer.claim.HasField("members")
    for token, action, asks in (
        ("you", pb.CLAIM_ACTION_ACQUIRE, True),
        ("me", pb.CLAIM_ACTION_ACQUIRE, False),
        ("me", pb.CLAIM_ACTION_DONE, True),
    ):
        said = pb.ClaimGroupRequest(group_id="g", token=token, action=action, with_members=asks)
        assert not (await served.groups.ClaimGroup(said)).HasField("members")


async def test_few_read_members_ahead(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many that claim at once so many hold members before they have the claim; all who are
    granted it have the members.
    """
    await create(served, seal=True, members=[group_pb2.GroupMember(id="t0")])
    await served.results.StoreResult(reports.success("t0", b"1"))
    asked, ahead, go = 0, 0, asyncio.Event()
    claim, pages = served.app.engine.group_claim, claimed.first_pages

    async def held_up(*request: Any) -> pb.ClaimGroupResponse:
        nonlocal asked
        asked += 1
        await go.wait()
        return await claim(*request)

    async def counted(*group: Any) -> claimed.Pages:
        nonlocal ahead
        ahead += not go.is_set()
        return await pages(*group)

    monkeypatch.setattr(served.app.engine, "group_claim", held_up)
    monkeypatch.setattr(claimed, "first_pages", counted)
    request = pb.ClaimGroupRequest(group_id="g", token="me", with_members=True)
    calls = [asyncio.ensure_future(served.groups.ClaimGroup(request)) for _ in range(40)]
    await until(lambda: asked == len(calls))
    go.set()
    answers = await asyncio.gather(*calls)
    assert [len(each.members.events) for each in answers] == [1] * len(calls)
    assert ahead == claimed._AHEAD_MAX


async def asked(
    served: Served, index: int, after: bytes = b"", *, ahead: bool = True
) -> result_service_pb2.StoreResultResponse:
    """What a member's report is answered that asks for members, ahead or with the claim."""
    report = member(index, b"x" * 10)
    report.claim.token, report.claim.with_members = "me", True
    report.claim.members_ahead, report.claim.members_after = ahead, after
    return await served.results.StoreResult(report)


def indexes(members: pb.ClaimedMembers) -> list[int]:
    """Which members there are."""
    return [event.index for event in members.events]


async def test_members_come_ahead(served: Served) -> None:
    """Those that are done so far, and then those since; the claim brings what is left."""
    await create(served)
    first = await asked(served, 3)
    assert (first.group_done, first.group_expected_total) == (1, 0)
    assert (indexes(first.members_ahead), first.members_ahead.continued) == ([3], False)
    await served.groups.SealGroup(pb.SealGroupRequest(group_id="g", expected_total=5))
    await served.results.StoreResult(member(0, b"y"))
    second = await asked(served, 4, first.members_ahead.after)
    assert (second.group_done, second.group_expected_total) == (3, 5)
    assert (indexes(second.members_ahead), second.members_ahead.continued) == ([0, 4], True)
    none = await asked(served, 2, second.members_ahead.after, ahead=False)
    assert none.group_done == 4
    assert not none.HasField("members_ahead")
    last = await asked(served, 1, second.members_ahead.after)
    assert not last.HasField("members_ahead")
    assert (last.group_done, last.group_expected_total) == (0, 0)
    assert (indexes(last.claim.members), last.claim.members.continued) == ([2, 1], True)
    assert not last.claim.members.after
    again = await asked(served, 1, second.members_ahead.after)
    assert again.claim.members == last.claim.members


async def test_much_comes_ahead_in_several_answers(served: Served) -> None:
    """A frame each; where the next begins stands in each."""
    await create(served)
    count = limits.FRAME_EVENTS_MAX * 2
    for index in range(count):
        await served.results.StoreResult(member(index, b"x"))
    found: list[int] = []
    after = b""
    for _ in range(3):
        answer = await asked(served, count, after)
        found += indexes(answer.members_ahead)
        after = answer.members_ahead.after
    assert found == list(range(count + 1))
    assert indexes((await asked(served, count, after)).members_ahead) == []


async def test_where_another_run_ended_the_first_ones_come(served: Served) -> None:
    """Ahead and with the claim: `continued` says that nothing lies before them."""
    await create(served)
    before = (await asked(served, 7)).members_ahead.after
    await create(served, new_epoch=True)
    first = await asked(served, 0, before)
    assert (indexes(first.members_ahead), first.members_ahead.continued) == ([0], False)
    await served.groups.SealGroup(pb.SealGroupRequest(group_id="g", expected_total=2))
    last = await asked(served, 1, before)
    assert (indexes(last.claim.members), last.claim.members.continued) == ([0, 1], False)


async def test_where_members_begin_is_checked_before_anything_is_stored(served: Served) -> None:
    """Named as it stands in the request."""
    await create(served)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asked(served, 0, b"nonsense")
    refusal = taken_apart(caught.value)
    assert (refusal.reason, refusal.facts["field"]) == ("FIELD_INVALID", "claim.members_after")
    known = await served.results.GetResult(result_service_pb2.GetResultRequest(task_id="t0"))
    assert not known.meta.terminal


async def test_a_report_of_no_member_brings_nothing_ahead(served: Served) -> None:
    """It hears nothing of the group, either."""
    await create(served, members=[group_pb2.GroupMember(id="t0")], seal=True)
    answer = await asked(served, 1)
    assert answer.membership == result_service_pb2.MEMBERSHIP_SEALED
    assert answer.group_done == 0
    assert not answer.HasField("members_ahead")


async def test_members_that_cannot_be_read_ahead_are_left_out(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report was stored, and is answered."""
    await create(served)

    async def corrupt(*_: object) -> None:
        raise RecordCorrupt("A record does not match its checksum: restore a backup.")

    monkeypatch.setattr(served.app.engine, "group_step", corrupt)
    answer = await asked(served, 0)
    assert answer.disposition == result_service_pb2.DISPOSITION_APPLIED
    assert not answer.HasField("members_ahead")


async def test_who_has_acted_is_not_sent_what_was_to_be_done(served: Served) -> None:
    """It had that with the claim, and it may be megabytes."""
    create = pb.CreateGroupRequest(group_id="g", seal=True)
    create.continuation.data = b"x" * 1_000_000
    await served.groups.CreateGroup(create)
    sizes = []
    for action in (pb.CLAIM_ACTION_ACQUIRE, pb.CLAIM_ACTION_RELEASE, pb.CLAIM_ACTION_ACQUIRE,
                   pb.CLAIM_ACTION_DONE):  # fmt: skip
        said = pb.ClaimGroupRequest(group_id="g", token="me", action=action)
        answer = await served.groups.ClaimGroup(said)
        assert answer.outcome == pb.CLAIM_OUTCOME_GRANTED
        sizes.append(answer.ByteSize() > 1_000_000)
    assert sizes == [True, False, True, False]
