"""Results for asyncio: the same names, awaited."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

import pytest

from resultd import _aio_results, aio, results
from resultd.errors import TaskRevokedError
from resultd.testing import Server

# Names that stay what they are: nothing is asked of the server.
PLAIN = {
    *(
        "id",
        "task_id",
        "app",
        "backend",
        "parent",
        "ignored",
        "supports_native_join",
        "TimeoutError",
    ),
    *("as_tuple", "as_list", "then", "throw", "on_ready", "results", "children", "iter_native"),
    *("add", "remove", "discard", "update", "clear", "iterate", "iterdeps", "collect"),
}


@pytest.mark.parametrize("name", ["AsyncResult", "ResultSet", "GroupResult"])
def test_the_names_are_those_of_the_blocking_results(name: str) -> None:
    """Whatever asks the server is a coroutine function of the same name and signature."""
    blocking, awaited = getattr(results, name), getattr(_aio_results, name)
    for member in (m for m in dir(blocking) if not m.startswith("_")):
        there, here = getattr(blocking, member), getattr(awaited, member)
        if member not in PLAIN:
            assert inspect.iscoroutinefunction(here), member
        if inspect.isfunction(there) or inspect.ismethod(there):
            assert arguments(here) == arguments(there), member


def arguments(function: Callable[..., object]) -> list[tuple[str, object, object]]:
    """Names, kinds and defaults, in their order."""
    found = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default) for each in found]


async def test_groups_are_restored_and_thrown(server: Server, new_id: Callable[[], str]) -> None:
    """What a group's class says of one that was saved, and of members that failed."""
    async with aio.Client(server.url) as client:
        good, bad = client.AsyncResult(new_id()), client.AsyncResult(new_id())
        await client.store_result(good.id, 1)
        await client.store_result(bad.id, ValueError("bad"), "FAILURE")
        group = client.GroupResult(new_id(), [good, bad])
        await group.save()
        kind = type(group)
        assert await kind.restore(group.id, backend=client) == group
        assert await kind.restore("never", backend=client) is None
        with pytest.raises(ValueError, match="pass a client"):
            await kind.restore(group.id)
        with pytest.raises(ValueError, match="bad"):
            await group.maybe_throw()
        assert await group.join(timeout=5, propagate=False) == await group.join_native(
            timeout=5, propagate=False
        )
        seen: list[str] = []
        await good.maybe_reraise(callback=lambda task_id, _: seen.append(task_id))
        assert seen == [good.id]
        assert (await good.graph())[good] == []
        assert await good.graph() is await good.graph()
        with pytest.raises(NotImplementedError, match="broker"):
            await good.revoke_by_stamped_headers({"a": "b"})
        await group.delete(backend=client)


async def test_an_empty_set_needs_no_client() -> None:
    """It has nothing to ask, as the blocking one; what has is told what is missing."""
    empty = aio.ResultSet([])
    assert await empty.get() == await empty.join() == await empty.join_native() == []
    assert [value async for value in empty.iterate()] == []
    assert [pair async for pair in empty.iter_native()] == []
    assert (await empty.ready(), await empty.completed_count()) == (True, 0)
    assert await aio.GroupResult("g", [empty]) == [[]]
    for orphan in (aio.ResultSet([aio.AsyncResult("t")]).get(), aio.GroupResult("g", []).save()):
        with pytest.raises(ValueError, match="pass a client"):
            await orphan


async def test_every_reader_reads(server: Server, new_id: Callable[[], str]) -> None:
    """The fields of a record, the family, the graph."""
    async with aio.Client(server.url) as client:
        root, child = client.AsyncResult(new_id()), client.AsyncResult(new_id())
        await client.store_result(child.id, 2, parent_id=root.id, name="n", worker="w", queue="q")
        await client.store_result(
            root.id, 1, children=[child], args=[1], kwargs={}, retries=1, progress=(1, 2)
        )
        assert await child.find_parent() == root
        assert child.parent is None
        assert (await child.name(), await child.worker(), await child.queue()) == ("n", "w", "q")
        assert (await root.args(), await root.kwargs(), await root.retries()) == ([1], {}, 1)
        assert (await root.progress(), await root.traceback()) == ((1, 2, ""), None)
        assert (await root.date_done()) is not None
        assert (await root.status(), await root.info(), await root.return_value()) == (
            "SUCCESS",
            1,
            1,
        )
        assert (await root.meta())["task_id"] == root.id
        assert await root.children() == [child]
        assert [pair async for pair in root.iterdeps()] == [(None, root), (root, child)]
        assert [pair async for pair in root.collect()] == [(root, 1), (child, 2)]
        assert await root.get_leaf() == 2
        assert (await root.build_graph())[root] == [child]
        gone = client.AsyncResult(new_id(), parent=root)
        gone.parent = None
        await gone.revoke(wait=True, timeout=5)
        with pytest.raises(TaskRevokedError):
            await gone.wait(timeout=5)
        await gone.forget()
        assert not await gone.exists()
        some = client.ResultSet([client.AsyncResult(new_id())])
        await some.revoke()
        assert await some[0].state() == "REVOKED"


async def test_a_set_may_change_while_it_is_awaited(
    server: Server, new_id: Callable[[], str]
) -> None:
    """All that was in it is given, once; what is added later keeps no loop busy."""
    async with aio.Client(server.url) as client:
        ids = [new_id() for _ in range(3)]
        await asyncio.gather(*(client.store_result(i, i) for i in ids))
        results = client.ResultSet(map(client.AsyncResult, ids))
        found = []
        async for value in results.iterate(timeout=5):
            found.append(value)
            results.clear()
        assert sorted(found) == ids
        results = client.ResultSet(map(client.AsyncResult, ids))
        heard: list[str] = []

        def hear(task_id: str, _: object) -> None:
            heard.append(task_id)
            results.add(client.AsyncResult(new_id()))

        assert await results.join(timeout=5, callback=hear) == []
        assert heard == ids
