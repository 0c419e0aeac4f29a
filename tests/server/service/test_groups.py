"""GroupService over a socket: what a group refuses, and that a refusal changes nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from resultd.v1 import group_pb2, state_pb2, task_pb2, value_pb2
from resultd.v1 import group_service_pb2 as pb
from resultd_server import limits
from tests.support import reports
from tests.support.in_process import Served
from tests.support.refusals import documented_codes, taken_apart

TASK, GROUP = task_pb2.MEMBER_KIND_TASK, task_pb2.MEMBER_KIND_GROUP
DOCUMENTED = documented_codes()
Member = group_pb2.GroupMember


def create(group_id: str, *members: group_pb2.GroupMember, **how: Any) -> pb.CreateGroupRequest:
    """A declaration."""
    return pb.CreateGroupRequest(group_id=group_id, members=members, **how)


async def standing(served: Served) -> None:
    """Three groups: `open` (a, b), `full` (c; sealed), `outer` (the group `inner`)."""
    await served.groups.CreateGroup(create("open", Member(id="a"), Member(id="b")))
    await served.groups.CreateGroup(create("full", Member(id="c"), seal=True))
    inner = Member(id="inner", kind=GROUP)
    await served.groups.CreateGroup(create("outer", inner))
    await served.groups.CreateGroup(create("inner", Member(id="d")))


def add(group_id: str, *members: group_pb2.GroupMember) -> pb.AddGroupMembersRequest:
    """Further members."""
    return pb.AddGroupMembersRequest(group_id=group_id, members=members)


G = "groups"
REFUSED: dict[str, tuple[Callable[[Served], Awaitable[Any]], str]] = {
    "adding to an unknown group": (
        lambda s: s.groups.AddGroupMembers(add("none", Member(id="x"))),
        "GROUP_NOT_FOUND",
    ),
    "sealing an unknown group": (
        lambda s: s.groups.SealGroup(pb.SealGroupRequest(group_id="none")),
        "GROUP_NOT_FOUND",
    ),
    "listing an unknown group": (
        lambda s: s.groups.ListGroupMembers(pb.ListGroupMembersRequest(group_id="none")),
        "GROUP_NOT_FOUND",
    ),
    "claiming an unknown group": (
        lambda s: s.groups.ClaimGroup(pb.ClaimGroupRequest(group_id="none", token="t")),
        "GROUP_NOT_FOUND",
    ),
    "raising an unknown total": (
        lambda s: s.groups.AddToTotal(
            pb.AddToTotalRequest(group_id="none", delta=1, request_id="r")
        ),
        "GROUP_NOT_FOUND",
    ),
    "adding to a sealed group": (
        lambda s: s.groups.AddGroupMembers(add("full", Member(id="x"))),
        "GROUP_SEALED",
    ),
    "declaring a sealed group with more": (
        lambda s: s.groups.CreateGroup(create("full", Member(id="c"), Member(id="x"))),
        "GROUP_SEALED",
    ),
    "another id at an index": (
        lambda s: s.groups.AddGroupMembers(add("open", Member(id="x"), Member(id="y", index=0))),
        "GROUP_CONFLICT",
    ),
    "another kind at an index": (
        lambda s: s.groups.AddGroupMembers(add("open", Member(id="a", index=0, kind=GROUP))),
        "GROUP_CONFLICT",
    ),
    "two ids at one index": (
        lambda s: s.groups.AddGroupMembers(
            add("open", Member(id="x", index=9), Member(id="y", index=9))
        ),
        "GROUP_CONFLICT",
    ),
    "two ids at one index of a new group": (
        lambda s: s.groups.CreateGroup(
            create("new", Member(id="x", index=9), Member(id="y", index=9))
        ),
        "GROUP_CONFLICT",
    ),
    "another continuation of a sealed group": (
        lambda s: s.groups.CreateGroup(
            create("full", Member(id="c"), continuation=value_pb2.Payload(data=b"other"))
        ),
        "GROUP_CONFLICT",
    ),
    "another total": (
        lambda s: s.groups.SealGroup(pb.SealGroupRequest(group_id="full", expected_total=7)),
        "GROUP_TOTAL_MISMATCH",
    ),
    "a total below the members": (
        lambda s: s.groups.SealGroup(pb.SealGroupRequest(group_id="open", expected_total=1)),
        "GROUP_TOTAL_MISMATCH",
    ),
    "a group in itself": (
        lambda s: s.groups.AddGroupMembers(add("open", Member(id="open", kind=GROUP))),
        "FIELD_INVALID",
    ),
    "a cycle of groups": (
        lambda s: s.groups.AddGroupMembers(add("inner", Member(id="outer", kind=GROUP))),
        "GROUP_NESTING",
    ),
    "a declaration over 3 MiB": (
        lambda s: s.groups.CreateGroup(
            create("new", continuation=value_pb2.Payload(data=b"x" * 3 * 2**20))
        ),
        "VALUE_TOO_LARGE",
    ),
    "a page token of another list": (
        lambda s: s.groups.ListGroupMembers(
            pb.ListGroupMembersRequest(group_id="open", page_token="YWJj")
        ),
        "FIELD_INVALID",
    ),
}


async def everything(served: Served) -> tuple[bytes, ...]:
    """All groups with their members, to be compared."""
    groups = (await served.groups.ListGroups(pb.ListGroupsRequest())).groups
    found = [group.SerializeToString(deterministic=True) for group in groups]
    for group in groups:
        request = pb.ListGroupMembersRequest(group_id=group.group_id)
        page = await served.groups.ListGroupMembers(request)
        found.append(page.SerializeToString(deterministic=True))
    return tuple(found)


@pytest.mark.parametrize("what", REFUSED)
async def test_what_a_group_refuses_leaves_it_as_it_was(served: Served, what: str) -> None:
    """A refused call has its documented code, reason and remedy, and changes no group at all."""
    await standing(served)
    before = await everything(served)
    call, reason = REFUSED[what]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(served)
    refusal = taken_apart(caught.value)
    assert (refusal.code, refusal.reason) == (DOCUMENTED[reason], reason)
    assert ": " in refusal.sentence
    assert refusal.sentence.endswith(".")
    assert await everything(served) == before


async def test_declaring_adding_and_sealing_may_be_repeated(served: Served) -> None:
    """The same calls a second time answer the same and add nothing."""
    for _ in range(2):
        group = (await served.groups.CreateGroup(create("g", Member(id="a")))).group
        assert group.counts.members >= 1
        answer = await served.groups.AddGroupMembers(add("g", Member(id="b", index=5)))
        assert list(answer.indexes) == [5]
        raised = await served.groups.AddToTotal(
            pb.AddToTotalRequest(group_id="g", delta=2, request_id="once")
        )
        assert raised.group.counts.members == 2
    for _ in range(2):
        sealed = await served.groups.SealGroup(pb.SealGroupRequest(group_id="g", expected_total=2))
        assert (sealed.group.counts.sealed, sealed.group.counts.expected_total) == (True, 4)


async def test_deleting_says_whether_there_was_one(served: Served) -> None:
    """DeleteGroup is true once; the group is FORGOTTEN then, its members' records stay."""
    await standing(served)
    await served.results.StoreResult(reports.success("a"))
    deleted = [
        (await served.groups.DeleteGroup(pb.DeleteGroupRequest(group_id=group_id))).deleted
        for group_id in ("open", "open", "none")
    ]
    assert deleted == [True, False, False]
    for group_id, existence in (
        ("open", state_pb2.EXISTENCE_FORGOTTEN),
        ("none", state_pb2.EXISTENCE_UNKNOWN),
    ):
        got = await served.groups.GetGroup(pb.GetGroupRequest(group_id=group_id))
        assert (got.group.group_id, got.group.existence) == (group_id, existence)


