"""Builds a loaded store: `python -m tests.benchmarks.load --records N [--into DIR]`.

Through a real server, in batches, so that whatever a server writes is there. It goes on where
it was broken off; a store that is whole is left alone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from resultd.v1 import group_service_pb2
from resultd.v1 import result_service_pb2 as pb
from tests.benchmarks import stores
from tests.benchmarks.processes import resultd
from tests.benchmarks.stores import Kind, Wanted
from tests.benchmarks.stubs import groups, results

_BATCH = 1_000
_CALLS_AT_ONCE = 4
_SHARE = 50_000
"""Records between two notes of how far it came."""


async def build(
    directory: Path, wanted: Wanted, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Builds what is missing of a store; its data directory."""
    data = directory / wanted.name / "data"
    data.mkdir(parents=True, exist_ok=True)
    start = stores.loaded(directory, wanted)
    if start >= wanted.records:
        return data
    async with resultd(data) as server, grpc.aio.insecure_channel(server.address) as channel:
        # As long as the records: of itself it would go after a day, and take its index along.
        declared = group_service_pb2.CreateGroupRequest(group_id=stores.GROUP, ttl=stores.KEPT)
        await groups(channel).CreateGroup(declared)
        began_s, first = time.monotonic(), start
        while start < wanted.records:
            stop = min(start + _SHARE, wanted.records)
            numbers = iter(range(start, stop))
            await asyncio.gather(*(_send(channel, wanted, numbers) for _ in range(_CALLS_AT_ONCE)))
            start = stop
            if start == wanted.records:
                sealing = group_service_pb2.SealGroupRequest(
                    group_id=stores.GROUP, expected_total=wanted.members
                )
                sealed = await groups(channel).SealGroup(sealing)
                if not sealed.group.counts.complete:
                    raise RuntimeError(f"{wanted.name} lacks members: delete it and start again")
            stores.note_loaded(directory, wanted, start)
            rate = (start - first) / (time.monotonic() - began_s)
            say(f"{wanted.name}: {start:,} of {wanted.records:,}, {rate:,.0f}/s")
    return data


async def _send(channel: grpc.aio.Channel, wanted: Wanted, numbers: Iterator[int]) -> None:
    while chosen := list(itertools.islice(numbers, _BATCH)):
        reports = [wanted.report(number) for number in chosen]
        answer = await results(channel).BatchStoreResults(
            pb.BatchStoreResultsRequest(reports=reports)
        )
        for outcome in answer.outcomes:
            if outcome.HasField("error"):
                raise RuntimeError(f"a record was refused: {outcome.error.message}")


def main() -> None:
    """Builds what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.load", description=__doc__)
    parser.add_argument("--records", type=int, required=True, help="how many")
    parser.add_argument("--one-group", action="store_true", help="all members of one group")
    parser.add_argument("--into", type=Path, default=stores.kept_directory(), metavar="DIR",
                        help="where stores are kept: $BENCH_DIR, %(default)s")  # fmt: skip
    said = parser.parse_args()
    wanted = Wanted(said.records, Kind.GROUP if said.one_group else Kind.RECORDS)
    data = asyncio.run(build(said.into, wanted, lambda line: print(line, flush=True)))
    print(f"whole: {data}")


if __name__ == "__main__":
    # So that the server is ended with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    main()
