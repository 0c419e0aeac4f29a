"""Celery on resultd beside Celery on its own Redis backend: one program, one broker.

A resultd server has what it stored on the disk before it says so. The fair yardstick is a
Redis that does the same, `appendfsync always`; where something is stored, the usual Redis,
which keeps nothing on the disk, stands beside it.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from resultd.testing import Server
from tests.benchmarks import bare_chord
from tests.benchmarks.celery_app import BROKER, NOBODY, RESULTS
from tests.benchmarks.orders import Partner, partner
from tests.benchmarks.processes import echo
from tests.benchmarks.table import Row, Size, Target, at_most, left_out
from tests.support.celery_worker import CeleryWorker
from tests.support.redis_server import RedisServer, why_no_redis

_MODULE = "tests.benchmarks.celery_client"
_ECHOES = "tests.benchmarks.echo_client"
_APP = "tests.benchmarks.celery_app"

OURS = "resultd"
DURABLE = "Celery on Redis, appendfsync always"
USUAL = "Celery on Redis, nothing on disk"
FLOOR = "Celery itself, its results in a dict"
BARE_CHORDS = "Celery, each part of a chord a bare call, 4 KiB on disk"
ECHO = "as many bare unary echoes, blocking stub"


class _Answer(NamedTuple):
    """A row of each yardstick: what is taken from the answers, and what is aimed at."""

    key: str
    work: str
    unit: str
    #: Microseconds, or whatever an answer has, in one unit.
    divisor: float
    targets: Mapping[str, Target] = MappingProxyType({})
    #: The key of a yardstick's answer, where it is another.
    their_key: str = ""
    #: Whose figure is compared.
    of: str = OURS


@dataclass(frozen=True)
class _Case:
    """What is asked of each side, and the rows its answers make."""

    order: str
    argument: int
    rows: tuple[_Answer, ...]
    beside: tuple[str, ...] = (USUAL,)
    #: What the yardsticks are asked, where it is something else.
    their_order: str = ""
    #: Asked of a process that has done nothing else.
    fresh: bool = False
    #: What else the order says.
    further: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        return "" if self.order == "own_group" else "Celery: "

    @property
    def sides(self) -> tuple[str, ...]:
        return (OURS, *self.beside)

    def order_for(self, side: str) -> tuple[str, tuple[int, ...]]:
        order = self.order if side == OURS else self.their_order or self.order
        return ("calls" if side == ECHO else order), (self.argument, *self.further)


_STORES = (DURABLE, USUAL)
"""It stores: how durable that is matters."""


def _cases(size: Size) -> list[_Case]:
    few, thousand, many = size.of(200, 4), size.of(1_000, 8), size.of(5_000, 20)
    ten = size.of(10, 2)
    fresh = size is Size.FULL  # a process takes a second to begin
    ms, s = ("ms", 1e3), ("s", 1e6)
    # Chords of one part that reach both children of a worker, and so many small ones together.
    on_bare_calls = f"chord of {thousand:,} on bare calls"
    first, chords = size.of(8, 1), size.of(200, 2)
    return [
        _Case("round_trip", few, (
            _Answer("p50", "delay().get(), p50", *ms), _Answer("p99", "delay().get(), p99", *ms),
        ), _STORES),
        _Case("store", few, (_Answer("p50", "store_result()", *ms),), _STORES),
        _Case("chord", thousand, (
            _Answer("stored", f"chord of {thousand:,}: last part stored → body called", *ms,
                    {DURABLE: at_most(0.5)}),
            _Answer("body", f"chord of {thousand:,}: last part's end → body called", *ms),
            _Answer("own", f"chord of {thousand:,}: last part's end → body being published", *ms),
            _Answer("stored", f"{on_bare_calls}: last part stored → body called", *ms,
                    of=BARE_CHORDS),
            _Answer("body", f"{on_bare_calls}: last part's end → body called", *ms,
                    of=BARE_CHORDS),
            _Answer("took", f"chord of {thousand:,}: the whole", *s),
        ), (*_STORES, BARE_CHORDS), further=(first, max(size.of(3, 1), chords // thousand))),
        _Case("chord", ten, (
            _Answer("body", f"chord of {ten}: last part's end → body called", *ms),
            _Answer("own", f"chord of {ten}: last part's end → body being published", *ms),
            _Answer("body", f"chord of {ten} on bare calls: last part's end → body called", *ms,
                    of=BARE_CHORDS),
        ), (*_STORES, BARE_CHORDS), further=(first, max(1, chords // ten))),
        _Case("get_one", few, (_Answer("p50", "get() of a ready result", *ms),)),
        _Case("get_unseen", many, (
            _Answer("took", f"{many:,} get()s of ready results, ids from elsewhere", *s,
                    {ECHO: at_most(1.5)}),
        ), (USUAL, ECHO)),
        _Case("published", many, (
            _Answer("took", f"{many:,} get()s of ready results, published here", *s,
                    {USUAL: at_most(0.25)}),
            _Answer("held", f"{many:,} published, pending: subscriptions at the server", "", 1),
            _Answer("mib", f"{many:,} published, pending: the client's memory", "MiB", 1),
        ), fresh=fresh),
        _Case("waited", many, (
            _Answer("never", "get(timeout=0.2) of what never comes", *ms),
            _Answer("held", f"{many:,} waited for in one get(): subscriptions at the server", "",
                    1),
            _Answer("mib", f"{many:,} waited for in one get(): the client's memory", "MiB", 1),
        ), fresh=fresh),
        _Case("group_get", thousand, (
            _Answer("took", f"GroupResult.get() of {thousand:,} ready", *ms),
        )),
        _Case("group_get", many, (
            _Answer("took", f"GroupResult.get() of {many:,} ready", *ms, {USUAL: at_most(0.4)}),
        ), (USUAL, FLOOR)),
        _Case("own_group", many, (
            _Answer("get", f"client.group(id).get() of {many:,} ready, no Celery", *ms,
                    {USUAL: at_most(0.1)}, "took"),
            _Answer("iterate", f"client.group(id).iterate() of {many:,} ready, no Celery", *ms,
                    {USUAL: at_most(0.1)}, "took"),
        ), (USUAL, FLOOR), their_order="group_get"),
        _Case("group_publish", thousand, (
            _Answer("took", f"group of {thousand:,}: apply_async()", *ms),
        )),
    ]  # fmt: skip


async def run(size: Size) -> list[Row]:
    """Rounds of every case, its sides one right after the other, in turn the first.

    It blocks the loop, so that a signal reaches it and nothing it started stays behind.
    """
    missing = why_no_redis()
    if missing is not None:
        return [left_out("Celery on either backend", missing)]
    cases, rounds = _cases(size), size.of(3, 1)
    seen: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    async with echo() as bare:
        with _bench(bare.address) as bench:
            for number in range(rounds):
                for place, case in enumerate(cases):
                    turn = number % len(case.sides)
                    for side in (*case.sides[turn:], *case.sides[:turn]):
                        for key, value in bench.ask(side, case).items():
                            seen[place, side, key].append(value)
    rows = []
    for place, case in enumerate(cases):
        for answer in case.rows:
            ours = [value / answer.divisor for value in seen[place, answer.of, answer.key]]
            for side in case.beside:
                if side == answer.of:
                    continue
                theirs = seen[place, side, answer.their_key or answer.key]
                if not theirs:  # an echo has no subscriptions
                    continue
                yardstick = [value / answer.divisor for value in theirs]
                target = answer.targets.get(side)
                rows.append(
                    Row(case.title + answer.work, answer.unit, ours, yardstick, side, target)
                )
    return rows


class _Bench:
    """The broker, and of each side a backend, a worker and a client."""

    def __init__(self, broker: RedisServer, backends: dict[str, str]) -> None:
        self._broker = broker
        self._urls = {
            side: (broker.database(number), url)
            for number, (side, url) in enumerate(backends.items())
        }
        self._clients: dict[str, Partner] = {}

    def start(self, stack: contextlib.ExitStack, directory: Path, echoes: str) -> None:
        """Starts workers, two at a time, and clients."""
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
            if not url.startswith("cache")  # nobody but its own process sees what is there
        ]
        for worker in workers:
            stack.callback(worker.kill)
        with ThreadPoolExecutor(2) as starting:
            list(starting.map(CeleryWorker.start, workers))
        for side, urls in self._urls.items():
            self._clients[side] = stack.enter_context(partner(_MODULE, *urls))
        self._clients[ECHO] = stack.enter_context(partner(_ECHOES, echoes))

    def ask(self, side: str, case: _Case) -> dict[str, float]:
        """One answer."""
        order, numbers = case.order_for(side)
        if side == ECHO:
            return self._clients[side].ask(order, *numbers)
        try:
            if not case.fresh:
                return self._clients[side].ask(order, *numbers)
            with partner(_MODULE, *self._urls[side]) as fresh:
                return fresh.ask(order, *numbers)
        finally:
            with self._broker.client(list(self._urls).index(side)) as broker:
                broker.delete(NOBODY)


@contextlib.contextmanager
def _bench(echoes: str) -> Iterator[_Bench]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(RedisServer())
        bench = _Bench(
            broker,
            {
                OURS: stack.enter_context(Server()).url,
                DURABLE: stack.enter_context(RedisServer(appendfsync="always")).url,
                USUAL: (usual := stack.enter_context(RedisServer())).url,
                BARE_CHORDS: bare_chord.url(usual.database(1), echoes),
                FLOOR: "cache+memory://",
            },
        )
        bench.start(stack, directory, echoes)
        yield bench
