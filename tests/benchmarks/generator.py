"""A load generator in a process of its own: takes orders, and says what CPU it used itself."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import uuid

import grpc

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import stream_pb2
from tests.benchmarks.calls import SERVICE, channel, send
from tests.benchmarks.orders import take_orders
from tests.benchmarks.reports import BATCH, batch, report

_STREAMS = 4


class Generator:
    """Callers of a server; as many connections, so that several workers share them."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._requests: list[bytes] = []

    def prepare(self, method: str, count: int) -> dict[str, float]:
        """Makes the requests that are sent next: `count` calls of StoreResult or of batches."""
        if method == "StoreResult":
            self._requests = [report(_id()).SerializeToString() for _ in range(count)]
        else:
            self._requests = [
                batch([_id() for _ in range(BATCH)]).SerializeToString() for _ in range(count)
            ]
        return {}

    def call(self, method: str, callers: int, connections: int) -> dict[str, float]:
        """Sends them, an eighth before to be warm; CPU seconds used, when it began and ended."""
        return asyncio.run(self._call(method, callers, connections))

    async def _call(self, method: str, callers: int, connections: int) -> dict[str, float]:
        warm = len(self._requests) // 8 + connections
        async with contextlib.AsyncExitStack() as stack:
            methods: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = []
            for _ in range(connections):
                opened = await stack.enter_async_context(channel(self._address))
                methods.append(opened.unary_unary(SERVICE + method))
            await send(methods, self._requests[:warm], callers)
            cpu_s, began_s = time.process_time(), time.perf_counter()
            await send(methods, self._requests[warm:], callers)
            return _spent(cpu_s, began_s, len(self._requests) - warm)

    def wait(self, count: int) -> dict[str, float]:
        """Waits for so many tasks on a few streams, and stores them meanwhile, in batches."""
        return asyncio.run(self._wait(count))

    async def _wait(self, count: int) -> dict[str, float]:
        ids = [_id() for _ in range(count)]
        batches = [
            batch(ids[start : start + BATCH]).SerializeToString()
            for start in range(0, count, BATCH)
        ]
        synced = [asyncio.Event() for _ in range(_STREAMS)]
        async with contextlib.AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(channel(self._address)) for _ in range(_STREAMS)
            ]
            streams = [
                asyncio.create_task(_stream(channels[place], ids[place::_STREAMS], synced[place]))
                for place in range(_STREAMS)
            ]
            await asyncio.gather(*(each.wait() for each in synced))
            cpu_s, began_s = time.process_time(), time.perf_counter()
            methods: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
                each.unary_unary(SERVICE + "BatchStoreResults") for each in channels
            ]
            await send(methods, batches, _STREAMS)
            came = sum(await asyncio.gather(*streams))
            if came != count:
                raise RuntimeError(f"{came:,} of {count:,} waited for came")
            return _spent(cpu_s, began_s, count)


async def _stream(opened: grpc.aio.Channel, ids: list[str], synced: asyncio.Event) -> int:
    wait: grpc.aio.UnaryStreamMultiCallable[pb.WaitForRequest, pb.WaitForResponse] = (
        opened.unary_stream(
            SERVICE + "WaitFor",
            request_serializer=pb.WaitForRequest.SerializeToString,
            response_deserializer=pb.WaitForResponse.FromString,
        )
    )
    came = 0
    async for frame in wait(pb.WaitForRequest(task_ids=ids)):
        came += len(frame.events)
        if frame.control.kind == stream_pb2.CONTROL_KIND_SYNCED:
            synced.set()
    return came


def _spent(cpu_s: float, began_s: float, count: int) -> dict[str, float]:
    """By the clock that all processes share, so that several can be put together."""
    return {
        "cpu_s": time.process_time() - cpu_s,
        "began_s": began_s,
        "ended_s": time.perf_counter(),
        "count": count,
    }


def _id() -> str:
    return str(uuid.uuid4())


if __name__ == "__main__":
    take_orders(Generator(sys.argv[1]))
