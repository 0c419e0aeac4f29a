"""StoreResult and BatchStoreResults, 300 B of value, durable: server CPU, and results a second."""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator

from tests.benchmarks.calls import SERVICE, Load, load, measured
from tests.benchmarks.orders import Partner, partner
from tests.benchmarks.processes import Running, batch_floor, echo, resultd
from tests.benchmarks.reports import BATCH, batch, report
from tests.benchmarks.table import Row, Size, at_least, at_most, figure_at_most, left_out
from tests.support.redis_server import RedisServer, why_no_redis

_BATCH_CALLERS = 8
_METHOD = "BatchStoreResults"
_ECHO = "bare grpc.aio echo of the same bytes"
_KEPT = "the same, answered once 4 KiB are on disk for all that came together"
_PUTS = f"raw LMDB puts, {BATCH} a durable commit"
_LEAST = "the least of this: parse, join, one durable write, LMDB puts; no rules"
_PIPELINE = f"redis-py pipelines of SET EX + PUBLISH, {BATCH} each, appendfsync always"
_PACKED = "the same commands packed beforehand, answers not parsed"

_Seen = dict[str, list[float]]


async def run(size: Size) -> list[Row]:
    """Singles beside an echo of the same bytes; batches beside LMDB itself and Redis."""
    calls, batches, rounds = size.of(6_000, 256), size.of(240, 10), size.of(5, 1)
    seen: _Seen = defaultdict(list)
    numbers = itertools.count()
    async with resultd() as server, echo() as bare, batch_floor() as floor:
        with partner("tests.benchmarks.lmdb_puts") as puts, _redis() as redis:
            for _ in range(rounds):
                await _singles(server, bare, numbers, calls, seen)
                await _batches("batch ", server, SERVICE + _METHOD, numbers, batches, seen)
                await _batches("least ", floor, "/Floor/Store", numbers, batches, seen)
                for key, value in puts.ask("put", batches * BATCH).items():
                    seen[f"puts {key}"].append(value)
                if redis is not None:
                    for how in ("pipelined", "packed"):
                        answer = redis.ask(how, batches, _BATCH_CALLERS)
                        seen[how].append(answer["per_s"])
    return [*_rows(seen), *_redis_rows(seen)]


def _rows(seen: _Seen) -> list[Row]:
    single, many = "StoreResult, 64 callers", f"BatchStoreResults of {BATCH}"
    return [
        Row(f"{single}: server CPU a call", "µs", seen["cpu"], seen["echo cpu"], _ECHO,
            at_most(1.3)),
        Row(f"{single}: server CPU a call", "µs", seen["cpu"], seen["kept cpu"], _KEPT),
        Row(f"{single}: calls", "1/s", seen["rate"], seen["echo rate"], _ECHO),
        Row(f"{single}: calls", "1/s", seen["rate"], seen["kept rate"], _KEPT),
        Row(f"{single}: CPU of who calls, a call", "µs", seen["caller"], seen["echo caller"],
            _ECHO),
        Row(f"{many}: server CPU a result", "µs", seen["batch cpu"], seen["puts cpu_us"], _PUTS,
            figure_at_most(20)),
        Row(f"{many}: server CPU a result", "µs", seen["batch cpu"], seen["least cpu"], _LEAST),
        Row(f"{many}: results", "1/s", seen["batch rate"], seen["puts per_s"], _PUTS),
    ]  # fmt: skip


def _redis_rows(seen: _Seen) -> list[Row]:
    work = f"BatchStoreResults of {BATCH}: results"
    missing = why_no_redis()
    if missing is not None:
        return [left_out(f"{work}, beside {_PIPELINE}", missing)]
    return [
        Row(work, "1/s", seen["batch rate"], seen["pipelined"], _PIPELINE, at_least(1)),
        Row(work, "1/s", seen["batch rate"], seen["packed"], _PACKED),
    ]


async def _singles(
    server: Running, bare: Running, numbers: Iterator[int], calls: int, seen: _Seen
) -> None:
    for prefix, running, method in (
        ("", server, SERVICE + "StoreResult"),
        ("echo ", bare, "/Echo/Echo"),
        ("kept ", bare, "/Echo/KeptEcho"),
    ):
        requests = [report(f"task-{next(numbers)}").SerializeToString() for _ in range(calls)]
        _note(seen, prefix, await load(running, method, requests), measured(calls))


async def _batches(
    prefix: str, running: Running, method: str, numbers: Iterator[int], batches: int, seen: _Seen
) -> None:
    requests = [
        batch([f"task-{next(numbers)}" for _ in range(BATCH)]).SerializeToString()
        for _ in range(batches)
    ]
    spent = await load(running, method, requests, callers=_BATCH_CALLERS)
    _note(seen, prefix, spent, measured(batches) * BATCH)


def _note(seen: _Seen, prefix: str, spent: Load, count: int) -> None:
    seen[f"{prefix}cpu"].append(spent.server_s / count * 1e6)
    seen[f"{prefix}caller"].append(spent.caller_s / count * 1e6)
    seen[f"{prefix}rate"].append(count / spent.took_s)


@contextlib.contextmanager
def _redis() -> Iterator[Partner | None]:
    if why_no_redis() is not None:
        yield None
        return
    with (
        RedisServer(appendfsync="always") as server,
        partner("tests.benchmarks.redis_reports", server.url) as reporting,
    ):
        yield reporting
