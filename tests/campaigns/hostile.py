"""Hostile peers: `python -m tests.campaigns.hostile --size ci --seed 7`.

Connections that reset, stall, flood, lie and make noise, hundreds at a time, each kind in
turn, while a client goes on storing and reading. Afterwards the server has to have let go.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from resultd.errors import RETRYABLE_CODES
from resultd.v1 import result_service_pb2 as pb
from resultd_server import heap
from tests.benchmarks.processes import Running
from tests.campaigns._record import Campaign, Size, Tally
from tests.support.attacks import ATTACKS, attack
from tests.support.memory import MIB, anonymous_bytes
from tests.support.reports import success
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

PROBE_EVERY_S = 0.25
PROBE_S = 20.0
"""A call of a client that means no harm takes at most so long, on a machine that is busy."""

REST_S = 0.5
"""A server is at rest that has done next to nothing for so long."""

GROWTH = 1.10
SPARE_DESCRIPTORS = 4


@dataclass(frozen=True)
class Plan:
    """What is done.

    Attributes:
        connections: how many, of all kinds together.
        at_a_time: of them.
        hold_s: how long a stalling one holds on (at least, at most).
        program: the server, or one with a fault planted.
        names: of the attacks.
        settle_s: how long the server may take to let go afterwards.
        rest_s: how long it rests between the warm-up and the siege, to give back memory.
        slack_bytes: memory allowed beside the 10 %, for sieges too short to warm up.
    """

    connections: int
    at_a_time: int = 200
    hold_s: tuple[float, float] = (0.1, 2.0)
    program: tuple[str, ...] = ("resultd_server",)
    names: tuple[str, ...] = field(default=tuple(ATTACKS))
    settle_s: float = 60.0
    rest_s: float = 3 * heap.EVERY_S
    slack_bytes: int = 0


async def _attacks(address: str, plan: Plan, seed: int, connections: int) -> Counter[str]:
    """Each kind in turn, until there were so many; how often the server ended it."""
    dice = random.Random(seed)
    turns = iter(range(connections))
    found: Counter[str] = Counter()

    async def some() -> None:
        for turn in turns:
            name = plan.names[turn % len(plan.names)]
            ended = await attack(address, name, dice, dice.uniform(*plan.hold_s))
            found["ended by the server"] += ended
            found["connections"] += 1

    await asyncio.gather(*(some() for _ in range(plan.at_a_time)))
    return found


async def _probe(address: str, tally: Tally, over: asyncio.Event) -> None:
    """A client that stores and reads until told to stop, each time on a connection of its own."""
    number = 0
    while not over.is_set():
        number += 1
        began = time.monotonic()
        try:
            await _store_and_read(address, f"probe-{number}")
        except grpc.aio.AioRpcError as error:
            # Of thousands of calls that nobody has looked at yet gRPC cancels some, anybody's.
            tally.counts["of them to be tried again"] += 1
            if error.code().name not in RETRYABLE_CODES:
                tally.faults.append(f"a client was refused: {error.code().name}")
        tally.counts["calls of a client meanwhile"] += 2
        slowest = tally.figures.get("slowest pair of calls, s", 0.0)
        tally.figures["slowest pair of calls, s"] = round(max(slowest, time.monotonic() - began), 3)
        await asyncio.sleep(PROBE_EVERY_S)


async def _store_and_read(address: str, name: str) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stubs = Stubs(channel)
        await stubs.results.StoreResult(success(name), timeout=PROBE_S, wait_for_ready=True)
        got = await stubs.results.GetResult(pb.GetResultRequest(task_id=name), timeout=PROBE_S)
        assert got.meta.terminal


async def _besiege(server: ServerProcess, plan: Plan, seed: int) -> Tally:
    tally = Tally()
    pid = server.process.pid
    idle = len(_descriptors(pid))
    over = asyncio.Event()
    probing = asyncio.create_task(_probe(server.address, tally, over))
    # What gRPC and Python allocate once they keep: that is not what a siege costs.
    await _attacks(server.address, plan, seed, _warm_up(plan))
    await _until(lambda: len(_descriptors(pid)) <= idle + SPARE_DESCRIPTORS, plan.settle_s)
    before_bytes = await _least(lambda: anonymous_bytes(pid), plan.rest_s)
    most_bytes = max(before_bytes * GROWTH, before_bytes + plan.slack_bytes)
    tally.counts += await _attacks(server.address, plan, seed + 1, plan.connections)
    over.set()
    await probing
    await _until(lambda: len(_descriptors(pid)) <= idle + SPARE_DESCRIPTORS, plan.settle_s)
    # Connections that are gone may have left calls that gRPC has yet to look at.
    await _at_rest(Running(pid, server.address), plan.settle_s)
    for number in range(10):
        # Once it is over nobody is sent away: an error here ends the campaign.
        await _store_and_read(server.address, f"after-{number}")
    await _until(lambda: anonymous_bytes(pid) <= most_bytes, plan.settle_s)
    after_bytes, after = anonymous_bytes(pid), len(_descriptors(pid))
    tally.figures["memory before, MiB"] = round(before_bytes / MIB, 1)
    tally.figures["memory after, MiB"] = round(after_bytes / MIB, 1)
    if server.process.poll() is not None:
        tally.faults.append(f"the server ended with {server.process.poll()}")
    if after_bytes > most_bytes:
        tally.faults.append(
            f"memory: {before_bytes / MIB:.1f} MiB before, {after_bytes / MIB:.1f} MiB after"
        )
    if after > idle + SPARE_DESCRIPTORS:
        tally.faults.append(f"descriptors: {idle} before, {after} after")
    internal = server.log().count('"event": "failed"')
    if internal:
        tally.faults.append(f"{internal} calls ended in a bug: see the server's log")
    return tally


def _warm_up(plan: Plan) -> int:
    """A siege of the same kind, for memory to rise to what one takes at its worst.

    It does so over the first 15,000 to 20,000: each thread of gRPC's keeps some freed blocks.
    """
    return min(3 * plan.connections, 20_000)


async def _least(look: Callable[[], int], seconds: float) -> int:
    """The least figure of a while."""
    until = time.monotonic() + seconds
    found = look()
    while time.monotonic() < until:
        await asyncio.sleep(0.5)
        found = min(found, look())
    return found


async def _until(condition: Callable[[], bool], settle_s: float) -> None:
    deadline = time.monotonic() + settle_s
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110  of another process
        await asyncio.sleep(0.2)


async def _at_rest(server: Running, settle_s: float) -> None:
    """Until a server does next to nothing for a moment; as long as it may settle."""
    deadline = time.monotonic() + settle_s
    used_s = -REST_S
    while time.monotonic() < deadline:
        before_s, used_s = used_s, server.cpu_s()
        if used_s - before_s < REST_S * heap.BUSY:
            return
        await asyncio.sleep(REST_S)


def _descriptors(pid: int) -> list[Path]:
    return [*Path(f"/proc/{pid}/fd").iterdir()]


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan."""
    with (
        tempfile.TemporaryDirectory(prefix="hostile-") as directory,
        ServerProcess(Path(directory), program=plan.program) as server,
    ):
        return asyncio.run(_besiege(server, plan, seed))


CAMPAIGN = Campaign(
    "hostile",
    "Whatever comes over HTTP/2, the server stays, clients are told nothing worse meanwhile than "
    "to try again, and it serves them afterwards, its memory back to 10 % and its descriptors.",
    {
        Size.CI: Plan(connections=5_000),
        Size.DEEP: Plan(connections=60_000, at_a_time=400),
        Size.RELEASE: Plan(connections=1_000_000, at_a_time=400),
    },
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
