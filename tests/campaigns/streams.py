"""Streams under resets and restarts: `python -m tests.campaigns.streams --size ci --seed 7`.

Groups of tasks are reported by workers that repeat until they are told it is stored. Eight
readers for each follow in every way the protocol has, through a proxy that cuts, resets,
half-closes, delays, crumbles and swallows, while the server is killed, ended and started again.
A validator looks at every event.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from resultd import aio
from resultd.v1 import group_pb2, group_service_pb2, state_pb2
from resultd.v1 import result_service_pb2 as pb
from tests.campaigns._record import Campaign, Size, Tally
from tests.support import readers, reports
from tests.support.addresses import free_address
from tests.support.readers import Reader
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs
from tests.support.tcp_proxy import TcpProxy
from tests.support.validator import GroupValidator, TasksValidator, Validator

READERS = 8
REPORTS_PER_CALL = 50
CALL_S = 5.0


@dataclass(frozen=True)
class Plan:
    """What is run and what is done to it.

    Attributes:
        events: how many the validator is to look at.
        members: of each group.
        groups: under way at a time.
        pause_s: between faults of the network (at least, at most).
        restart_every: one fault in so many is a restart of the server.
        hang_s: a group that takes longer than this hangs.
        program: the server, or one with a fault planted.
    """

    events: int
    members: int = 1_000
    groups: int = 4
    pause_s: tuple[float, float] = (0.2, 1.5)
    restart_every: int = 6
    hang_s: float = 120.0
    program: tuple[str, ...] = ("resultd_server",)


def value_of(task_id: str) -> bytes:
    """What the task's worker reports."""
    return f'"{task_id}"'.encode()


