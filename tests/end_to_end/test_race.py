"""Subscribing while the task finishes: whatever the moment, no wait hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from resultd.v1 import group_pb2, group_service_pb2
from resultd.v1 import result_service_pb2 as pb
from tests.support import reports
from tests.support.frames import Frames, ids, seconds
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

IDS_PER_WAIT = 20
WAITS = 12
"""Streams of each of three kinds that race with one burst of reports."""

ROUNDS = 30
"""30 rounds × (3 kinds × 12 streams of 20 ids + 6 × 10 streams of 2) = 25,200 waits."""

LATE = seconds(240)
"""A heartbeat would look at everything again and hide a hint that was missed."""

STEPS = 6
"""Moments at which streams are opened, spread over the burst."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on disk: a report takes the time of a commit."""
    directory: Path = tmp_path_factory.mktemp("race")
    with ServerProcess(directory) as process:
        yield process


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


@pytest.mark.slow
async def test_no_wait_hangs_whatever_the_moment(server: ServerProcess) -> None:
    """In 25,200 waits that race with the reports they wait for, each is told once, none hangs."""
    told = 0
    async with (
        grpc.aio.insecure_channel(server.address) as channel,
        grpc.aio.insecure_channel(
            server.address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as reporting,
    ):
        stubs, reporters = Stubs(channel), Stubs(reporting)
        for number in range(ROUNDS):
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
            for wanted, wait in waits:
                got = await wait
                assert sorted(got) == sorted(wanted)
                told += len(got)
            await burst
    assert told == ROUNDS * (WAITS * 3 + STEPS) * IDS_PER_WAIT >= 20_000
