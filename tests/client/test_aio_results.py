"""Results for asyncio: the same names, awaited."""

from __future__ import annotations

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
# Names that asyncio results do not have, and why.
MISSING = {
    "graph": "a property would have to wait: build_graph()",
    "maybe_reraise": "Celery's old name of maybe_throw",
    "revoke_by_stamped_headers": "raises in any case",
    "maybe_throw": "of sets: loop over them",
    "restore": "client.restore_group(id)",
}


@pytest.mark.parametrize("name", ["AsyncResult", "ResultSet", "GroupResult"])
def test_the_names_are_those_of_the_blocking_results(name: str) -> None:
    """Whatever asks the server is a coroutine function of the same name."""
    blocking, awaited = getattr(results, name), getattr(_aio_results, name)
    for member in (m for m in dir(blocking) if not m.startswith("_")):
        if not hasattr(awaited, member):
            assert member in MISSING, member
        elif member not in PLAIN:
            assert inspect.iscoroutinefunction(getattr(awaited, member)), member


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
