"""The client for asyncio."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Callable

import pytest

import resultd
from resultd import aio
from resultd.testing import Server
from tests.support import workers
from tests.support.tcp_proxy import TcpProxy
from tests.support.timing import check_takes_async

NewId = Callable[[], str]


@pytest.fixture
async def client(server: Server) -> AsyncIterator[aio.Client]:
    """A client of the shared server."""
    async with aio.Client(server.url) as made:
        yield made


async def test_storing_and_awaiting(client: aio.Client, new_id: NewId) -> None:
    """A result is awaitable; states, values and failures are as for threads."""
    result = client.AsyncResult(new_id())
    assert await result.state() == "PENDING"
    assert (await client.store_result(result.id, {"a": 1})).disposition == "APPLIED"
    assert await result == {"a": 1}
    assert (await result.result(), await result.ready()) == ({"a": 1}, True)
    bad = client.AsyncResult(new_id())
    await client.store_results([(bad.id, ValueError("x"), "FAILURE")])
    with pytest.raises(ValueError, match="x"):
        await bad
    assert (await bad.failed(), await bad.successful(), await bad.retry()) == (True, False, False)
    with pytest.raises(ValueError, match="x"):
        await bad.maybe_throw()


async def test_many_tasks_wait_on_one_stream(client: aio.Client, new_id: NewId) -> None:
    """A hundred tasks of the loop, one stream."""
    ids = [new_id() for _ in range(100)]
    waiting = asyncio.gather(*(client.AsyncResult(i).get(timeout=10) for i in ids))
    await asyncio.sleep(0.1)
    await client.store_results([(i, i) for i in ids])
    assert await waiting == ids


async def test_timeouts_are_exact(client: aio.Client, new_id: NewId) -> None:
    """As for threads."""
    await client.server_info()

    async def wait() -> None:
        with pytest.raises(resultd.TimeoutError):
            await client.AsyncResult(new_id()).get(timeout=0.2)

    await check_takes_async(0.2, 0.25, wait)
    with pytest.raises(TimeoutError):
        await client.AsyncResult(new_id()).get(timeout=0)


async def test_cancelling_a_wait_cancels_it(client: aio.Client, new_id: NewId) -> None:
    """CancelledError comes out, others go on waiting, the stream closes with the last."""
    one, two = new_id(), new_id()
    tasks = [asyncio.create_task(client.AsyncResult(i).get(timeout=10)) for i in (one, two)]
    await until(lambda: client.watcher().streaming)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await client.store_result(two, 2)
    assert await tasks[1] == 2
    await until(lambda: not client.watcher().streaming)


async def test_sets_and_groups(client: aio.Client, new_id: NewId) -> None:
    """Get, join, iterate, ask, save, restore, delete."""
    ids = [new_id() for _ in range(5)]
    group = await client.GroupResult(new_id(), [client.AsyncResult(i) for i in ids]).save()
    assert await group.waiting()
    storing = asyncio.create_task(client.store_results([(i, i) for i in ids]))
    assert sorted([value async for value in group.iterate(timeout=5)]) == sorted(ids)
    await storing
    back = await client.restore_group(group.id)
    assert back is not None
    assert back == group == client.result_from_tuple(group.as_tuple())
    for values in (await back, await back.join(timeout=5), await back.join_native(timeout=5)):
        assert values == ids
    assert [i async for i, _ in back.iter_native(timeout=5)] == ids
    asked = (await back.ready(), await back.successful(), await back.failed())
    assert (*asked, await back.completed_count()) == (True, True, False, 5)
    await back.delete()
    assert await client.restore_group(group.id) is None
    await back.forget()
    assert not await client.AsyncResult(ids[0]).exists()


async def test_as_completed_and_wait(client: aio.Client, new_id: NewId) -> None:
    """As concurrent.futures has them."""
    results = [client.AsyncResult(new_id()) for _ in range(3)]
    await client.store_result(results[1].id, 1)
    done, pending = await client.wait(results, resultd.FIRST_COMPLETED, timeout=5)
    assert (done, pending) == ([results[1]], [results[0], results[2]])
    completed = client.as_completed(results, timeout=0.1)
    assert await anext(completed) == results[1]
    with pytest.raises(TimeoutError):
        await anext(completed)
    assert isinstance(client.ResultSet(results), aio.ResultSet)


async def test_a_group_of_any_size_streams(client: aio.Client, new_id: NewId) -> None:
    """Through its handle, with claims and numbers."""
    ids = [new_id() for _ in range(5)]
    group = await client.group(new_id()).create(ids[:2], seal=False)
    await group.add(ids[2:], start=2)
    await group.add_to_total(0 + 1)
    await group.add([ids[0]], start=5)
    await group.seal(5)
    assert (await group.exists(), await group.ready()) == (True, False)
    await client.store_results([(i, n) for n, i in enumerate(ids)])
    assert await group.get(timeout=5) == [0, 1, 2, 3, 4, 0]
    assert len([v async for v in group.iterate(timeout=5)]) == 6
    assert [m.index async for m in group.as_completed(order="member")] == [0, 1, 2, 3, 4, 5]
    assert [m.id async for m in group.members()] == [*ids, ids[0]]
    claim = await group.claim(holder="me")
    assert claim.granted
    assert (await group.claim()).outcome == "HELD"
    assert (await group.claim_release(claim.token)).granted
    claim = await group.claim()
    assert (await group.claim_done(claim.token)).granted
    assert group.id in [g.group_id async for g in client.list_groups()]
    assert await group.delete()


async def test_leaving_an_iteration_ends_its_call(client: aio.Client, new_id: NewId) -> None:
    """An abandoned grpc.aio call would live for ever; ours do not."""
    ids = [new_id(), new_id()]
    await client.store_result(ids[0], 1)
    group = await client.group(new_id()).create(ids)
    async for value in group.iterate():
        assert value == 1
        break
    left = group.iterate()
    assert await anext(left) == 1
    del left
    gc.collect()
    endpoint = client._open()
    await until(lambda: not endpoint._streams)


async def test_then_fires_from_the_loop(client: aio.Client, new_id: NewId) -> None:
    """By itself; waiting inside it is refused."""
    result, heard = client.AsyncResult(new_id()), asyncio.Event()
    result.then(lambda _: heard.set())
    await client.store_result(result.id, 1)
    await asyncio.wait_for(heard.wait(), 5)


async def test_a_blackholed_stream_resumes(server: Server, new_id: NewId) -> None:
    """2.5 silent heartbeats later, on a new connection."""
    task_id = new_id()
    with TcpProxy(server.port) as proxy:
        url = f"resultd://127.0.0.1:{proxy.port}?heartbeat=1"
        async with aio.Client(url) as behind, aio.Client(server.url) as direct:
            waiting = asyncio.create_task(behind.AsyncResult(task_id).get(timeout=20))
            await until(lambda: behind.watcher().streaming)
            proxy.blackhole()
            proxy.heal()
            await direct.store_result(task_id, "through")
            assert await waiting == "through"


async def test_revocations_reach_a_worker(client: aio.Client, new_id: NewId) -> None:
    """By iteration and by callback."""
    task_id = new_id()
    await client.store_result(task_id, None, "STARTED")
    heard: list[str] = []
    async with (
        client.watch_revocations([task_id], lambda r: heard.append(r.task_id)),
        client.watch_revocations() as watch,
    ):
        watch.add([task_id])
        outcome = await client.revoke(task_id, terminate=True, signal="KILL", reason="why")
        assert outcome.requested == (task_id,)
        async for revocation in watch:
            assert revocation[:4] == (task_id, True, "SIGKILL", "why")
            break
        await until(lambda: heard == [task_id])
        watch.remove([task_id])


async def test_a_client_belongs_to_one_loop(server: Server) -> None:
    """Used in another one it says so; after that loop has ended it may be."""
    client = aio.Client(server.url)
    await client.server_info()

    def elsewhere() -> None:
        asyncio.run(client.server_info())

    with pytest.raises(RuntimeError, match="one event loop"):
        await asyncio.to_thread(elsewhere)
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.server_info()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork on this platform")
def test_a_client_can_be_used_in_one_loop_after_the_other(server: Server) -> None:
    """Each run opens its own channel."""
    client = aio.Client(server.url)

    async def ask() -> str:
        info = await client.server_info()
        endpoint = client._open()
        await endpoint.close()
        return info.engine

    assert asyncio.run(ask()) == workers.ENGINE
    assert asyncio.run(ask()) == workers.ENGINE


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, and fail if it does not come."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        await asyncio.sleep(0.005)
