"""A client process that lives long: `python -m tests.campaigns.leaks --size ci`.

The deep size does 20,000 times delay() and get(), 2,000 groups of 10 and 200 chords of 100 with
a real worker. Compares what the process holds after a warm-up of a twentieth with what it holds
at the end, and looks into the server for streams and waits that were left there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaigns._record import Campaign, Size, Tally
from tests.support.celery_worker import ROOT, CeleryWorker
from tests.support.in_process import Served, serving
from tests.support.memory import MIB, anonymous_bytes
from tests.support.redis_server import RedisServer, why_no_redis

SINGLES, GROUPS, CHORDS = 20_000, 2_000, 200
GROWTH_BYTES_MAX = 5 * MIB
# gRPC opens and closes a few of its own.
SPARE_DESCRIPTORS = 4
# For all of it; on a quiet machine it takes a sixth of that.
FULL_S = 3_600.0
START_S = 30.0


@dataclass(frozen=True)
class Plan:
    """How much of it all, 1 for the whole; and whether the client is one that lets nothing go."""

    size: float
    hoarding: bool = False

    def counts(self) -> list[int]:
        """How many single tasks, groups and chords."""
        return [max(1, round(self.size * n)) for n in (SINGLES, GROUPS, CHORDS)]


@dataclass(frozen=True)
class Held:
    """What the client holds at one time, and what the server keeps for it."""

    client: dict[str, Any]
    waiting: tuple[int, int, int]
    worker_bytes: int


@dataclass(frozen=True)
class Outcome:
    """What was held after the warm-up and at the end."""

    warm: Held
    end: Held

    @property
    def growth_bytes(self) -> int:
        """Memory the client has more."""
        grown: int = self.end.client["bytes"] - self.warm.client["bytes"]
        return grown

    def leaks(self) -> list[str]:
        """What was not let go, in words."""
        found = []
        if self.growth_bytes > GROWTH_BYTES_MAX:
            found.append(f"memory grew by {self.growth_bytes / MIB:.1f} MiB")
        for what in ("registries", "objects"):
            left = {name: number for name, number in self.end.client[what].items() if number}
            if left:
                found.append(f"{what}: {left}")
        if self.end.client["threads"] > self.warm.client["threads"]:
            found.append(f"threads: {self.end.client['threads']}")
        more = self.end.client["descriptors"] - self.warm.client["descriptors"]
        if more > SPARE_DESCRIPTORS:
            found.append(f"{more} file descriptors more")
        if self.end.waiting != (0, 0, 0):
            found.append(f"(streams, subscriptions, ids) on the server: {self.end.waiting}")
        return found


async def live(plan: Plan, directory: Path) -> Outcome:
    """Does `size` of it all."""
    with RedisServer() as redis_server:
        async with serving() as served:
            url = f"resultd://{served.address}"
            worker = CeleryWorker(
                directory, broker=redis_server.url, backend=url, pool="threads", concurrency=4
            )
            # Its server lives in this loop, which goes on meanwhile.
            await asyncio.to_thread(worker.start)
            try:
                hoarding = ("hoarding",) if plan.hoarding else ()
                counts = (*map(str, plan.counts()), *hoarding)
                async with _client(redis_server.url, url, *counts) as client:
                    limit_s = START_S + FULL_S * plan.size
                    warm = await _held(client, served, worker, limit_s)
                    end = await _held(client, served, worker, limit_s)
            finally:
                await asyncio.to_thread(worker.stop)
    return Outcome(warm, end)


@contextlib.asynccontextmanager
async def _client(*arguments: str) -> AsyncIterator[Process]:
    command = [sys.executable, "-m", "tests.support.celery_leaker", *arguments]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=PIPE, stdout=PIPE)
    try:
        yield process
        await asyncio.wait_for(process.wait(), START_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _held(client: Process, served: Served, worker: CeleryWorker, limit_s: float) -> Held:
    assert client.stdout is not None
    assert client.stdin is not None
    line = await asyncio.wait_for(client.stdout.readline(), limit_s)
    assert line, f"the client ended early\n{worker.log()[-2000:]}"
    # What the client let go a moment ago the server has heard of soon.
    with contextlib.suppress(AssertionError):
        await served.idle()
    held = Held(json.loads(line), served.waiting(), anonymous_bytes(worker.pid))
    client.stdin.write(b"\n")
    await client.stdin.drain()
    return held


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan, where there is a broker. It is always the same: a seed changes nothing."""
    tally = Tally()
    reason = why_no_redis()
    if reason is not None:
        print(f"leaks: left out, {reason}")
        return tally
    with tempfile.TemporaryDirectory(prefix="leaks-") as directory:
        outcome = asyncio.run(live(plan, Path(directory)))
    tally.counts.update(dict(zip(("gets", "groups", "chords"), plan.counts(), strict=True)))
    tally.figures["growth, MiB"] = round(outcome.growth_bytes / MIB, 1)
    worker_bytes = outcome.end.worker_bytes - outcome.warm.worker_bytes
    tally.figures["growth of the worker, MiB"] = round(worker_bytes / MIB, 1)
    tally.faults += outcome.leaks()
    return tally


CAMPAIGN = Campaign(
    "leaks",
    "A client that calls, waits and lets go for long holds at the end what it held at first: "
    "memory, descriptors, threads, results; and nothing is left for it on the server.",
    {Size.CI: Plan(0.02), Size.DEEP: Plan(1.0), Size.RELEASE: Plan(10.0)},
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
