"""Idle waiters: the server's memory for each, and how soon one of them is woken.

As streams of one task each, beside as many streams of a bare server; and as ids on one
stream. Every round has servers that did nothing else, so that memory is their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import stream_pb2
from tests.benchmarks.calls import channel
from tests.benchmarks.processes import Running, echo, resultd
from tests.benchmarks.reports import report
from tests.benchmarks.stubs import results
from tests.benchmarks.table import Row, Size, at_most, figure_at_most

_PER_CONNECTION = 1_000
_OPENED_AT_ONCE = 200
_IDS_PER_MESSAGE = 10_000
_BARE = "as many streams of a bare grpc.aio server"
_MIB = 1024**2

_Seen = dict[str, list[float]]
_Wake = Callable[[str], Awaitable[float]]
"""Makes a waiter's task end; seconds until the waiter knows."""


async def run(size: Size) -> list[Row]:
    """Streams, bare streams, ids; in turn."""
    streams, ids = size.of(10_000, 50), size.of(100_000, 500)
    wakes, rounds = size.of(300, 10), size.of(2, 1)
    seen: _Seen = defaultdict(list)
    for _ in range(rounds):
        async with resultd() as server:
            await _measure(seen, "stream", server, _streams(server, streams), streams, wakes)
        async with echo() as bare:
            await _measure(seen, "bare", bare, _bare(bare, streams), streams, wakes)
        async with resultd() as server:
            await _measure(seen, "id", server, _ids(server, ids), ids, wakes)
    return [
        Row(f"{streams:,} WaitFor streams: server's memory a stream", "B", seen["stream bytes"],
            seen["bare bytes"], _BARE, at_most(1.3)),
        Row(f"{streams:,} WaitFor streams: call of a store → its waiter knows, p50", "µs",
            seen["stream wake"], seen["bare wake"], _BARE),
        Row(f"{streams:,} WaitFor streams: server CPU to open one", "µs", seen["stream cpu"],
            seen["bare cpu"], _BARE),
        Row(f"{ids:,} ids on one Watch: server's memory an id", "B", seen["id bytes"],
            target=figure_at_most(300)),
        Row(f"{ids:,} ids on one Watch: call of a store → its waiter knows, p50", "µs",
            seen["id wake"], seen["bare wake"], f"{_BARE}, {streams:,} of them"),
        Row(f"{ids:,} ids on one Watch: server CPU to add one", "µs", seen["id cpu"]),
    ]  # fmt: skip


async def _measure(
    seen: _Seen,
    name: str,
    running: Running,
    waiting: contextlib.AbstractAsyncContextManager[_Wake],
    waiters: int,
    wakes: int,
) -> None:
    before_mib, before_s = running.rss_mib(), running.cpu_s()
    async with waiting as wake:
        seen[f"{name} bytes"].append((running.rss_mib() - before_mib) * _MIB / waiters)
        seen[f"{name} cpu"].append((running.cpu_s() - before_s) / waiters * 1e6)
        chosen = [_name(number) for number in random.sample(range(waiters), min(wakes, waiters))]
        gc.collect()
        gc.freeze()  # so many calls are open here: looking through them again is no part of it
        took = [await wake(task_id) for task_id in chosen]
        gc.unfreeze()
        seen[f"{name} wake"].append(statistics.median(took) * 1e6)


def _name(number: int) -> str:
    """Of the task of a waiter; as long as a UUID."""
    return f"task-{number:031d}"


