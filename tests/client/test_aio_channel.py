"""The asyncio shell."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Coroutine
from typing import Any

import grpc.aio
import pytest

from resultd import _url, aio
from resultd._aio_channel import AioEndpoint, LoopMailbox
from resultd._effects import Call, Open, Reconnect
from resultd.errors import ClientClosedError, ResultdError, UnavailableError
from resultd.errors import TimeoutError as WaitTimeout
from resultd.testing import Server
from resultd.v1 import result_service_pb2
from tests.support import workers
from tests.support.in_process import until
from tests.support.tcp_proxy import TcpProxy
from tests.support.timing import check_takes_async


async def test_a_mailbox_can_be_filled_from_any_thread() -> None:
    """It waits exactly, and gives all there is."""
    mailbox = LoopMailbox(asyncio.get_running_loop())

    async def wait() -> None:
        assert await mailbox.receive(0.05) == []

    await check_takes_async(0.045, 0.1, wait)
    threading.Timer(0.02, mailbox.put, (1,)).start()
    assert await mailbox.receive(5) == [1]
    mailbox.put(2)
    mailbox.put(3)
    assert await mailbox.receive(None) == [2, 3]


async def test_cancelling_a_receive_cancels_it() -> None:
    """The next one works."""
    mailbox = LoopMailbox(asyncio.get_running_loop())
    task = asyncio.create_task(mailbox.receive(None))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    mailbox.put(1)
    assert await mailbox.receive(1) == [1]


async def test_how_a_stream_ended_is_the_last_item(server: Server) -> None:
    """And nothing of it is left."""
    endpoint = AioEndpoint(_url.parse(server.url)).enter()
    stream = await endpoint.handle(Open("Iterate", result_service_pb2.IterateRequest()))
    items = await stream.mailbox.receive(5)
    assert isinstance(items[-1], ResultdError)
    other = await endpoint.handle(Open("Watch", None))
    other.send(result_service_pb2.WatchRequest(sequence=1))
    assert (await other.mailbox.receive(5))[0].control.sequence == 1
    await endpoint.close()
    assert not endpoint._streams


async def test_a_silent_connection_is_replaced_after_a_call(server: Server) -> None:
    """An attempt that got no answer in its whole time gives it up."""
    with TcpProxy(server.port) as proxy:
        url = f"resultd://127.0.0.1:{proxy.port}?attempt_timeout=0.3&timeout=10"
        async with aio.Client(url) as client:
            await client.server_info()
            proxy.blackhole()
            proxy.heal()
            assert (await client.server_info()).engine == workers.ENGINE
            assert proxy.accepted == 2
            proxy.blackhole()
            proxy.heal()
            assert (await client.store_result("heard", 1)).state == "SUCCESS"
            assert proxy.accepted == 3


async def test_closing_ends_calls_and_cancels_nobody(server: Server) -> None:
    """Whoever awaits an answer is told; only who was cancelled by somebody is cancelled."""
    with TcpProxy(server.port) as proxy:
        client = aio.Client(f"resultd://127.0.0.1:{proxy.port}?timeout=20")
        await client.server_info()
        proxy.blackhole()
        group = client.group("of nobody")
        asked = [
            asyncio.ensure_future(each)
            for each in (
                client.server_info(),
                client.store_result("never", 1),
                client.AsyncResult("never").get(),
                group.get(),
                client.AsyncResult("never").state(),
            )
        ]
        reporter = client._open()._reporter
        await until(lambda: reporter._sending is not None and not reporter._waiting)
        asked[-1].cancel()
        await client.close()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [
        *[ClientClosedError] * 4,
        asyncio.CancelledError,
    ]
    with pytest.raises(RuntimeError, match="closed"):
        await client.server_info()


async def test_a_given_up_connection_ends_its_streams(server: Server) -> None:
    """A complaint about an older one changes nothing."""
    endpoint = AioEndpoint(_url.parse(server.url)).enter()
    stream = await endpoint.handle(Open("Watch", None))
    await endpoint.handle(Reconnect(99))
    assert stream in endpoint._streams
    await endpoint.handle(Reconnect(stream.generation))
    assert isinstance((await stream.mailbox.receive(5))[-1], UnavailableError)
    request = result_service_pb2.GetServerInfoRequest()
    assert (await endpoint.handle(Call("GetServerInfo", request, 5))).engine == workers.ENGINE
    await endpoint.close()


async def test_streams_that_break_leave_no_task_behind(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections are cut under streams again and again: no task is left, nobody complains."""
    with TcpProxy(server.port) as proxy:
        url = f"resultd://127.0.0.1:{proxy.port}?timeout=20&heartbeat=1"
        async with aio.Client(url) as client:
            for number in range(20):
                name = f"left-behind-{number}"
                wait = asyncio.create_task(client.AsyncResult(name).get(timeout=20))
                await client.server_info()
                proxy.cut()
                await client.store_result(name, number)
                assert await wait == number
    gc.collect()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert [record for record in caplog.records if record.name == "asyncio"] == []


async def test_waits_outlive_a_background_task_cancelled_before_its_first_step(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits is told, and the next wait begins another."""
    async with aio.Client(server.url) as client:
        await client.server_info()
        endpoint = client._endpoint
        assert endpoint is not None
        start = endpoint._start

        def cancelled(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            task = start(work)
            task.cancel()
            return task

        with monkeypatch.context() as patched:
            patched.setattr(endpoint, "_start", cancelled)
            with pytest.raises(UnavailableError, match="waiting broke down"):
                await asyncio.wait_for(client.AsyncResult("cancelled-early").get(), 5)
        waiting = asyncio.create_task(client.AsyncResult("cancelled-early").get())
        await client.store_result("cancelled-early", 2)
        assert await asyncio.wait_for(waiting, 5) == 2


def test_a_closed_client_leaves_nothing_for_the_garbage_collector(server: Server) -> None:
    """Of gRPC: what is left of a channel has threads, which come upon the loop that was closed."""

    async def use() -> weakref.ref[grpc.aio.Channel]:
        async with aio.Client(server.url) as client:
            await client.store_result("collected", 1)
            with pytest.raises(WaitTimeout):
                await client.AsyncResult("never").get(timeout=0.01)
            assert client._endpoint is not None
            assert client._endpoint._channel is not None
            return weakref.ref(client._endpoint._channel)

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(use())() is None
    finally:
        gc.enable()


def test_a_client_closed_over_its_watch_is_no_error(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The task that calls back ends quietly."""

    async def use() -> None:
        async with aio.Client(server.url) as client:
            client.watch_revocations(["never"], callback=print)
            await client.server_info()
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    asyncio.run(use())
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []
