"""A client process that lives long: `python -m tests.campaigns.leaks [--size 1]`.

20,000 times delay() and get(), 2,000 groups of 10 and 200 chords of 100 with a real worker.
Compares what the process holds after a warm-up of a twentieth with what it holds at the end,
and looks into the server for streams and waits that were left there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.celery_worker import ROOT, CeleryWorker
from tests.support.in_process import Served, serving
from tests.support.memory import MIB, anonymous_bytes
from tests.support.redis_server import RedisServer

SINGLES, GROUPS, CHORDS = 20_000, 2_000, 200
GROWTH_BYTES_MAX = 5 * MIB
# gRPC opens and closes a few of its own.
SPARE_DESCRIPTORS = 4
# For all of it; on a quiet machine it takes a sixth of that.
FULL_S = 3_600.0
START_S = 30.0


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
    seconds: float

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


async def run(size: float, directory: Path) -> Outcome:
    """Does `size` of it all."""
    began = time.monotonic()
    with RedisServer() as redis_server:
        async with serving() as served:
            url = f"resultd://{served.address}"
            worker = CeleryWorker(
                directory, broker=redis_server.url, backend=url, pool="threads", concurrency=4
            )
            # Its server lives in this loop, which goes on meanwhile.
            await asyncio.to_thread(worker.start)
            try:
                counts = [str(max(1, round(size * n))) for n in (SINGLES, GROUPS, CHORDS)]
                async with _client(redis_server.url, url, *counts) as client:
                    limit_s = START_S + FULL_S * size
                    warm = await _held(client, served, worker, limit_s)
                    end = await _held(client, served, worker, limit_s)
            finally:
                await asyncio.to_thread(worker.stop)
    return Outcome(warm, end, time.monotonic() - began)


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


async def main() -> int:
    """Runs it and prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.leaks", description=__doc__)
    parser.add_argument("--size", type=float, default=1.0, help="0.05 is a twentieth")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="leaks-") as directory:
        outcome = await run(arguments.size, Path(directory))
    warm, end = outcome.warm, outcome.end
    for name in ("bytes", "descriptors", "threads"):
        print(f"client's {name}: {warm.client[name]:,} after the warm-up, {end.client[name]:,}")
    print(f"worker's bytes: {warm.worker_bytes:,} after the warm-up, {end.worker_bytes:,}")
    print(f"(streams, subscriptions, ids) on the server: {end.waiting}")
    print(f"{outcome.seconds:.0f} s; leaks: {outcome.leaks() or 'none'}")
    return 1 if outcome.leaks() else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
