"""A long time of everything: `python -m tests.campaigns.soak --size deep --seed 7`.

Workers report, callers wait, watch, iterate, forget and cancel, over ids that come again, with
records that expire, and one reader that reads nothing; all at a pace the machine bears. What the
server holds is looked at every second, and a line laid through it after a warm-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from resultd.v1 import group_pb2, group_service_pb2, state_pb2
from resultd.v1 import result_service_pb2 as pb
from tests.campaigns._record import Campaign, Size, Tally
from tests.support.frames import SYNCED, Frames, seconds
from tests.support.memory import ALLOCATOR, MIB
from tests.support.observed import ObservedServer
from tests.support.reports import batch, state, success
from tests.support.stubs import Stubs

IDS = 2_000
CALLERS = 6
PAUSE_S = 0.02
FLAT = ("descriptors", "tasks", "readers", "streams", "keys")


@dataclass(frozen=True)
class Plan:
    """For how long, and what memory may do.

    Attributes:
        seconds: all together; a third of it is the warm-up.
        slope_max: MiB an hour; of a minute a slope says little, an hour's is the law.
        fault: planted in the server.
    """

    seconds: float
    slope_max: float
    fault: str = "none"


class Callers:
    """What they do, over and over."""

    def __init__(self, stubs: Stubs, seed: int) -> None:
        self._stubs = stubs
        self._dice = random.Random(seed)
        self._group = 0
        self.works: tuple[Callable[[], Awaitable[object]], ...] = (
            self._report,
            self._wait,
            self._iterate,
            self._watch,
            self._forget,
            self._list,
        )

    def _ids(self, count: int) -> list[str]:
        return [f"t{each}" for each in self._dice.sample(range(IDS), count)]

    async def _report(self) -> None:
        ids = self._ids(20)
        running = [state(each, state_pb2.STATE_STARTED) for each in ids]
        done = [success(each, self._dice.randbytes(500)) for each in ids]
        for request in (*running, *done):
            request.ttl.CopyFrom(seconds(self._dice.choice((1, 2, 5, 20))))
        await self._stubs.results.BatchStoreResults(batch(running))
        await self._stubs.results.BatchStoreResults(batch(done))
        await self._stubs.results.StoreResult(done[0])

    async def _wait(self) -> None:
        wait = Frames(self._stubs.results.WaitFor(pb.WaitForRequest(task_ids=self._ids(50))))
        try:
            await wait.until(SYNCED)
        finally:
            wait.call.cancel()

    async def _iterate(self) -> None:
        self._group += 1
        ids = self._ids(10)
        group_id = f"g{self._group % 50}"
        request = group_service_pb2.CreateGroupRequest(
            group_id=group_id,
            members=[group_pb2.GroupMember(id=each) for each in ids],
            seal=True,
            new_epoch=True,
            ttl=seconds(5),
        )
        with contextlib.suppress(grpc.aio.AioRpcError):  # another caller runs it again just now
            await self._stubs.groups.CreateGroup(request)
        frames = self._stubs.results.Iterate(
            pb.IterateRequest(group_id=group_id, timeout=seconds(2))
        )
        stored = [success(each, group_id=group_id) for each in ids]
        await self._stubs.results.BatchStoreResults(batch(stored))
        await Frames(frames).rest()

    async def _watch(self) -> None:
        call = self._stubs.results.Watch()
        await call.write(pb.WatchRequest(add_task_ids=self._ids(100), sequence=1))
        await call.write(pb.WatchRequest(remove_task_ids=self._ids(100), sequence=2))
        await Frames(call).until(SYNCED)
        call.cancel()

    async def _forget(self) -> None:
        request = pb.ForgetResultsRequest(task_ids=self._ids(5))
        await self._stubs.results.ForgetResults(request)

    async def _list(self) -> None:
        await self._stubs.results.ListResults(pb.ListResultsRequest(page_size=50))


async def _campaign(server: ObservedServer, plan: Plan, seed: int) -> Tally:
    tally, dice = Tally(), random.Random(seed)
    seen: list[dict[str, float]] = []
    loop = asyncio.get_running_loop()
    until = loop.time() + plan.seconds
    async with (
        grpc.aio.insecure_channel(server.address) as channel,
        grpc.aio.insecure_channel(
            server.address, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as unread,
    ):
        callers = Callers(Stubs(channel), seed)

        async def go() -> None:
            while loop.time() < until:
                work = dice.choice(callers.works)
                await work()
                tally.counts["turns"] += 1
                await asyncio.sleep(PAUSE_S * dice.uniform(0.5, 1.5))

        # Its frames are written until the window is full, and then wait.
        stalled = Stubs(unread).results.WaitFor(
            pb.WaitForRequest(task_ids=[f"t{n}" for n in range(IDS)], transitions=True)
        )
        working = [asyncio.create_task(go()) for _ in range(CALLERS)]
        while loop.time() < until:
            await asyncio.sleep(1.0)
            seen.append(await asyncio.to_thread(server.look))
            for task in working:
                if task.done() and task.exception() is not None:
                    until = 0.0
        for result in await asyncio.gather(*working, return_exceptions=True):
            if result is not None:
                tally.faults.append(f"a caller was refused: {result!r}")
        stalled.cancel()
    _judge(seen[len(seen) // 3 :], plan, tally)
    if '"event": "failed"' in server.log():
        tally.faults.append("calls ended in a bug: see the server's log")
    return tally


def _judge(seen: list[dict[str, float]], plan: Plan, tally: Tally) -> None:
    """Lays a line through what was seen; slopes are of medians, a peak decides nothing."""
    half = len(seen) // 2
    for name in ("bytes", *FLAT):
        early = statistics.median(look[name] for look in seen[:half])
        late = statistics.median(look[name] for look in seen[half:])
        if name == "bytes":
            slope = (late - early) / MIB / half * 3_600
            tally.figures["memory, MiB"] = round(late / MIB, 1)
            tally.figures["memory slope, MiB/h"] = round(slope, 2)
            if slope > plan.slope_max:
                tally.faults.append(f"memory grows by {slope:.1f} MiB/h")
        else:
            tally.figures[f"{name} early"], tally.figures[f"{name} late"] = early, late
            # Within what the callers have open at a time.
            if late > early * 1.1 + CALLERS:
                tally.faults.append(f"{name}: {early:.0f} early, {late:.0f} late")
    tally.counts["looks"] += len(seen)
    tally.counts["seconds after the warm-up"] += len(seen)


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        server = ObservedServer(Path(directory), fault=plan.fault, environ=ALLOCATOR)
        with server:
            return asyncio.run(_campaign(server, plan, seed))


CAMPAIGN = Campaign(
    "soak",
    "Over a long time of everything memory grows by no more than 1 MiB an hour after a warm-up, "
    "and descriptors, tasks, readers, streams and keys not at all.",
    {
        Size.CI: Plan(seconds=60.0, slope_max=360.0),
        Size.DEEP: Plan(seconds=3_600.0, slope_max=1.0),
        Size.RELEASE: Plan(seconds=86_400.0, slope_max=1.0),
    },
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
