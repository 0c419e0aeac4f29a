"""More than the server can do: `python -m tests.campaigns.overload --size ci --seed 7`.

First as fast as it answers, to know what it can do; then three times that, whatever it answers,
in batches of ready-made bytes, so that the load costs less than the work; then one caller again.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from resultd.v1 import result_service_pb2 as pb
from resultd_server import limits
from tests.campaigns._record import Campaign, Size, Tally
from tests.support.memory import ALLOCATOR, MIB
from tests.support.observed import ObservedServer
from tests.support.refusals import taken_apart
from tests.support.reports import batch, success
from tests.support.stubs import Stubs

BATCH = 100
CONNECTIONS = 4
CALLERS = 8
MEASURE_S = 3.0
TIMES = 3.0
CALL_S = 30.0
MEMORY_MAX = 768 * MIB
"""What may be queued (256 MiB), parsed and on its way, and the server itself."""

STORE = "/resultd.v1.ResultService/BatchStoreResults"


@dataclass(frozen=True)
class Plan:
    """What is offered to which server.

    Attributes:
        seconds: how long, or longer, until the queue must be full.
        recover_s: how long it may take to recover.
        queue_bytes: what the server queues.
        fault: planted in it.
    """

    seconds: float
    recover_s: float = 15.0
    queue_bytes: int = limits.WRITES_QUEUED_BYTES_MAX
    fault: str = "none"


_NUMBER = b"@@@@@@@@"
_RAW = batch(
    success(f"{_NUMBER.decode()}-{each}", b"x" * 5_000) for each in range(BATCH)
).SerializeToString()


def _batch(number: int) -> bytes:
    """A batch of new tasks, without the work of making one: a number in ready-made bytes."""
    return _RAW.replace(_NUMBER, f"{number:08}".encode())


class Load:
    """Batches, and what was said to each."""

    def __init__(self, address: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [
            grpc.aio.insecure_channel(address, options=options) for _ in range(CONNECTIONS)
        ]
        self._calls: list[Any] = [channel.unary_unary(STORE) for channel in self._channels]
        self._number = 0
        self.said: Counter[str] = Counter()
        self.faults: list[str] = []
        self.stored: list[int] = []

    async def store(self) -> None:
        """The next batch; what it was answered is counted."""
        self._number += 1
        number = self._number
        try:
            answer = await self._calls[number % CONNECTIONS](_batch(number), timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            self._refused(error)
            return
        refused = Counter(
            pb.BatchStoreResultsResponse.FromString(answer).outcomes[index].HasField("error")
            for index in (0, -1)
        )
        if refused[True]:
            self.faults.append("a report of a batch was refused")
            return
        self.said["batches stored"] += 1
        self.stored.append(number)

    def _refused(self, error: grpc.aio.AioRpcError) -> None:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            self.said["batches not answered in 30 s"] += 1
            return
        refusal = taken_apart(error)
        if refusal.reason != "OVERLOADED" or refusal.retry_delay_s <= 0:
            self.faults.append(f"refused without OVERLOADED and RetryInfo: {refusal}")
        self.said["batches refused as OVERLOADED"] += 1

    async def close(self) -> None:
        """Closes its connections."""
        for channel in self._channels:
            await channel.close()


async def _capacity(load: Load) -> float:
    """Batches a second, as fast as they are answered."""
    until, done = time.monotonic() + MEASURE_S, 0

    async def caller() -> None:
        nonlocal done
        while time.monotonic() < until:
            await load.store()
            done += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return done / MEASURE_S


async def _campaign(server: ObservedServer, plan: Plan) -> Tally:
    tally = Tally()
    load = Load(server.address)
    rate = await _capacity(load)
    # Twice what it may queue: of TIMES one is stored meanwhile, or more than was measured.
    fill = 2 * plan.queue_bytes / len(_RAW) / (1 - 1 / TIMES)
    wanted = int(max(fill, rate * TIMES * plan.seconds))
    load.said.clear()
    peak = 0.0
    began = time.monotonic()
    pending: set[asyncio.Task[None]] = set()
    for number in range(wanted):
        await asyncio.sleep(max(0.0, began + number / (rate * TIMES) - time.monotonic()))
        task = asyncio.create_task(load.store())
        pending.add(task)
        task.add_done_callback(pending.discard)
        if number % 50 == 0:
            peak = max(peak, (await asyncio.to_thread(server.look))["bytes"])
    tally.figures["offered, times of what it can do"] = round(
        wanted / (time.monotonic() - began) / rate, 2
    )
    await asyncio.gather(*pending)
    tally.figures["recovered after, s"] = round(await _recovered(server.address, plan, tally), 2)
    tally.figures["memory at most, MiB"] = round(peak / MIB, 1)
    if peak > MEMORY_MAX:
        tally.faults.append(f"memory: {peak / MIB:.0f} MiB")
    tally.counts["batches offered"] += wanted
    tally.counts += load.said
    tally.faults += load.faults
    if not tally.faults:  # else nobody may be there to ask
        await _check_stored(server.address, load.stored, tally)
    await load.close()
    return tally


async def _recovered(address: str, plan: Plan, tally: Tally) -> float:
    """Seconds until a caller who comes now gets ten answers in a row."""
    began, in_a_row = time.monotonic(), 0
    taken: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        while in_a_row < 10:
            before = time.monotonic()
            if before - began > plan.recover_s:
                tally.faults.append(f"not recovered after {plan.recover_s:g} s")
                break
            try:
                await Stubs(channel).results.StoreResult(success("after"), timeout=1.0)
                in_a_row += 1
                taken.append(time.monotonic() - before)
            except grpc.aio.AioRpcError:
                in_a_row = 0
                await asyncio.sleep(0.1)
    if taken:
        tally.figures["a call afterwards, ms"] = round(statistics.median(taken) * 1_000, 1)
    return time.monotonic() - began


async def _check_stored(address: str, stored: list[int], tally: Tally) -> None:
    """Whatever was acknowledged is there."""
    async with grpc.aio.insecure_channel(address) as channel:
        for number in stored:
            wanted = [f"{number:08}-{each}" for each in range(BATCH)]
            found = await Stubs(channel).results.BatchGetResults(
                pb.BatchGetResultsRequest(task_ids=wanted), timeout=CALL_S
            )
            lost = sum(not meta.terminal for meta in found.metas)
            tally.counts["acknowledged reports found again"] += len(found.metas) - lost
            if lost or found.deferred_task_ids:
                tally.faults.append(f"{lost} acknowledged reports are lost")


def run(plan: Plan, _: int) -> Tally:
    """Runs a plan; there is nothing random in it."""
    with tempfile.TemporaryDirectory(prefix="overload-") as directory:
        server = ObservedServer(Path(directory), fault=plan.fault, environ=ALLOCATOR)
        with server:
            return asyncio.run(_campaign(server, plan))


CAMPAIGN = Campaign(
    "overload",
    "At three times what it can do the server stores or refuses with OVERLOADED and RetryInfo, "
    "in bounded memory; it recovers in seconds, and what it acknowledged is there.",
    {
        Size.CI: Plan(seconds=5.0),
        Size.DEEP: Plan(seconds=60.0),
        Size.RELEASE: Plan(seconds=600.0),
    },
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
