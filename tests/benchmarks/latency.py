"""From StoreResult's OK to the waiting WaitFor's event; and of the whole call.

One storer and one waiter, each on a connection of its own. The event often arrives
before the storer has its OK: the time from OK to event is then negative, and is shown
as it is.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from typing import TYPE_CHECKING

import grpc

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import stream_pb2
from tests.benchmarks.processes import echo, resultd
from tests.benchmarks.store import report
from tests.benchmarks.stubs import results
from tests.benchmarks.table import Row, Size

if TYPE_CHECKING:
    from resultd.v1.result_service_pb2_grpc import ResultServiceAsyncStub


async def run(size: Size) -> list[Row]:
    """p50 and p99 of each round."""
    samples, rounds = size.of(1_000, 20), size.of(5, 1)
    figures: dict[str, list[float]] = {}
    async with resultd() as store, echo() as bare:
        numbers = itertools.count()
        for _ in range(rounds):
            since_call, since_ok = await _resultd(store.address, samples, numbers)
            for name, values in (
                ("call", since_call),
                ("ok", since_ok),
                ("echo", await _echo(bare.address, samples)),
            ):
                figures.setdefault(f"{name} p50", []).append(statistics.median(values))
                figures.setdefault(f"{name} p99", []).append(
                    statistics.quantiles(values, n=100)[98]
                )
    rows = []
    for p in ("p50", "p99"):
        rows.append(Row(f"StoreResult's OK → WaitFor's event, {p}", "µs", figures[f"ok {p}"]))
        rows.append(
            Row(f"call of StoreResult → WaitFor's event, {p}", "µs", figures[f"call {p}"],
                figures[f"echo {p}"], "bare unary echo, there and back")
        )  # fmt: skip
    return rows


async def _resultd(
    address: str, samples: int, numbers: itertools.count[int]
) -> tuple[list[float], list[float]]:
    since_call, since_ok = [], []
    async with (
        grpc.aio.insecure_channel(address) as storing,
        grpc.aio.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
        as waiting,
    ):  # fmt: skip
        storer, waiter = results(storing), results(waiting)
        for _ in range(samples):
            task_id = f"task-{next(numbers)}"
            synced = asyncio.Event()
            event = asyncio.create_task(_event(waiter, task_id, synced))
            await synced.wait()
            called_s = time.perf_counter()
            await storer.StoreResult(report(task_id))
            ok_s = time.perf_counter()
            event_s = await event
            since_call.append((event_s - called_s) * 1e6)
            since_ok.append((event_s - ok_s) * 1e6)
    return since_call, since_ok


async def _event(stub: ResultServiceAsyncStub, task_id: str, synced: asyncio.Event) -> float:
    call = stub.WaitFor(pb.WaitForRequest(task_ids=[task_id]))
    event_s = 0.0
    async for frame in call:
        if frame.events:
            event_s = time.perf_counter()
        elif frame.control.kind == stream_pb2.CONTROL_KIND_SYNCED:
            synced.set()
    return event_s


async def _echo(address: str, samples: int) -> list[float]:
    took = []
    payload = report("task").SerializeToString()
    async with grpc.aio.insecure_channel(address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/Echo/Echo")
        for _ in range(samples):
            began_s = time.perf_counter()
            await call(payload)
            took.append((time.perf_counter() - began_s) * 1e6)
    return took
