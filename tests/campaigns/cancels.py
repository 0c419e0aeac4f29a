"""Storms of calls that are taken back: `python -m tests.campaigns.cancels --size ci --seed 7`.

Streams and calls of every kind, cancelled before they are answered, in the middle or after;
then nothing of them may be left, and memory has to be where it was.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import worker_service_pb2
from tests.campaigns._record import Campaign, Size, Tally
from tests.support.memory import ALLOCATOR, MIB
from tests.support.observed import ObservedServer
from tests.support.reports import success
from tests.support.stubs import Stubs

CONNECTIONS = 4
AT_A_TIME = 64
GROWTH = 1.10
"""What memory may do, once a storm of a quarter has been before it."""

SPARE_OBJECTS = 2_000
SETTLE_S = 20.0
SPARE_TASKS = 4  # gRPC has a few of its own, now and then one more
ENDED = (grpc.aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError)
"""How a call ends that was taken back."""


@dataclass(frozen=True)
class Plan:
    """What is done.

    Attributes:
        calls: how many.
        fault: planted in the server.
        settle_s: what it has to let go.
        slack_bytes: memory allowed beside the 10 %, for storms too short to fill what the
            allocator keeps for the next one.
    """

    calls: int
    fault: str = "none"
    settle_s: float = SETTLE_S
    slack_bytes: int = 24 * MIB


def _kinds(stubs: Stubs) -> list[Callable[[random.Random], Any]]:
    def some(dice: random.Random) -> list[str]:
        return [f"t{dice.randrange(10_000)}" for _ in range(20)]

    results, workers = stubs.results, stubs.workers
    return [
        lambda dice: results.WaitFor(pb.WaitForRequest(task_ids=some(dice))),
        lambda dice: results.Iterate(pb.IterateRequest(group_id=f"g{dice.randrange(50)}")),
        lambda _: results.Watch(),
        lambda _: workers.WatchRevocations(),
        lambda dice: results.StoreResult(success(f"t{dice.randrange(100)}", group_id="g1")),
        lambda dice: results.BatchGetResults(pb.BatchGetResultsRequest(task_ids=some(dice))),
    ]


async def _storm(address: str, seed: int, calls: int, tally: Tally) -> None:
    turns = iter(range(calls))

    async def some(dice: random.Random, stubs: Stubs) -> None:
        kinds = _kinds(stubs)
        for _ in turns:
            call = dice.choice(kinds)(dice)
            try:
                await _for_a_while(call, dice)
            except ENDED:
                tally.counts["ended first"] += 1
            finally:
                call.cancel()
            tally.counts["cancelled"] += 1

    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(CONNECTIONS)
    ]
    await asyncio.gather(
        *(
            some(random.Random(f"{seed} {number}"), Stubs(channels[number % CONNECTIONS]))
            for number in range(AT_A_TIME)
        )
    )
    for channel in channels:
        await channel.close()


async def _for_a_while(call: Any, dice: random.Random) -> None:
    if hasattr(call, "write") and dice.random() < 0.5:
        request: Any = pb.WatchRequest(add_task_ids=[f"t{dice.randrange(10_000)}"])
        if dice.random() < 0.5:
            # The wrong message for one of the two streams: refused there, and that is an end too.
            request = worker_service_pb2.WatchRevocationsRequest(add_task_ids=["t1"])
        await asyncio.wait_for(call.write(request), 5.0)
    if dice.random() < 0.7:
        await asyncio.sleep(dice.choice((0.0, 0.0, 0.001, 0.005, 0.02)))


async def _campaign(server: ObservedServer, plan: Plan, seed: int) -> Tally:
    tally = Tally()
    await _storm(server.address, seed, max(500, plan.calls // 4), Tally())
    before = await _rested(server, plan.settle_s)
    await _storm(server.address, seed + 1, plan.calls, tally)
    most_bytes = before["bytes"] * GROWTH + plan.slack_bytes
    after = await _rested(server, plan.settle_s, most_bytes)
    tally.figures["objects more"] = after["objects"] - before["objects"]
    tally.figures["memory before, MiB"] = round(before["bytes"] / MIB, 1)
    tally.figures["memory after, MiB"] = round(after["bytes"] / MIB, 1)
    if after["bytes"] > most_bytes:
        tally.faults.append(f"memory: {before['bytes']:,} bytes before, {after['bytes']:,} after")
    if after["objects"] > before["objects"] + SPARE_OBJECTS:
        tally.faults.append(f"{after['objects'] - before['objects']:.0f} objects more")
    for name in ("streams", "calls", "subscriptions", "keys"):
        if after[name]:
            tally.faults.append(f"{after[name]:.0f} {name} are left")
    if after["tasks"] > before["tasks"] + SPARE_TASKS:
        tally.faults.append(f"tasks: {before['tasks']:.0f} before, {after['tasks']:.0f} after")
    if '"event": "failed"' in server.log():
        tally.faults.append("calls ended in a bug: see the server's log")
    return tally


async def _rested(
    server: ObservedServer, settle_s: float, most_bytes: float = math.inf
) -> dict[str, float]:
    """What it holds once it has let go, or after a while."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settle_s

    def holds() -> bool:
        left = seen["streams"] or seen["calls"] or seen["keys"]
        return bool(left) or seen["bytes"] > most_bytes

    seen = await asyncio.to_thread(server.look)
    while loop.time() < deadline and holds():
        await asyncio.sleep(0.5)
        seen = await asyncio.to_thread(server.look)
    return seen


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan."""
    with tempfile.TemporaryDirectory(prefix="cancels-") as directory:
        server = ObservedServer(Path(directory), fault=plan.fault, environ=ALLOCATOR)
        with server:
            return asyncio.run(_campaign(server, plan, seed))


CAMPAIGN = Campaign(
    "cancels",
    "Calls that are taken back at any moment leave nothing behind: no stream, no subscription, "
    "no task, no object, and memory flat.",
    {
        Size.CI: Plan(calls=10_000),
        Size.DEEP: Plan(calls=200_000, slack_bytes=0),
        Size.RELEASE: Plan(calls=2_000_000, slack_bytes=0),
    },
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
