"""The clock jumps: `python -m tests.campaigns.clocks --size ci --seed 7`.

The server runs under libfaketime, which moves its wall clock by hours and days, forth and back,
while records with all kinds of lives are kept and streams are open.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from resultd.v1 import group_pb2, group_service_pb2, state_pb2
from resultd.v1 import result_service_pb2 as pb
from tests.campaigns._record import Campaign, Size, Tally
from tests.support import reports
from tests.support.frames import Frames, ids, seconds
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
LIVES_S = (0, 2, 30, 600, 3_600, 86_400, 10 * 86_400)
"""0: for ever."""

JUMPS_S = (-86_400, -3_600, -60, 5, 60, 1_800, 7_200, 90_000, 3 * 86_400)
MARGIN_S = 3.0
"""What is due within so long of now may be there or not."""

RECORDS = 20
KNOWN = state_pb2.EXISTENCE_KNOWN


@dataclass(frozen=True)
class Plan:
    """`jumps` of the clock; `program`: the server, or one with a fault planted."""

    jumps: int
    program: tuple[str, ...] = ("resultd_server",)


def why_not() -> str | None:
    """Why clocks cannot be moved here, or None."""
    return None if LIBRARIES else "libfaketime is not on this machine"


class Clock:
    """The server's wall clock."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.offset_s = 0
        self.latest_s = 0.0
        self.move(0)

    @property
    def environ(self) -> dict[str, str]:
        """What the server has to be started with."""
        return {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            # Timers go by the monotonic clock, which does not jump.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def now_s(self) -> float:
        """What it shows; the latest it has shown is at least that."""
        now_s = time.time() + self.offset_s
        self.latest_s = max(self.latest_s, now_s)
        return now_s

    def move(self, by_s: int) -> None:
        """Jumps."""
        self.now_s()  # time passed since the last jump
        self.offset_s += by_s
        staged = self._file.with_suffix(".new")
        staged.write_text(f"{self.offset_s:+d}\n")
        staged.replace(self._file)
        self.now_s()


async def _campaign(server: ServerProcess, clock: Clock, plan: Plan, seed: int) -> Tally:
    tally, dice = Tally(), random.Random(seed)
    due: dict[str, float] = {}
    async with grpc.aio.insecure_channel(server.address) as channel:
        stubs = Stubs(channel)
        for jump in range(plan.jumps):
            waited = [f"w{jump}-{n}" for n in range(3)]
            members = [group_pb2.GroupMember(id=each) for each in waited]
            await stubs.groups.CreateGroup(
                group_service_pb2.CreateGroupRequest(
                    group_id=f"g{jump}", members=members, seal=True, no_expiry=True
                )
            )
            wait = Frames(stubs.results.WaitFor(pb.WaitForRequest(task_ids=waited)))
            group = Frames(stubs.results.Iterate(pb.IterateRequest(group_id=f"g{jump}")))
            await stubs.results.StoreResult(_kept(waited[0], f"g{jump}"))
            for number in range(RECORDS):
                life_s = dice.choice(LIVES_S)
                name = f"t{jump}-{number}"
                due[name] = clock.now_s() + life_s if life_s else float("inf")
                await stubs.results.StoreResult(_report(name, life_s))
            clock.move(dice.choice(JUMPS_S))
            tally.counts["jumps"] += 1
            for each in waited[1:]:
                await stubs.results.StoreResult(_kept(each, f"g{jump}"))
            for frames in (await wait.rest(), await group.rest()):
                if sorted(ids(frames)) != waited:
                    tally.faults.append(f"a stream over jump {jump} told of {ids(frames)}")
                tally.counts["streams over a jump"] += 1
            await _check(stubs, clock, due, tally)
    return tally


def _kept(task_id: str, group_id: str) -> pb.StoreResultRequest:
    request = reports.success(task_id, group_id=group_id)
    request.no_expiry = True
    return request


def _report(task_id: str, life_s: int) -> pb.StoreResultRequest:
    request = reports.success(task_id, task_id.encode())
    if life_s:
        request.ttl.CopyFrom(seconds(life_s))
    else:
        request.no_expiry = True
    return request


async def _check(stubs: Stubs, clock: Clock, due: dict[str, float], tally: Tally) -> None:
    """What is due is gone; what never was due is there. In between a jump back decides."""
    found = await stubs.results.BatchGetResults(pb.BatchGetResultsRequest(task_ids=due))
    now_s = clock.now_s()
    for meta in found.metas:
        when_s = due[meta.task_id]
        there = meta.existence == KNOWN
        tally.counts["records looked at"] += 1
        tally.counts["of them gone"] += not there
        if there and when_s < now_s - MARGIN_S:
            tally.faults.append(f"{meta.task_id} is there {now_s - when_s:.0f} s after its end")
        if not there and when_s > clock.latest_s + MARGIN_S:
            said = state_pb2.Existence.Name(meta.existence)
            tally.faults.append(f"{meta.task_id} is {said} {when_s - now_s:.0f} s before its end")
        if there and meta.value.data != meta.task_id.encode():
            tally.faults.append(f"{meta.task_id} has another value")


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan."""
    missing = why_not()
    if missing is not None:
        print(f"left out: {missing}")
        return Tally()
    with tempfile.TemporaryDirectory(prefix="clocks-") as directory:
        clock = Clock(Path(directory) / "clock")
        with ServerProcess(Path(directory), environ=clock.environ, program=plan.program) as server:
            return asyncio.run(_campaign(server, clock, plan, seed))


CAMPAIGN = Campaign(
    "clocks",
    "When the wall clock jumps, records are gone when their time is over and not before, and "
    "open streams tell everything once.",
    {
        Size.CI: Plan(jumps=30),
        Size.DEEP: Plan(jumps=50),
        Size.RELEASE: Plan(jumps=10_000),
    },
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