async def test_a_claim_is_exclusive_until_it_is_given_back(served: Served) -> None:
    """One token holds a complete group's claim; others wait until RELEASE, and after DONE end."""
    await standing(served)

    async def claim(token: str, action: pb.ClaimAction.ValueType) -> pb.ClaimGroupResponse:
        request = pb.ClaimGroupRequest(group_id="full", token=token, action=action, holder="me")
        return await served.groups.ClaimGroup(request)

    acquire, done = pb.CLAIM_ACTION_ACQUIRE, pb.CLAIM_ACTION_DONE
    assert (await claim("a", acquire)).outcome == pb.CLAIM_OUTCOME_INCOMPLETE
    await served.results.StoreResult(reports.success("c"))
    answer = await claim("a", acquire)
    assert answer.outcome == pb.CLAIM_OUTCOME_GRANTED
    assert answer.group.claim.state == group_pb2.CLAIM_STATE_HELD
    assert (await claim("b", acquire)).outcome == pb.CLAIM_OUTCOME_HELD
    assert (await claim("b", done)).outcome == pb.CLAIM_OUTCOME_LOST
    assert (await claim("a", pb.CLAIM_ACTION_RELEASE)).outcome == pb.CLAIM_OUTCOME_GRANTED
    assert (await claim("b", acquire)).outcome == pb.CLAIM_OUTCOME_GRANTED
    assert (await claim("b", done)).outcome == pb.CLAIM_OUTCOME_GRANTED
    assert (await claim("a", acquire)).outcome == pb.CLAIM_OUTCOME_DONE