class Run:
    """One run of a plan."""

    def __init__(self, plan: Plan, seed: int, directory: Path) -> None:
        self.plan = plan
        self.tally = Tally()
        self._random = random.Random(seed)
        self._server = ServerProcess(
            directory, "--drain-s", "2", listen=free_address(), program=plan.program
        )
        self._left = plan.events
        self._number = 0

    async def go(self) -> Tally:
        """Until enough events were looked at."""
        with self._server, TcpProxy(int(self._server.address.rpartition(":")[2])) as proxy:
            self._direct = self._server.address
            self._proxied = f"127.0.0.1:{proxy.port}"
            chaos = asyncio.create_task(self._chaos(proxy))
            try:
                await asyncio.gather(*(self._groups() for _ in range(self.plan.groups)))
            finally:
                chaos.cancel()
                await asyncio.gather(chaos, return_exceptions=True)
            self.tally.counts["connections"] += proxy.accepted
        return self.tally

    async def _chaos(self, proxy: TcpProxy) -> None:
        def delay() -> None:
            proxy.delay_s = 0.02

        def crumble() -> None:
            proxy.piece_bytes = 1

        faults: dict[str, Callable[[], None]] = {
            "cuts": proxy.cut,
            "resets": proxy.reset,
            "half-closes": proxy.half_close,
            "blackholes": proxy.blackhole,
            "delays": delay,
            "one-byte writes": crumble,
        }
        names = [*faults]
        for number in range(1, 10**9):
            await asyncio.sleep(self._random.uniform(*self.plan.pause_s))
            if number % self.plan.restart_every == 0:
                await self._restart()
                continue
            name = self._random.choice(names)
            faults[name]()
            self.tally.counts[name] += 1
            await asyncio.sleep(self._random.uniform(0, 0.3))
            proxy.heal()

    async def _restart(self) -> None:
        how = self._random.choice(("kill", "stop"))
        await asyncio.to_thread(getattr(self._server, how))
        await asyncio.to_thread(self._server.start)
        self.tally.counts["server killed" if how == "kill" else "server stopped"] += 1

    async def _groups(self) -> None:
        while self._left > 0 and not self.tally.faults:
            self._left -= READERS * self.plan.members
            self._number += 1
            await self._group(f"g{self._number}")

    async def _group(self, group_id: str) -> None:
        members = [f"{group_id}-{n}" for n in range(self.plan.members)]
        async with self._connected() as stubs:
            await self._declare(stubs, group_id, members)
            waits, judges = self._readers(group_id, members)
            work = [self._report(stubs, group_id, members), *(each.run() for each in waits)]
            tasks = [asyncio.create_task(each) for each in [*work, self._client(group_id, members)]]
            done, hanging = await asyncio.wait(
                tasks, timeout=self.plan.hang_s, return_when=asyncio.FIRST_EXCEPTION
            )
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        for failed in [task for task in done if task.exception() is not None]:
            self.tally.faults.append(f"{group_id}: {failed.exception()!r}")
        if hanging and not any(task.exception() for task in done):
            open_ones = [judge.name for judge in judges if not judge.over]
            self.tally.faults.append(f"hang: {len(hanging)} waits go on; {', '.join(open_ones)}")
        for judge in judges:
            self.tally.faults += judge.violations
            self.tally.counts["events"] += judge.events
        self.tally.counts["waits"] += len(tasks) - 1
        self.tally.counts["resumes"] += sum(each.calls - 1 for each in waits)
        self.tally.counts["silences"] += sum(each.silences for each in waits)

    def _readers(self, group_id: str, members: list[str]) -> tuple[list[Reader], list[Validator]]:
        def group(kind: str, *, by_index: bool = False) -> GroupValidator:
            return GroupValidator(f"{kind} {group_id}", value_of, members, by_index=by_index)

        def tasks(kind: str, *, transitions: bool = False) -> TasksValidator:
            return TasksValidator(f"{kind} {group_id}", value_of, members, transitions=transitions)

        where = self._proxied
        tails = [group("as completed"), group("as completed")]
        found = [
            readers.iterate(where, tail, group_id, pb.MEMBER_ORDER_AS_COMPLETED) for tail in tails
        ]
        ordered, watched = group("member order", by_index=True), group("Watch of a group")
        found.append(readers.iterate(where, ordered, group_id, pb.MEMBER_ORDER_MEMBER))
        found.append(readers.watch_group(where, watched, group_id))
        plain, changing = tasks("WaitFor"), tasks("WaitFor, transitions", transitions=True)
        found.append(readers.wait_for(where, plain))
        found.append(readers.wait_for(where, changing, transitions=True))
        seen = tasks("Watch")
        found.append(readers.watch_tasks(where, seen))
        return found, [*tails, ordered, watched, plain, changing, seen]

    async def _client(self, group_id: str, members: list[str]) -> None:
        """The client of ours, beside those that follow the protocol by hand."""
        async with aio.Client(f"resultd://{self._proxied}?heartbeat=1") as client:
            values = [value async for value in client.group(group_id).iterate(timeout=600)]
        self.tally.counts["events"] += len(values)
        if sorted(values) != sorted(members):
            self.tally.faults.append(
                f"client {group_id}: {len(values)} values, {len(set(values))} of them different, "
                f"of {len(members)} members"
            )

    async def _declare(self, stubs: Stubs, group_id: str, members: list[str]) -> None:
        declared = [group_pb2.GroupMember(id=member) for member in members]
        request = group_service_pb2.CreateGroupRequest(
            group_id=group_id, members=declared, seal=True
        )
        await self._until_stored(lambda: stubs.groups.CreateGroup(request, timeout=CALL_S))

    async def _report(self, stubs: Stubs, group_id: str, members: list[str]) -> None:
        shuffled = self._random.sample(members, len(members))
        for start in range(0, len(shuffled), REPORTS_PER_CALL):
            some = shuffled[start : start + REPORTS_PER_CALL]
            started = [reports.state(each, state_pb2.STATE_STARTED) for each in some[::2]]
            ended = [reports.success(each, value_of(each), group_id=group_id) for each in some]
            for batch in (started, ended):
                request = reports.batch(batch)
                # Repeated until it is stored: what was stored and not answered is a duplicate.
                await self._until_stored(
                    lambda request=request: stubs.results.BatchStoreResults(  # type: ignore[misc]  # no type for it
                        request, timeout=CALL_S
                    )
                )
            self.tally.counts["reports"] += len(some) + len(started)

    async def _until_stored(self, call: Callable[[], object]) -> None:
        while True:
            try:
                await call()  # type: ignore[misc]  # a call of grpc.aio
            except grpc.aio.AioRpcError as error:
                if error.code() in readers.FINAL:
                    raise
                await asyncio.sleep(readers.RESUME_AFTER_S)
            else:
                return

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Stubs]:
        async with grpc.aio.insecure_channel(self._direct, options=readers.OPTIONS) as channel:
            yield Stubs(channel)


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan."""
    with tempfile.TemporaryDirectory(prefix="streams-") as directory:
        return asyncio.run(Run(plan, seed, Path(directory)).go())


CAMPAIGN = Campaign(
    "streams",
    "Under resets, half-closes, blackholes, delays and restarts of the server every wait gets "
    "every event in order, without a gap, each terminal one once.",
    {
        Size.CI: Plan(events=200_000),
        Size.DEEP: Plan(events=1_000_000, members=5_000, groups=3, pause_s=(0.5, 4.0)),
        Size.RELEASE: Plan(events=100_000_000),
    },
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
