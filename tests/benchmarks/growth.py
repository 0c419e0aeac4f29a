"""What an operation costs with more records on the disk: 10,000, 1,000,000, 10,000,000.

The stores are loaded ones (`stores`): the largest is used where it was built, the others are
built when they are missing. Ids are those of random records, so that every page is as likely.
The few thousand records that a run stores stay in them.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import uuid
from collections import defaultdict

from resultd.v1 import result_service_pb2 as pb
from tests.benchmarks import load as loader
from tests.benchmarks import stores
from tests.benchmarks.calls import SERVICE, load, measured, one_by_one
from tests.benchmarks.iterate import reader
from tests.benchmarks.processes import DidNotStart, Running, resultd
from tests.benchmarks.reports import report
from tests.benchmarks.stores import GROUP, KEPT, Wanted
from tests.benchmarks.table import Row, Size, at_most, left_out

_BUILT = 1_000_000
"""Records of the largest store that is built in the course of a run."""

_Seen = dict[str, list[float]]
_FIGURES = (
    ("store cpu", "StoreResult, 64 callers: server CPU a call", "µs"),
    ("store p50", "StoreResult, one caller: p50", "µs"),
    ("get cpu", "GetResult, 64 callers: server CPU a call", "µs"),
    ("get p50", "GetResult, one caller: p50", "µs"),
    ("iterate cpu", "Iterate: server CPU a result", "µs"),
    ("iterate took", "Iterate: time a result", "µs"),
)


async def run(size: Size) -> list[Row]:
    """All stores served at a time, rounds interleaved."""
    few, *more = (
        Wanted(n) for n in ((10_000, _BUILT, 10_000_000) if size is Size.FULL else (50, 100))
    )
    calls, alone, rounds = size.of(3_000, 128), size.of(400, 10), size.of(3, 1)
    passes = size.of(3, 1)  # one takes few ticks of the clock of CPU time
    seen: dict[Wanted, _Seen] = defaultdict(lambda: defaultdict(list))
    with stores.directory_for(keep=size is Size.FULL) as directory:
        async with contextlib.AsyncExitStack() as stack:
            servers, missing = {}, {}
            for wanted in (few, *more):
                data = stores.find(directory, wanted)
                try:
                    if data is None and wanted.records <= _BUILT:
                        data = await loader.build(directory, wanted, print)
                    if data is None:
                        missing[wanted] = wanted.absent()
                    else:
                        servers[wanted] = await stack.enter_async_context(resultd(data))
                except DidNotStart as error:
                    missing[wanted] = wanted.unusable(error)
            for server in servers.values():  # what it reads first comes from the disk
                await reader("grpc", server.address, GROUP)
            for _ in range(rounds):
                for wanted, server in servers.items():
                    await _measure(server, wanted, calls, alone, passes, seen[wanted])
    rows = []
    for key, work, unit in _FIGURES:
        for wanted in more:
            name = f"{wanted.records:,} records: {work}"
            if wanted in missing:
                rows.append(left_out(name, missing[wanted]))
                continue
            rows.append(Row(name, unit, seen[wanted][key], seen[few][key],
                            f"of {few.records:,} records", at_most(2)))  # fmt: skip
    return rows


async def _measure(
    server: Running, wanted: Wanted, calls: int, alone: int, passes: int, seen: _Seen
) -> None:
    for name, method, requests in (
        ("store", SERVICE + "StoreResult", _stores),
        ("get", SERVICE + "GetResult", _gets),
    ):
        spent = await load(server, method, requests(wanted, calls))
        seen[f"{name} cpu"].append(spent.server_s / measured(calls) * 1e6)
        took = await one_by_one(server, method, requests(wanted, alone))
        seen[f"{name} p50"].append(statistics.median(took) * 1e6)
    before_s = server.cpu_s()
    took_s = 0.0
    for _ in range(passes):
        took_s += (await reader("grpc", server.address, GROUP))["took_s"]
    read = passes * wanted.members
    seen["iterate cpu"].append((server.cpu_s() - before_s) / read * 1e6)
    seen["iterate took"].append(took_s / read * 1e6)


def _stores(_: Wanted, count: int) -> list[bytes]:
    """Reports of new tasks, that live as long as the others."""
    requests = []
    for _number in range(count):
        made = report(str(uuid.uuid4()))
        made.ttl.CopyFrom(KEPT)
        requests.append(made.SerializeToString())
    return requests


def _gets(wanted: Wanted, count: int) -> list[bytes]:
    numbers = (random.randrange(wanted.records) for _ in range(count))
    return [
        pb.GetResultRequest(task_id=wanted.task_id(number)).SerializeToString()
        for number in numbers
    ]
