"""From the call of a store to its value at who waits: one waiter, and 10,000 tasks waited for.

One storer and one waiter, each on a connection of its own. The event often arrives before
the storer has its OK: the time from OK to event is then negative, and is shown as it is.
The yardstick does the same with nothing behind it: a bare server where a unary call makes a
stream, opened for it as ours is, send a message; at once, or with something on disk before.

From one process to another, by blocking clients: our own, Celery's API on either backend, and
two of the bare server's, whose stubs are used as gRPC documents them: a stream for each wait, read
by who waits, and one stream for all, whose reader hands on what comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import grpc

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import stream_pb2
from tests.benchmarks.calls import channel
from tests.benchmarks.orders import partner
from tests.benchmarks.processes import Running, echo, resultd
from tests.benchmarks.reports import report
from tests.benchmarks.stubs import results
from tests.benchmarks.table import Row, Size, at_most, left_out
from tests.support.redis_server import RedisServer, why_no_redis

if TYPE_CHECKING:
    from resultd.v1.result_service_pb2_grpc import ResultServiceAsyncStub

STREAMS = 100
_OWN = "tests.benchmarks.wake_client"
_STUBS = "tests.benchmarks.echo_client"
_SHARED = "tests.benchmarks.shared_client"
_CELERY = "tests.benchmarks.celery_client"
_FLOOR = "bare unary echo that makes an open stream send"
_KEPT = "the same once 4 KiB are on disk"
_BLOCKING = "ping → stream's message in another process, 4 KiB on disk, bare and blocking"
_ONE_STREAM = "the same by one stream for all waits, its value read"
_THEIRS = "Celery on Redis, appendfsync always"

_Seen = dict[str, list[float]]


class _Times(NamedTuple):
    """Of each sample, in µs."""

    since_call: list[float]
    since_ok: list[float]


async def run(size: Size) -> list[Row]:
    """p50 and p99 of each round."""
    samples, rounds, waited = size.of(750, 21), size.of(4, 1), size.of(10_000, 200)
    missing = why_no_redis()
    seen: _Seen = defaultdict(list)
    numbers = itertools.count()
    async with resultd() as server, echo() as bare:
        with _clients(server, bare, missing) as sides:
            for _ in range(rounds):
                times = await _resultd(server, samples, numbers)
                _note(seen, "call", times.since_call)
                _note(seen, "ok", times.since_ok)
                _note(seen, "echo", await _echo(bare, samples, "Ping"))
                _note(seen, "kept", await _echo(bare, samples, "KeptPing"))
                times = await _among_many(server, samples, waited)
                _note(seen, "many", times.since_call)
                for name, ask in sides.items():
                    for key, value in ask(samples // 3).items():
                        seen[f"{name} {key}"].append(value)
    return _rows(seen, waited, missing)


def _rows(seen: _Seen, waited: int, missing: str | None) -> list[Row]:
    rows = []
    for p in ("p50", "p99"):
        call = f"call of StoreResult → WaitFor's event, {p}"
        rows += [
            Row(call, "µs", seen[f"call {p}"], seen[f"echo {p}"], _FLOOR, at_most(1.5)),
            Row(call, "µs", seen[f"call {p}"], seen[f"kept {p}"], _KEPT),
            Row(f"{_FLOOR}, once 4 KiB are on disk, {p}", "µs", seen[f"kept {p}"],
                seen[f"echo {p}"], "without a disk"),
            Row(f"StoreResult's OK → WaitFor's event, {p}", "µs", seen[f"ok {p}"]),
            Row(f"the call with {waited:,} tasks waited for by {STREAMS} streams, {p}", "µs",
                seen[f"many {p}"], seen[f"call {p}"], "with the one",
                at_most(5) if p == "p99" else None),
        ]  # fmt: skip
        theirs, stubs, shared = (seen[f"{side} {p}"] for side in ("redis", "stubs", "shared"))
        own = Row(f"client.store_result() → get() in another process, {p}", "µs", seen[f"own {p}"])
        if theirs:
            rows.append(replace(own, yardstick=theirs, yardstick_name=_THEIRS, target=at_most(1)))
        for floor, name in ((stubs, _BLOCKING), (shared, _ONE_STREAM)):
            rows.append(replace(own, yardstick=floor, yardstick_name=name))
        if theirs:
            for floor, name in ((stubs, _BLOCKING), (shared, _ONE_STREAM)):
                rows.append(Row(f"{name}, {p}", "µs", floor, theirs, _THEIRS))
        work = f"Celery: call of store_result() → get() in another process, {p}"
        rows.append(
            left_out(work, missing)
            if missing is not None
            else Row(work, "µs", seen[f"resultd {p}"], theirs, _THEIRS, at_most(1))
        )
    return rows


def _note(seen: _Seen, name: str, values: list[float]) -> None:
    seen[f"{name} p50"].append(statistics.median(values))
    seen[f"{name} p99"].append(statistics.quantiles(values, n=100)[98])


@contextlib.contextmanager
def _clients(
    server: Running, bare: Running, missing: str | None
) -> Iterator[dict[str, Callable[[int], dict[str, float]]]]:
    """Our own client, its floors, and Celery's API on either backend where there is a Redis."""
    url = f"resultd://{server.address}"
    with contextlib.ExitStack() as stack:
        waiting = stack.enter_context(partner(_OWN, url))
        sides: dict[str, Callable[[int], dict[str, float]]] = {}
        sides["own"] = functools.partial(waiting.ask, "wake")
        for name, module in (("stubs", _STUBS), ("shared", _SHARED)):
            waiting = stack.enter_context(partner(module, bare.address))
            sides[name] = functools.partial(waiting.ask, "wake")
        if missing is None:
            broker = stack.enter_context(RedisServer())
            redis = stack.enter_context(RedisServer(appendfsync="always"))
            for number, (name, backend) in enumerate((("resultd", url), ("redis", redis.url))):
                waiting = stack.enter_context(partner(_CELERY, broker.database(number), backend))
                sides[name] = functools.partial(waiting.ask, "wake")
        yield sides