async def test_pages_of_groups_keep_within_an_answer(served: Served) -> None:
    """Groups with large labels come over several pages, none larger than a client takes."""
    labels = {"k": "v" * 4_000}
    for number in range(1_000):
        await served.groups.CreateGroup(create(f"g{number:04}", labels=labels))
    found, token = [], ""
    while True:
        request = pb.ListGroupsRequest(page_size=1_000, page_token=token)
        page = await served.groups.ListGroups(request)
        assert page.ByteSize() <= limits.RESPONSE_BYTES_MAX
        found += [group.group_id for group in page.groups]
        if not (token := page.next_page_token):
            break
    assert found == [f"g{number:04}" for number in range(1_000)]


async def test_groups_are_listed_by_what_they_are(served: Served) -> None:
    """Incomplete, claimable, of a scope, unchanged since: each filter alone."""
    await standing(served)
    await served.groups.CreateGroup(create("mine", seal=True, claim_scope="app"))

    async def listed(**wanted: Any) -> list[str]:
        page = await served.groups.ListGroups(pb.ListGroupsRequest(**wanted))
        return [group.group_id for group in page.groups]

    assert await listed() == ["full", "inner", "mine", "open", "outer"]
    assert await listed(incomplete=True) == ["full", "inner", "open", "outer"]
    assert await listed(claimable=True) == ["mine"]
    assert await listed(claim_scope="app") == ["mine"]
    long_ago = pb.ListGroupsRequest()
    long_ago.unchanged_since.seconds = 1
    assert not (await served.groups.ListGroups(long_ago)).groups


async def test_members_are_listed_by_index_over_pages(served: Served) -> None:
    """Page by page every member comes once, with its place in the completion log."""
    await served.groups.CreateGroup(create("g", *(Member(id=f"t{n}") for n in range(7))))
    await served.results.StoreResult(reports.success("t3"))
    found: list[group_pb2.GroupMember] = []
    token = ""
    while True:
        request = pb.ListGroupMembersRequest(group_id="g", page_size=3, page_token=token)
        page = await served.groups.ListGroupMembers(request)
        found += page.members
        if not (token := page.next_page_token):
            break
    assert [(member.index, member.id) for member in found] == [(n, f"t{n}") for n in range(7)]
    assert [member.position for member in found] == [0, 0, 0, 1, 0, 0, 0]
