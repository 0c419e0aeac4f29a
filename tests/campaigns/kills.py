"""`kill -9` under load, again and again: `python -m tests.campaigns.kills --size deep --seed S`.

16 callers write down what was acknowledged: records, batches, groups, tombstones. 4 streams
follow groups over all lives of the server. After each kill the store is looked at as it lies
there, then served again and asked for everything.
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

from resultd.v1 import result_service_pb2 as pb
from resultd_server.engine import audit
from tests.campaigns._record import Campaign, Size, Tally
from tests.support.acknowledged import BATCH_MAX, CALL_S, VALUE_BYTES_MAX, Load, done_in
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

STREAMS = 4


@dataclass(frozen=True)
class Plan:
    """How often the server is killed, or oftener.

    Attributes:
        acknowledged: as many writes at least.
        store_kills: after so many a new store is begun: all of one is read after each kill.
        value_bytes: the largest a value is.
        batch: the most results a call has.
        latest_s: kills come up to so late: before, while and after checkpoints, one a second.
        program: the server, or one with a fault planted.
    """

    kills: int
    acknowledged: int = 0
    store_kills: int = 20
    value_bytes: int = VALUE_BYTES_MAX
    batch: int = BATCH_MAX
    latest_s: float = 2.5
    program: tuple[str, ...] = ("resultd_server",)


class _Follower:
    """A stream over one group, resumed in each life of the server where it was."""

    def __init__(self, number: int, tally: Tally) -> None:
        self.group_id = f"g{number}"
        self.position = 0
        self._after = b""
        self._tally = tally

    async def follow(self, address: str, until_position: int | None = None) -> None:
        """Reads until the server is gone, or has told of so many members."""
        if until_position is not None and self.position >= until_position:
            return
        async with grpc.aio.insecure_channel(address) as channel:
            request = pb.IterateRequest(group_id=self.group_id, after=self._after)
            timeout_s = CALL_S if until_position is not None else None
            stream = Stubs(channel).results.Iterate(request, timeout=timeout_s)
            try:
                async for frame in stream:
                    self._take(frame)
                    if until_position is not None and self.position >= until_position:
                        return
            except grpc.aio.AioRpcError as error:
                if until_position is not None:
                    self._fault(f"ended with {error.code().name}")
            finally:
                stream.cancel()

    def _take(self, frame: pb.IterateResponse) -> None:
        for event in frame.events:
            if event.position != self.position + 1:
                self._fault(f"position {event.position}")
            self.position = event.position
            self._tally.counts["events streamed"] += 1
        if frame.after:
            self._after = frame.after

    def _fault(self, what: str) -> None:
        self._tally.faults.append(f"stream of {self.group_id} after {self.position}: {what}")


async def _life(
    server: ServerProcess, load: Load, followers: list[_Follower], after_s: float
) -> None:
    """The server is loaded, streamed from, and killed."""
    work = [load.run(server.address), *(each.follow(server.address) for each in followers)]
    running = asyncio.gather(*work)
    await asyncio.sleep(after_s)
    await asyncio.to_thread(server.kill)
    await running


async def _store(directory: Path, plan: Plan, dice: random.Random, tally: Tally) -> None:
    """One store: killed again and again, and looked at."""
    load = Load(dice.randrange(2**32), plan.value_bytes, plan.batch)
    followers = [_Follower(number, tally) for number in range(STREAMS)]
    flags = ("--log-level", "error", "--workers", "1")
    server = ServerProcess(directory, *flags, program=plan.program).start()
    kills = tally.counts["kills"]
    for number in range(kills, kills + plan.store_kills):
        after_s = dice.uniform(0.1, plan.latest_s)
        before = load.acknowledged
        await _life(server, load, followers, after_s)
        tally.counts["kills"] += 1
        tally.counts["writes acknowledged"] += load.acknowledged - before
        verdict = audit.verify(directory / "data", time.time_ns() // 1_000_000)
        tally.counts["rows looked at"] += verdict.rows
        tally.counts["journal entries done again"] += verdict.entries
        for damage in verdict.damages:
            tally.faults.append(f"kill {number}, after {after_s:.2f} s: {' '.join(damage)}")
        server.start()
        for line in await load.missing(server.address):
            tally.faults.append(f"kill {number}, after {after_s:.2f} s: {line}")
        if _done(plan, tally):
            break
    await _catch_up(server, followers)
    server.stop()


def _done(plan: Plan, tally: Tally) -> bool:
    counts = tally.counts
    return counts["kills"] >= plan.kills and counts["writes acknowledged"] >= plan.acknowledged


async def _catch_up(server: ServerProcess, followers: list[_Follower]) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        for each in followers:
            await each.follow(server.address, await done_in(Stubs(channel), each.group_id))


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan."""
    tally, dice = Tally(), random.Random(seed)
    while not _done(plan, tally):
        with tempfile.TemporaryDirectory(prefix="kills-") as directory:
            asyncio.run(_store(Path(directory), plan, dice, tally))
    return tally


CAMPAIGN = Campaign(
    "kills",
    "A server that is killed loses nothing it acknowledged, leaves no half of a group and nothing "
    "that cannot be read; streams go on with the next event.",
    {
        Size.CI: Plan(kills=20),
        Size.DEEP: Plan(8, 200_000, store_kills=1, value_bytes=100, batch=800, latest_s=8.0),
        Size.RELEASE: Plan(kills=2_000, acknowledged=20_000_000),
    },
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
