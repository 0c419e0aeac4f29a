"""Load of unary calls: many callers on a few connections, requests made beforehand."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Sequence
from typing import NamedTuple

import grpc

from tests.benchmarks.processes import Running

SERVICE = "/resultd.v1.ResultService/"
CALLERS = 64


class Load(NamedTuple):
    """What it cost: CPU seconds of both sides, and how long it took, in all."""

    server_s: float
    caller_s: float
    took_s: float


async def load(
    running: Running,
    method: str,
    requests: Sequence[bytes],
    *,
    callers: int = CALLERS,
    connections: int = 1,
) -> Load:
    """Sends requests as fast as so many callers get answers; a tenth before, to be warm."""
    async with contextlib.AsyncExitStack() as stack:
        methods: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
            (await stack.enter_async_context(channel(running.address))).unary_unary(method)
            for _ in range(connections)
        ]
        await send(methods, requests[: len(requests) // 10 + connections], callers)
        gc.collect()
        before = running.cpu_s(), time.process_time(), time.perf_counter()
        await send(methods, requests[len(requests) // 10 + connections :], callers)
        after = running.cpu_s(), time.process_time(), time.perf_counter()
    return Load(*(end - start for start, end in zip(before, after, strict=True)))


def measured(requests: int, connections: int = 1) -> int:
    """How many of so many requests `load` measures."""
    return requests - (requests // 10 + connections)


async def one_by_one(running: Running, method: str, requests: Sequence[bytes]) -> list[float]:
    """Seconds that each call took, one after the other on one connection; warm before."""
    took = []
    async with channel(running.address) as opened:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = opened.unary_unary(method)
        for request in requests[: len(requests) // 10 + 1]:
            await call(request)
        for request in requests[len(requests) // 10 + 1 :]:
            began_s = time.perf_counter()
            await call(request)
            took.append(time.perf_counter() - began_s)
    return took


def channel(address: str) -> grpc.aio.Channel:
    """A channel on a connection of its own, whatever others the process has."""
    return grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))


async def send(
    methods: Sequence[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]],
    requests: Sequence[bytes],
    callers: int,
) -> None:
    """Sends requests by so many callers, in turn on these channels."""
    left = iter(requests)

    async def caller(number: int) -> None:
        call = methods[number % len(methods)]
        for request in left:
            await call(request)

    await asyncio.gather(*(caller(number) for number in range(callers)))