@contextlib.asynccontextmanager
async def _streams(server: Running, count: int) -> AsyncIterator[_Wake]:
    """So many WaitFor, of a task each."""
    async with _channels(server, _connections(count)) as channels:
        stubs = [results(each) for each in channels]
        told: dict[str, asyncio.Future[float]] = {}

        async def wait(number: int, opened: asyncio.Event) -> None:
            name = _name(number)
            stub = stubs[number % len(stubs)]
            async for frame in stub.WaitFor(pb.WaitForRequest(task_ids=[name])):
                if frame.events:
                    told[name].set_result(time.perf_counter())
                elif frame.control.kind == stream_pb2.CONTROL_KIND_SYNCED:
                    opened.set()

        async def wake(name: str) -> float:
            told[name] = asyncio.get_running_loop().create_future()
            began_s = time.perf_counter()
            await stubs[-1].StoreResult(report(name))
            return await told[name] - began_s

        async with _opened(wait, count):
            await stubs[-1].GetResult(pb.GetResultRequest(task_id="warm"))
            yield wake


@contextlib.asynccontextmanager
async def _bare(bare: Running, count: int) -> AsyncIterator[_Wake]:
    """So many streams of the bare server."""
    async with _channels(bare, _connections(count)) as channels:
        methods: list[grpc.aio.UnaryStreamMultiCallable[bytes, bytes]] = [
            each.unary_stream("/Echo/Wait") for each in channels
        ]
        ping: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channels[-1].unary_unary(
            "/Echo/Ping"
        )
        said = report(_name(0)).SerializeToString()
        told: dict[str, asyncio.Future[float]] = {}

        async def wait(number: int, opened: asyncio.Event) -> None:
            name = _name(number)
            async for message in methods[number % len(methods)](name.encode()):
                if message:
                    told[name].set_result(time.perf_counter())
                else:
                    opened.set()

        async def wake(name: str) -> float:
            told[name] = asyncio.get_running_loop().create_future()
            began_s = time.perf_counter()
            await ping(name.encode() + b"\0" + said)
            return await told[name] - began_s

        async with _opened(wait, count):
            yield wake


@contextlib.asynccontextmanager
async def _ids(server: Running, count: int) -> AsyncIterator[_Wake]:
    """So many ids on one Watch."""
    async with _channels(server, 2) as (watching, storing):
        told: dict[str, asyncio.Future[float]] = {}
        call = results(watching).Watch()
        stores = results(storing)
        last = 0
        for start in range(0, count, _IDS_PER_MESSAGE):
            last += 1
            names = [_name(number) for number in range(start, min(start + _IDS_PER_MESSAGE, count))]
            await call.write(pb.WatchRequest(add_task_ids=names, sequence=last))
        synced = asyncio.Event()

        async def read() -> None:
            async for frame in call:
                for event in frame.events:
                    told[event.task.task_id].set_result(time.perf_counter())
                if frame.control.sequence == last:
                    synced.set()

        async def wake(name: str) -> float:
            told[name] = asyncio.get_running_loop().create_future()
            began_s = time.perf_counter()
            await stores.StoreResult(report(name))
            return await told[name] - began_s

        reading = asyncio.create_task(read())
        await synced.wait()
        await stores.GetResult(pb.GetResultRequest(task_id="warm"))
        yield wake
        await _end([reading])


def _connections(streams: int) -> int:
    """That so many streams need, and one call beside them."""
    return -(-(streams + 1) // _PER_CONNECTION)


@contextlib.asynccontextmanager
async def _channels(running: Running, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    async with contextlib.AsyncExitStack() as stack:
        opened = [channel(running.address) for _ in range(count)]
        yield [await stack.enter_async_context(each) for each in opened]


@contextlib.asynccontextmanager
async def _opened(
    wait: Callable[[int, asyncio.Event], Awaitable[None]], count: int
) -> AsyncIterator[None]:
    """All streams open and told that they are waited for; some at a time."""
    waiting: list[asyncio.Future[None]] = []
    for start in range(0, count, _OPENED_AT_ONCE):
        opened = [asyncio.Event() for _ in range(min(_OPENED_AT_ONCE, count - start))]
        waiting += [
            asyncio.ensure_future(wait(start + place, event)) for place, event in enumerate(opened)
        ]
        await asyncio.gather(*(event.wait() for event in opened))
    yield
    await _end(waiting)


async def _end(waiting: list[asyncio.Future[None]]) -> None:
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
