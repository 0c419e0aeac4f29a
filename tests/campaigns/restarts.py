"""Many clients wait while the server restarts: `python -m tests.campaigns.restarts --size deep`.

Each client has a connection of its own and waits for one result after the other; some are
reported before the server goes, some while it is away, some when it is back. No result is
reported before the streams of all clients have told them something.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resultd import aio, states
from tests.campaigns._record import Campaign, Size, Tally
from tests.support.addresses import free_address
from tests.support.server_process import ServerProcess

WAIT_S = 300.0
# What each first task goes through before the rest begins. A wait reads once, before its stream:
# who saw the first of them can have the second only from the stream.
BEFORE = (states.STARTED, "UNDER WAY")
PER_CALL = 500


@dataclass(frozen=True)
class Plan:
    """`clients` wait, the server is killed or ended `restarts` times, away for `away_s`."""

    clients: int
    restarts: int
    away_s: tuple[float, float] = (0.0, 1.0)
    wait_s: float = WAIT_S
    program: tuple[str, ...] = ("resultd_server",)


def _id(client: int, turn: int) -> str:
    return f"c{client}-r{turn}"


class _Seen:
    """What a client was told of its first task."""

    def __init__(self) -> None:
        self._states = {state: asyncio.Event() for state in BEFORE}

    def told(self, meta: Mapping[str, Any]) -> None:
        """Takes what a wait is told."""
        if meta["status"] in self._states:
            self._states[meta["status"]].set()

    async def wait(self, state: str) -> None:
        """Until it was told of a state, or has given up."""
        await self._states[state].wait()

    def give_up(self) -> None:
        """Nobody is to wait for it any more."""
        for event in self._states.values():
            event.set()


async def _wait(address: str, number: int, plan: Plan, tally: Tally, seen: _Seen) -> None:
    try:
        await _get_all(address, number, plan, tally, seen)
    finally:
        seen.give_up()


async def _get_all(address: str, number: int, plan: Plan, tally: Tally, seen: _Seen) -> None:
    # The timeout is part of the address: clients of one address share a connection.
    url = f"resultd://{address}?timeout={60 + number / 1000}&heartbeat=20"
    async with aio.Client(url) as client:
        for turn in range(plan.restarts + 1):
            wanted = _id(number, turn)
            told = seen.told if turn == 0 else None
            try:
                value = await client.AsyncResult(wanted).get(plan.wait_s, on_message=told)
            except Exception as error:  # noqa: BLE001  whatever it is, it is the finding
                tally.faults.append(f"hang or error: {wanted}: {error!r}")
                return
            if value != wanted:
                tally.faults.append(f"{wanted} is {value!r}")
            tally.counts["results waited for"] += 1


async def _all_wait(client: aio.Client, seen: list[_Seen]) -> None:
    """Returns when every client's stream has told something, or the client has given up."""
    for state in BEFORE:
        reports = [{"task_id": _id(number, 0), "state": state} for number in range(len(seen))]
        await client.store_results(reports)
        await asyncio.gather(*(each.wait(state) for each in seen))


async def _report(client: aio.Client, ids: list[str], tally: Tally) -> None:
    for start in range(0, len(ids), PER_CALL):
        await client.store_results([(each, each) for each in ids[start : start + PER_CALL]])
    tally.counts["results reported"] += len(ids)


async def _campaign(server: ServerProcess, plan: Plan, seed: int) -> Tally:
    tally, dice = Tally(), random.Random(seed)
    seen = [_Seen() for _ in range(plan.clients)]
    waiting = [
        asyncio.create_task(_wait(server.address, number, plan, tally, seen[number]))
        for number in range(plan.clients)
    ]
    async with aio.Client(f"resultd://{server.address}?timeout=120") as reporter:
        await _all_wait(reporter, seen)
        for turn in range(plan.restarts + 1):
            ids = [_id(number, turn) for number in range(plan.clients)]
            dice.shuffle(ids)
            third = len(ids) // 3
            await _report(reporter, ids[:third], tally)
            if turn == plan.restarts:
                await _report(reporter, ids[third:], tally)
                break
            how = dice.choice(("kill", "stop"))
            await asyncio.to_thread(getattr(server, how))
            # Reports that are under way while nobody is there.
            reporting = asyncio.create_task(_report(reporter, ids[third : 2 * third], tally))
            await asyncio.sleep(dice.uniform(*plan.away_s))
            await asyncio.to_thread(server.start)
            tally.counts["server killed" if how == "kill" else "server stopped"] += 1
            await reporting
            await _report(reporter, ids[2 * third :], tally)
    await asyncio.gather(*waiting)
    tally.counts["clients"] += plan.clients
    return tally


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan."""
    with (
        tempfile.TemporaryDirectory(prefix="restarts-") as directory,
        ServerProcess(
            Path(directory), "--drain-s", "2", listen=free_address(), program=plan.program
        ) as server,
    ):
        return asyncio.run(_campaign(server, plan, seed))


CAMPAIGN = Campaign(
    "restarts",
    "Clients that wait while the server is killed, ended and started again get every result; "
    "none hangs.",
    {
        Size.CI: Plan(clients=150, restarts=4),
        Size.DEEP: Plan(clients=1_000, restarts=20),
        Size.RELEASE: Plan(clients=1_000, restarts=200),
    },
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
