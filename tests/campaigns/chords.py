"""Chords while everything is killed: `python -m tests.campaigns.chords --size ci --seed 1`.

Chords run on real workers while children of workers, whole workers and the result server are
killed at random and started again. Afterwards every chord's body has to have run with all its
parts in order, its result has to be stored once, and each publication of a body beyond its
first has to be explained by a death between publishing and saying so.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import celery

from resultd import testing
from resultd.v1 import group_pb2
from tests.campaigns import chord_tasks
from tests.campaigns._record import Campaign, Size, Tally
from tests.campaigns.chord_verdict import Death, Outage, Verdict, judge
from tests.support.celery_worker import CeleryWorker
from tests.support.redis_server import RedisServer, why_no_redis

#: Seconds between two looks for messages that the broker has lost.
LOOK_S = 2.0

LOG_CHARS = 20_000
"""What is shown of the workers' log where a law was broken."""


@dataclass(frozen=True)
class Plan:
    """What is run and what is done to it.

    Attributes:
        chords, members: how many, and of how many parts (at least, at most).
        seconds: no chord is begun, and nothing killed, after this.
        settle_s: how long after the last fault all bodies have to be there.
        parallel: chords under way at a time.
        workers, concurrency: prefork workers, and children of each.
        lease_s: `chord_lease`.
        pause_s: seconds between faults (at least, at most).
        away_s: how long a killed server is away (at least, at most).
        work_s: what a part takes, on average.
        visibility_s: after this the broker gives what a killed worker had to others.
    """

    chords: int = 20
    members: tuple[int, int] = (10, 150)
    seconds: float = 30.0
    settle_s: float = 60.0
    parallel: int = 8
    workers: int = 2
    concurrency: int = 2
    lease_s: float = 3.0
    pause_s: tuple[float, float] = (0.3, 1.5)
    away_s: tuple[float, float] = (0.0, 1.5)
    work_s: float = 0.005
    visibility_s: int = 10

    @property
    def settings(self) -> dict[str, Any]:
        """The Celery settings of everybody in it."""
        return {
            "broker_transport_options": {
                "visibility_timeout": self.visibility_s,
                # Else what a killed worker had is looked for once in 100 s.
                "unacked_restore_interval": 1,
                "unacked_restore_throttle": 1,
                "unacked_restore_limit": 100,
                # And one killed while it looked keeps the others from it for 300 s.
                "unacked_mutex_expire": 5,
            },
            "result_backend_transport_options": {"chord_lease": self.lease_s},
        }


@dataclass
class Faults:
    """What was done to the processes."""

    deaths: list[Death] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    children: int = 0
    workers: int = 0
    error: BaseException | None = None


class Killer:
    """Kills at random until told to stop; what it killed is running again then."""

    def __init__(
        self, plan: Plan, seed: int, server: testing.Server, workers: list[CeleryWorker]
    ) -> None:
        self.faults = Faults()
        self._plan = plan
        self._random = random.Random(seed)
        self._server = server
        self._workers = workers
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")

    @contextlib.contextmanager
    def at_work(self) -> Iterator[Faults]:
        """Kills inside the block."""
        self._thread.start()
        try:
            yield self.faults
        finally:
            self._over.set()
            self._thread.join()
        if self.faults.error is not None:
            raise self.faults.error

    def _run(self) -> None:
        actions = [self._kill_child] * 6 + [self._kill_worker] * 2 + [self._kill_server] * 2
        try:
            while not self._over.wait(self._random.uniform(*self._plan.pause_s)):
                self._random.choice(actions)()
        except BaseException as error:  # noqa: BLE001 (raised where the thread is joined)
            self.faults.error = error

    def _kill_child(self) -> None:
        children = children_of(self._random.choice(self._workers).pid)
        if not children:
            return
        pid = self._random.choice(children)
        with contextlib.suppress(ProcessLookupError):
            kill(pid)
            self.faults.deaths.append(Death(pid, time.time()))
            self.faults.children += 1

    def _kill_worker(self) -> None:
        worker = self._random.choice(self._workers)
        pids = [worker.pid, *children_of(worker.pid)]
        worker.kill()
        now = time.time()
        self.faults.deaths += [Death(pid, now) for pid in pids]
        self.faults.workers += 1
        worker.start()

    def _kill_server(self) -> None:
        self._server.kill()
        began = time.time()
        self._over.wait(self._random.uniform(*self._plan.away_s))
        self._server.start()
        self.faults.outages.append(Outage(began, time.time()))


