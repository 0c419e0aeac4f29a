"""Waits that begin while what they wait for ends: `python -m tests.campaigns.races --size ci`.

Rounds of streams of every kind, opened at several moments of a burst of reports, on a server
whose reports take the time of a commit. Each wait has to be told of each of its tasks once; one
that is not told in time hangs.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import grpc

from resultd.v1 import group_pb2, group_service_pb2
from resultd.v1 import result_service_pb2 as pb
from tests.campaigns._record import Campaign, Size, Tally
from tests.support import reports
from tests.support.frames import Frames, ids, seconds
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

IDS_PER_WAIT = 20
WAITS = 12
"""Streams of each of three kinds that race with one burst of reports."""

STEPS = 6
"""Moments at which streams are opened, spread over the burst."""

PER_ROUND = (WAITS * 3 + STEPS) * IDS_PER_WAIT
LATE = seconds(240)
"""A stream that is alive all the same is not resumed: it would look at everything again."""


@dataclass(frozen=True)
class Plan:
    """How many waits, after how long one hangs, and the server: or one with a fault planted."""

    waits: int
    hang_s: float = 60.0
    program: tuple[str, ...] = ("resultd_server",)


async def _burst(stubs: Stubs, task_ids: list[str], group_id: str) -> None:
    """Reports one by one and in batches, from several callers at once."""

    async def some(mine: list[str]) -> None:
        half = len(mine) // 2
        for task_id in mine[:half]:
            await stubs.results.StoreResult(reports.success(task_id, group_id=group_id))
        said = [reports.success(task_id, group_id=group_id) for task_id in mine[half:]]
        await stubs.results.BatchStoreResults(reports.batch(said))

    await asyncio.gather(*(some(task_ids[start::4]) for start in range(4)))


async def _wait_for(stubs: Stubs, task_ids: list[str]) -> list[str]:
    wait = Frames(stubs.results.WaitFor(pb.WaitForRequest(task_ids=task_ids, heartbeat=LATE)))
    return ids(await wait.rest())


async def _iterate(stubs: Stubs, group_id: str) -> list[str]:
    frames = Frames(stubs.results.Iterate(pb.IterateRequest(group_id=group_id, heartbeat=LATE)))
    return ids(await frames.rest())


async def _watch(stubs: Stubs, task_ids: list[str]) -> list[str]:
    """Adds its ids in several messages, then closes its side: over when all are told."""
    call = stubs.results.Watch()
    for start in range(0, len(task_ids), 5):
        mine = task_ids[start : start + 5]
        await call.write(pb.WatchRequest(add_task_ids=mine, heartbeat=LATE))
    await call.done_writing()
    return ids(await Frames(call).rest())


async def _round(stubs: Stubs, reporters: Stubs, number: int, plan: Plan, tally: Tally) -> None:
    task_ids = [f"r{number}-t{n}" for n in range(IDS_PER_WAIT)]
    group_id = f"r{number}"
    members = [group_pb2.GroupMember(id=task_id) for task_id in task_ids]
    await stubs.groups.CreateGroup(
        group_service_pb2.CreateGroupRequest(group_id=group_id, members=members, seal=True)
    )
    burst = asyncio.create_task(_burst(reporters, task_ids, group_id))
    waits: list[tuple[list[str], asyncio.Task[list[str]]]] = []
    for step in range(STEPS):
        pairs = [task_ids[start : start + 2] for start in range(0, IDS_PER_WAIT, 2)]
        waits += [(few, asyncio.create_task(_wait_for(stubs, few))) for few in pairs]
        for _ in range(WAITS // STEPS):
            waits += [
                (task_ids, asyncio.create_task(_wait_for(stubs, task_ids))),
                (task_ids, asyncio.create_task(_iterate(stubs, group_id))),
                (task_ids, asyncio.create_task(_watch(stubs, task_ids))),
            ]
        for _ in range((number + step) % 7):
            await asyncio.sleep(0)
    await burst
    done, hanging = await asyncio.wait([wait for _, wait in waits], timeout=plan.hang_s)
    if hanging:
        tally.faults.append(f"hang: {len(hanging)} waits of round {number}")
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    for wanted, wait in waits:
        if wait not in done:
            continue
        if sorted(wait.result()) != sorted(wanted):
            tally.faults.append(f"round {number}: told of {wait.result()}, not of {wanted}")
        tally.counts["waits"] += len(wanted)
        tally.counts["streams"] += 1


async def _campaign(address: str, plan: Plan, seed: int) -> Tally:
    tally = Tally()
    own = [("grpc.use_local_subchannel_pool", 1)]
    first = random.Random(seed).randrange(10**6)
    async with (
        grpc.aio.insecure_channel(address) as channel,
        grpc.aio.insecure_channel(address, options=own) as reporting,
    ):
        stubs, reporters = Stubs(channel), Stubs(reporting)
        for number in range(-(-plan.waits // PER_ROUND)):
            await _round(stubs, reporters, first + number, plan, tally)
            if tally.faults:
                break
    return tally


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan."""
    with (
        tempfile.TemporaryDirectory(prefix="races-") as directory,
        ServerProcess(Path(directory), program=plan.program) as server,
    ):
        return asyncio.run(_campaign(server.address, plan, seed))


CAMPAIGN = Campaign(
    "races",
    "Whatever the moment at which a wait begins while its tasks end, it is told of each once; "
    "none hangs.",
    {
        Size.CI: Plan(waits=20_000),
        Size.DEEP: Plan(waits=1_000_000),
        Size.RELEASE: Plan(waits=10_000_000),
    },
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
