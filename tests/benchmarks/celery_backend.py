"""Celery on resultd beside Celery on its own Redis backend: one program, one broker.

A resultd server has what it stored on the disk before it says so. The fair yardstick is a
Redis that does the same, `appendfsync always`; where something is stored, the usual Redis,
which keeps nothing on the disk, stands beside it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from resultd.testing import Server
from tests.benchmarks.celery_app import BROKER, NOBODY, RESULTS
from tests.benchmarks.table import Row, Size
from tests.support.celery_worker import CeleryWorker
from tests.support.redis_server import RedisServer

_MODULE = "tests.benchmarks.celery_client"
_APP = "tests.benchmarks.celery_app"

OURS = "resultd"
DURABLE = "Redis, appendfsync always"
USUAL = "Redis, nothing on disk"


@dataclass(frozen=True)
class _Case:
    """What is asked of each side, and the rows its answers make."""

    order: str
    argument: int
    #: (key of the answer, words of the row, unit, microseconds or whatever it is in one unit)
    rows: tuple[tuple[str, str, str, float], ...]
    #: It stores: how durable that is matters.
    stores: bool = False
    #: Asked of a process that has done nothing else.
    fresh: bool = False

    @property
    def sides(self) -> tuple[str, ...]:
        return (OURS, DURABLE, USUAL) if self.stores else (OURS, USUAL)


def _cases(size: Size) -> list[_Case]:
    few, thousand, many = size.of(200, 4), size.of(1_000, 8), size.of(5_000, 20)
    ms, s = ("ms", 1e3), ("s", 1e6)
    return [
        _Case("round_trip", few, (
            ("p50", "delay().get(), p50", *ms), ("p99", "delay().get(), p99", *ms),
        ), stores=True),
        _Case("store", few, (("p50", "store_result()", *ms),), stores=True),
        _Case("chord", thousand, (
            ("body", f"chord of {thousand:,}: last part's end → body called", *ms),
            ("took", f"chord of {thousand:,}: the whole", *s),
        ), stores=True),
        _Case("get_one", few, (("p50", "get() of a ready result", *ms),)),
        _Case("get_unseen", many, (
            ("took", f"{many:,} get()s of ready results, ids from elsewhere", *s),
        )),
        _Case("published", many, (
            ("took", f"{many:,} get()s of ready results, published here", *s),
            ("held", f"{many:,} published, pending: subscriptions at the server", "", 1),
            ("mib", f"{many:,} published, pending: the client's memory", "MiB", 1),
        ), fresh=True),
        _Case("waited", many, (
            ("never", "get(timeout=0.2) of what never comes", *ms),
            ("held", f"{many:,} waited for in one get(): subscriptions at the server", "", 1),
            ("mib", f"{many:,} waited for in one get(): the client's memory", "MiB", 1),
        ), fresh=True),
        _Case("group_get", thousand, (
            ("took", f"GroupResult.get() of {thousand:,} ready", *ms),
        )),
        _Case("group_get", many, (("took", f"GroupResult.get() of {many:,} ready", *ms),)),
        _Case("group_publish", thousand, (
            ("took", f"group of {thousand:,}: apply_async()", *ms),
        )),
    ]  # fmt: skip


async def run(size: Size) -> list[Row]:
    """Rounds of every case, its sides one right after the other, in turn the first.

    It blocks the loop, so that a signal reaches it and nothing it started stays behind.
    """
    cases, rounds = _cases(size), size.of(5, 1)
    seen: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    with _bench() as bench:
        for number in range(rounds):
            for place, case in enumerate(cases):
                turn = number % len(case.sides)
                for side in (*case.sides[turn:], *case.sides[:turn]):
                    for key, value in bench.ask(side, case).items():
                        seen[place, side, key].append(value)
    rows = []
    for place, case in enumerate(cases):
        for key, work, unit, divisor in case.rows:
            figures = {s: [v / divisor for v in seen[place, s, key]] for s in case.sides}
            rows += [
                Row(f"Celery: {work}", unit, figures[OURS], figures[side], f"Celery on {side}")
                for side in case.sides[1:]
            ]
    return rows


class _Bench:
    """The broker, and of each side a backend, a worker and a client."""

    def __init__(self, broker: RedisServer, backends: dict[str, str]) -> None:
        self._broker = broker
        self._urls = {
            side: (broker.database(number), url)
            for number, (side, url) in enumerate(backends.items())
        }
        self._clients: dict[str, _Client] = {}

    def start(self, stack: contextlib.ExitStack, directory: Path) -> None:
        """Starts workers and clients, all at a time."""
        workers = [
            CeleryWorker(
                directory,
                broker=broker,
                backend=url,
                app=_APP,
                environment={BROKER: broker, RESULTS: url},
                name=f"worker-{number}",
            )
            for number, (broker, url) in enumerate(self._urls.values())
        ]
        for worker in workers:
            stack.callback(worker.kill)
        with ThreadPoolExecutor() as starting:
            list(starting.map(CeleryWorker.start, workers))
        for side, urls in self._urls.items():
            self._clients[side] = stack.enter_context(_client(*urls))

    def ask(self, side: str, case: _Case) -> dict[str, float]:
        """One answer."""
        order = (case.order, case.argument)
        try:
            if not case.fresh:
                return self._clients[side].ask(order)
            with _client(*self._urls[side]) as fresh:
                return fresh.ask(order)
        finally:
            with self._broker.client(list(self._urls).index(side)) as broker:
                broker.delete(NOBODY)


@contextlib.contextmanager
def _bench() -> Iterator[_Bench]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(RedisServer())
        bench = _Bench(
            broker,
            {
                OURS: stack.enter_context(Server()).url,
                DURABLE: stack.enter_context(RedisServer(appendfsync="always")).url,
                USUAL: stack.enter_context(RedisServer()).url,
            },
        )
        bench.start(stack, directory)
        yield bench


class _Client:
    """A process that takes orders."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, order: tuple[str, int]) -> dict[str, float]:
        """Gives an order and waits for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self.line())
        return answer

    def line(self) -> str:
        """The next line; raises RuntimeError where the process ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a client ended with code {self._process.wait()}")
        return line


@contextlib.contextmanager
def _client(broker: str, backend: str) -> Iterator[_Client]:
    command = [sys.executable, "-m", _MODULE, broker, backend]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            client = _Client(process)
            client.line()
            yield client
        finally:
            process.kill()