class Run:
    """The chords of a plan, begun as others end, and what came of each."""

    def __init__(self, plan: Plan, seed: int, app: Any, broker: Any, faults: Faults) -> None:
        self.sizes: dict[int, int] = {}
        self.results: dict[int, Any] = {}
        self.told: dict[int, list[Any]] = {}
        #: Seconds each took, from its first part's publication to its waiter's news.
        self.took: dict[int, float] = {}
        self.lost_parts = 0
        self.lost_bodies: list[int] = []
        self._plan = plan
        self._app = app
        self._broker = broker
        self._faults = faults
        self._random = random.Random(seed + 1)
        self._ready: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._nowhere: set[str] = set()
        self._looked = time.monotonic()
        self._part, self._body = (app.tasks[n] for n in (chord_tasks.PART, chord_tasks.BODY))

    def go(self) -> None:
        """Begins chords while others run; returns when all are done, or time is up."""
        end = time.monotonic() + self._plan.seconds
        for number in range(self._plan.chords):
            while len(self._under_way()) >= self._plan.parallel:
                self._wait(end)
                if time.monotonic() > end or self._faults.error is not None:
                    return
            self._begin(number)
        while self._under_way() and time.monotonic() < end and self._faults.error is None:
            self._wait(end)

    def _begin(self, number: int) -> None:
        size, began = self._random.randint(*self._plan.members), time.monotonic()
        parts = [self._part.s(number, index, self._plan.work_s) for index in range(size)]
        result = celery.chord(parts, app=self._app)(self._body.s(chord=number))
        self.sizes[number], self.results[number], self.told[number] = size, result, []

        def told(what: Any) -> None:
            self.told[number].append(getattr(what, "result", what))
            self.took[number] = time.monotonic() - began
            self._ready.put(number)

        result.then(told, on_error=told)

    def settle(self) -> None:
        """Waits until every body is known to have run, or time is up."""
        end = time.monotonic() + self._plan.settle_s
        while self._under_way() and time.monotonic() < end:
            self._wait(end)

    def _under_way(self) -> list[int]:
        return [number for number, told in self.told.items() if not told]

    def _wait(self, end: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._ready.get(timeout=min(1.0, max(0.0, end - time.monotonic())))
        if time.monotonic() - self._looked > LOOK_S:
            self._publish_lost()
            self._looked = time.monotonic()

    def _publish_lost(self) -> None:
        """Publishes again what the broker has lost.

        Kombu pops a message off Redis and notes it as unacknowledged in a second step. A
        worker that is killed in between takes it with it, with any result backend.
        """
        before, self._nowhere = self._nowhere, set()
        client = self._app.backend.client
        for number in self._under_way():
            result = self.results[number]
            group = result.parent
            info = client.run(client.operations.group(group.id))
            ids = [result.id] if info.claim.state == group_pb2.CLAIM_STATE_DONE else []
            ids = ids or [child.id for child in group.children]
            known = client.run(client.operations.read(ids))
            there = self._messages()
            for index, record in enumerate(known):
                if record.terminal or record.task_id in there:
                    continue
                self._nowhere.add(record.task_id)
                # It may have been on its way: looked at again the next time.
                if record.task_id in before and record.task_id == result.id:
                    self._publish_body(number)
                elif record.task_id in before:
                    self._publish_part(number, index)

    def _publish_part(self, number: int, index: int) -> None:
        result = self.results[number]
        group = result.parent
        self.lost_parts += 1
        self._part.s(number, index).apply_async(
            task_id=group.children[index].id,
            group_id=group.id,
            group_index=index,
            chord=self._body.s(chord=number).set(task_id=result.id),
        )

    def _publish_body(self, number: int) -> None:
        self.lost_bodies.append(number)
        parts = [[number, index] for index in range(self.sizes[number])]
        self._body.s(parts, chord=number).apply_async(
            task_id=self.results[number].id, headers={chord_tasks.AGAIN: True}
        )

    def stuck(self) -> list[str]:
        """What is known of the chords whose bodies did not come."""
        client = self._app.backend.client
        there = self._messages()
        said = []
        for number in self._under_way():
            group = self.results[number].parent
            info = client.run(client.operations.group(group.id))
            known = client.run(client.operations.read([child.id for child in group.children]))
            waiting = [record.task_id for record in known if not record.terminal]
            where = ["with the broker" if each in there else "nowhere" for each in waiting]
            said.append(
                f"chord {number}: complete {info.counts.complete}, done {info.counts.done} of "
                f"{info.counts.expected_total}, claim {info.claim.state} of {info.claim.holder!r}, "
                f"parts not done: {list(zip(waiting, where, strict=True))}, "
                f"body {'with the broker' if self.results[number].id in there else 'nowhere'}"
            )
        return said

    def _messages(self) -> str:
        """All messages the broker has, waiting or with a worker."""
        return "".join(self._broker.lrange("celery", 0, -1) + self._broker.hvals("unacked"))


def conduct(plan: Plan, seed: int) -> Verdict:
    """Runs a plan and judges what came of it."""
    with contextlib.ExitStack() as stack:
        redis_server = stack.enter_context(RedisServer())
        server = stack.enter_context(testing.Server())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="campaign-")))
        workers = [
            chord_tasks.create_worker(
                directory,
                redis_server.url,
                server.url,
                plan.settings,
                name=f"worker{number}",
                concurrency=plan.concurrency,
            )
            for number in range(plan.workers)
        ]
        for worker in workers:
            stack.callback(worker.kill)
            worker.start()
        chord_tasks.record_publications(redis_server.url)
        app = chord_tasks.create_app(redis_server.url, server.url, **plan.settings)
        stack.callback(app.close)
        stack.callback(app.backend.client.close)
        client = stack.enter_context(redis_server.client())
        with Killer(plan, seed, server, workers).at_work() as faults:
            campaign = Run(plan, seed, app, client, faults)
            campaign.go()
        campaign.settle()
        verdict = judge(
            sizes=campaign.sizes,
            told=campaign.told,
            stored={n: app.AsyncResult(r.id).result for n, r in campaign.results.items()},
            executed=client.lrange(chord_tasks.EXECUTED, 0, -1),
            published=client.lrange(chord_tasks.PUBLISHED, 0, -1),
            deaths=faults.deaths,
            outages=faults.outages,
            lost=campaign.lost_bodies,
        )
        verdict.faults += campaign.stuck()
        verdict.slowest_s = max(campaign.took.values(), default=0.0)
        verdict.counts |= {
            "chords": len(campaign.sizes),
            "parts": sum(campaign.sizes.values()),
            "children killed": faults.children,
            "workers killed": faults.workers,
            "server killed": len(faults.outages),
            "parts the broker lost": campaign.lost_parts,
            "bodies the broker lost": len(campaign.lost_bodies),
            "taken over": sum(worker.log().count("was left unfinished") for worker in workers),
        }
        verdict.log = "\n".join(worker.log() for worker in workers)
        return verdict


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:  # it has just ended
        return []
    return [int(child) for child in text.split()]


def kill(pid: int) -> None:
    """SIGKILL: no word to anybody."""
    os.kill(pid, signal.SIGKILL)


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan, where there is a broker. The seed is of the faults and the sizes; processes
    take their own time all the same.
    """
    tally = Tally()
    reason = why_no_redis()
    if reason is not None:
        print(f"chords: left out, {reason}")
        return tally
    verdict = conduct(plan, seed)
    tally.counts.update(verdict.counts)
    tally.figures["slowest chord, s"] = round(verdict.slowest_s, 1)
    tally.faults += verdict.faults
    if verdict.faults:
        print(verdict.log[-LOG_CHARS:])
    return tally


CAMPAIGN = Campaign(
    "chords",
    "Whatever is killed, the body of every chord runs with all its parts in their order, its "
    "result is stored and told once, and what is published again has a death for its reason.",
    {
        Size.CI: Plan(seconds=10.0, parallel=20, visibility_s=3),
        Size.DEEP: Plan(300, (50, 150), seconds=1_800.0, settle_s=120.0, parallel=12),
        Size.RELEASE: Plan(3_000, (50, 150), seconds=18_000.0, settle_s=120.0, parallel=12),
    },
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
