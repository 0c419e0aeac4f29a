"""Handles: members are cut into messages without holding them."""

from __future__ import annotations

import itertools

from resultd._group_handle import _pages
from resultd.client import Client
from resultd.v1 import group_pb2, task_pb2


def test_members_of_an_endless_source_are_taken_page_by_page() -> None:
    """10,000 at a time, with their indexes."""
    pages = _pages((str(n) for n in itertools.count()), start=5)
    first, second = next(pages), next(pages)
    assert (len(first), first[0].index, second[0].index) == (10_000, 5, 10_005)


def test_members_are_ids_results_groups_or_messages() -> None:
    """Groups are members of their own kind."""
    client = Client("resultd://h")
    message = group_pb2.GroupMember(id="m", index=9)
    given = ["a", client.AsyncResult("b"), client.group("c"), client.GroupResult("d", []), message]
    (page,) = _pages(given, start=None)
    kinds = [member.kind == task_pb2.MEMBER_KIND_GROUP for member in page]
    assert [member.id for member in page] == ["a", "b", "c", "d", "m"]
    assert kinds == [False, False, True, True, False]
    assert [member.HasField("index") for member in page] == [False] * 4 + [True]
