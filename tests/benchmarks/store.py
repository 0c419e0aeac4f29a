"""StoreResult, 300 B of value, durable, 64 callers: server CPU a call, and calls a second."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator

import grpc

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2, task_pb2, value_pb2
from tests.benchmarks.processes import Running, echo, resultd
from tests.benchmarks.table import Row, Size

CALLERS = 64
BATCH = 128
_VALUE = value_pb2.Payload(content_type="application/json", data=b'"' + b"x" * 298 + b'"')


def report(task_id: str, group_id: str = "") -> pb.StoreResultRequest:
    """A finished task with 300 bytes of value."""
    meta = task_pb2.TaskMeta(
        task_id=task_id, state=state_pb2.STATE_SUCCESS, value=_VALUE, group_id=group_id
    )
    return pb.StoreResultRequest(meta=meta)


async def run(size: Size) -> list[Row]:
    """Singles beside an echo of the same bytes; batches of 128 by themselves."""
    calls, rounds = size.of(10_000, 256), size.of(5, 1)
    cpu: dict[str, list[float]] = {"resultd": [], "echo": []}
    rate: dict[str, list[float]] = {"resultd": [], "echo": []}
    batch_cpu, batch_rate = [], []
    async with resultd() as store, echo() as bare:
        numbers = itertools.count()
        for _ in range(rounds):
            for name, running, method in (
                ("resultd", store, "/resultd.v1.ResultService/StoreResult"),
                ("echo", bare, "/Echo/Echo"),
            ):
                requests = _requests(numbers)
                cost_us, per_s = await _load(running, method, requests.__next__, calls)
                cpu[name].append(cost_us)
                rate[name].append(per_s)
            batches = _batches(numbers)
            cost_us, per_s = await _load(
                store,
                "/resultd.v1.ResultService/BatchStoreResults",
                batches.__next__,
                max(calls // BATCH, 8),
            )
            batch_cpu.append(cost_us / BATCH)
            batch_rate.append(per_s * BATCH)
    return [
        Row("StoreResult, 64 callers: server CPU a call", "µs", cpu["resultd"], cpu["echo"],
            "bare grpc.aio echo of the same bytes"),
        Row("StoreResult, 64 callers: calls", "1/s", rate["resultd"], rate["echo"],
            "bare grpc.aio echo of the same bytes"),
        Row("BatchStoreResults of 128: server CPU a result", "µs", batch_cpu),
        Row("BatchStoreResults of 128: results", "1/s", batch_rate),
    ]  # fmt: skip


def _requests(numbers: Iterator[int]) -> Iterator[bytes]:
    for number in numbers:
        yield report(f"task-{number}").SerializeToString()


def _batches(numbers: Iterator[int]) -> Iterator[bytes]:
    while True:
        reports = [report(f"task-{next(numbers)}") for _ in range(BATCH)]
        yield pb.BatchStoreResultsRequest(reports=reports).SerializeToString()


async def _load(
    running: Running, method: str, next_request: Callable[[], bytes], calls: int
) -> tuple[float, float]:
    """(server CPU µs a call, calls a second) of 64 callers on one channel."""
    async with grpc.aio.insecure_channel(running.address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        left = iter(range(calls))

        async def caller() -> None:
            for _ in left:
                await call(next_request())

        await call(next_request())  # the connection is not part of it
        cpu_s, began_s = running.cpu_s(), time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        took_s = time.perf_counter() - began_s
        return (running.cpu_s() - cpu_s) / calls * 1e6, calls / took_s
