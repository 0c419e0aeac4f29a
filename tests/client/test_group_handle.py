"""Handles: members are cut into messages without holding them."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from resultd import aio
from resultd._group_handle import _pages
from resultd.client import Client
from resultd.errors import TimeoutError as WaitTimeout
from resultd.serialization import Registry
from resultd.testing import Server
from resultd.v1 import group_pb2, task_pb2, value_pb2
from tests.support.in_process import until as until_async
from tests.support.results import until

NewId = Callable[[], str]


class Overheard(Registry):
    """Values, and which of them were read so far."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Any] = []

    def decode(self, payload: value_pb2.Payload) -> Any:
        """Read a value, and keep it."""
        self.read.append(super().decode(payload))
        return self.read[-1]


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


def test_all_values_are_those_of_one_run(server: Server, client: Client, new_id: NewId) -> None:
    """A group that is run again while `get` waits gives the new run's, same members or others."""
    kept, other, late = new_id(), new_id(), new_id()
    group = client.group(new_id()).create([kept, other])
    client.store_result(kept, "old")
    overheard, values = Overheard(), list[Any]()
    with Client(server.url, serializers=overheard) as own:
        thread = threading.Thread(target=lambda: values.extend(own.group(group.id).get(timeout=30)))
        thread.start()
        until(lambda: overheard.read == ["old"])
        client.forget(kept)
        group.create([kept, late, other], new_epoch=True)
        client.store_results([(kept, "new"), (late, 1), (other, 2)])
        thread.join(30)
    assert values == ["new", 1, 2]


async def test_all_values_are_those_of_one_run_with_asyncio(server: Server, new_id: NewId) -> None:
    """The same."""
    ids = [new_id() for _ in range(3)]
    overheard = Overheard()
    async with (
        aio.Client(server.url) as client,
        aio.Client(server.url, serializers=overheard) as own,
    ):
        group = await client.group(new_id()).create(ids[:2])
        await client.store_result(ids[0], "old")
        getting = asyncio.create_task(own.group(group.id).get(timeout=30))
        await until_async(lambda: overheard.read == ["old"])
        await group.create(ids[1:], new_epoch=True)
        await client.store_results([(ids[1], 1), (ids[2], 2)])
        assert await getting == [1, 2]


async def test_a_group_that_is_complete_needs_no_time(server: Server, new_id: NewId) -> None:
    """`timeout=0` gives what is there, as it does of single results; else TimeoutError."""
    ids = [new_id(), new_id()]
    async with aio.Client(server.url) as client:
        group = await client.group(new_id()).create(ids)
        with pytest.raises(WaitTimeout):
            await group.get(timeout=0)
        await client.store_results([(ids[0], 1), (ids[1], 2)])
        assert await group.get(timeout=0) == [1, 2]
    with Client(server.url) as blocking:
        assert blocking.group(group.id).get(timeout=0) == [1, 2]
        assert sorted(blocking.group(group.id).iterate(timeout=0)) == [1, 2]
        with pytest.raises(WaitTimeout):
            blocking.group(new_id()).get(timeout=0)