async def _resultd(server: Running, samples: int, numbers: Iterator[int]) -> _Times:
    async with _two_channels(server) as (storing, waiting):
        storer, waiter = results(storing), results(waiting)

        async def one() -> tuple[float, float]:
            task_id = f"task-{next(numbers)}"
            arrived: dict[str, float] = {}
            synced = asyncio.Event()
            event = asyncio.create_task(_wait(waiter, [task_id], arrived, synced))
            await synced.wait()
            called_s, ok_s = await _store(storer, task_id)
            await event
            return (arrived[task_id] - called_s) * 1e6, (arrived[task_id] - ok_s) * 1e6

        return _times(await _warm(one, samples))


async def _among_many(server: Running, samples: int, waited: int) -> _Times:
    """Some of so many, waited for by a hundred streams, stored one by one in no order."""
    marks = random.getrandbits(64)
    ids = [f"many-{marks:x}-{number}" for number in range(waited)]
    async with _two_channels(server) as (storing, waiting):
        storer, waiter = results(storing), results(waiting)
        arrived: dict[str, float] = {}
        there = {task_id: asyncio.Event() for task_id in ids}
        synced = [asyncio.Event() for _ in range(STREAMS)]
        streams = [
            asyncio.create_task(_wait(waiter, ids[number::STREAMS], arrived, synced[number], there))
            for number in range(STREAMS)
        ]
        await asyncio.gather(*(each.wait() for each in synced))
        chosen = iter(random.sample(ids, samples + samples // 10))

        async def one() -> tuple[float, float]:
            task_id = next(chosen)
            called_s, ok_s = await _store(storer, task_id)
            await there[task_id].wait()
            return (arrived[task_id] - called_s) * 1e6, (arrived[task_id] - ok_s) * 1e6

        times = _times(await _warm(one, samples))
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    return times


async def _echo(bare: Running, samples: int, method: str) -> list[float]:
    said = report("task").SerializeToString()
    async with _two_channels(bare) as (pinging, waiting):
        ping: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = pinging.unary_unary(
            f"/Echo/{method}"
        )
        wait: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = waiting.unary_stream("/Echo/Wait")
        numbers = itertools.count()

        async def one() -> tuple[float, float]:
            name = str(next(numbers)).encode()
            expected = asyncio.Event()

            async def stream() -> float:
                arrived_s = 0.0
                async for message in wait(name):
                    arrived_s = time.perf_counter()
                    if not message:
                        expected.set()
                return arrived_s

            message = asyncio.create_task(stream())
            await expected.wait()
            called_s = time.perf_counter()
            await ping(name + b"\0" + said)
            return (await message - called_s) * 1e6, 0.0

        return _times(await _warm(one, samples)).since_call


async def _warm(
    one: Callable[[], Awaitable[tuple[float, float]]], samples: int
) -> list[tuple[float, float]]:
    """Samples one after the other; a tenth more before, that do not count."""
    took = [await one() for _ in range(samples + samples // 10)]
    return took[-samples:]


def _times(pairs: list[tuple[float, float]]) -> _Times:
    return _Times([call for call, _ in pairs], [ok for _, ok in pairs])


async def _store(stub: ResultServiceAsyncStub, task_id: str) -> tuple[float, float]:
    called_s = time.perf_counter()
    await stub.StoreResult(report(task_id))
    return called_s, time.perf_counter()


async def _wait(
    stub: ResultServiceAsyncStub,
    task_ids: list[str],
    arrived: dict[str, float],
    synced: asyncio.Event,
    there: dict[str, asyncio.Event] | None = None,
) -> None:
    """One stream: notes when the value of each task came."""
    async for frame in stub.WaitFor(pb.WaitForRequest(task_ids=task_ids)):
        for event in frame.events:
            arrived[event.task.task_id] = time.perf_counter()
            if there is not None:
                there[event.task.task_id].set()
        if frame.control.kind == stream_pb2.CONTROL_KIND_SYNCED:
            synced.set()


@contextlib.asynccontextmanager
async def _two_channels(
    running: Running,
) -> AsyncIterator[tuple[grpc.aio.Channel, grpc.aio.Channel]]:
    async with (
        channel(running.address) as one,
        channel(running.address) as other,
    ):
        yield one, other
