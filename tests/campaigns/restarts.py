"""Many clients wait while the server restarts: `python -m tests.campaigns.restarts --size deep`.

Each client has a connection of its own and waits for one result after the other; some are
reported before the server goes, some while it is away, some when it is back. Nothing is
reported before all clients wait: each says so once it saw its first task STARTED.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resultd import aio, states
from tests.campaigns._record import Campaign, Size, Tally
from tests.support.addresses import free_address
from tests.support.server_process import ServerProcess

WAIT_S = 300.0
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


async def _wait(address: str, number: int, plan: Plan, tally: Tally, waits: asyncio.Event) -> None:
    # The timeout is part of the address: clients of one address share a connection.
    url = f"resultd://{address}?timeout={60 + number / 1000}&heartbeat=20"
    async with aio.Client(url) as client:
        for turn in range(plan.restarts + 1):
            wanted = _id(number, turn)
            told = _noted(waits) if turn == 0 else None
            try:
                value = await client.AsyncResult(wanted).get(plan.wait_s, on_message=told)
            except Exception as error:  # noqa: BLE001  whatever it is, it is the finding
                tally.faults.append(f"hang or error: {wanted}: {error!r}")
                waits.set()
                return
            if value != wanted:
                tally.faults.append(f"{wanted} is {value!r}")
            tally.counts["results waited for"] += 1


def _noted(waits: asyncio.Event) -> Callable[[Mapping[str, Any]], None]:
    """Of a wait: its stream has told something, so what comes next is for it to tell."""

    def told(meta: Mapping[str, Any]) -> None:
        if meta["status"] == states.STARTED:
            waits.set()

    return told


async def _all_wait(client: aio.Client, waits: list[asyncio.Event], plan: Plan) -> None:
    """Returns when every client waits, or has given up: what it found is in the tally."""
    await client.store_results(
        {"task_id": _id(number, 0), "state": states.STARTED} for number in range(plan.clients)
    )
    await asyncio.gather(*(each.wait() for each in waits))


async def _report(client: aio.Client, ids: list[str], tally: Tally) -> None:
    for start in range(0, len(ids), PER_CALL):
        await client.store_results([(each, each) for each in ids[start : start + PER_CALL]])
    tally.counts["results reported"] += len(ids)


async def _campaign(server: ServerProcess, plan: Plan, seed: int) -> Tally:
    tally, dice = Tally(), random.Random(seed)
    waits = [asyncio.Event() for _ in range(plan.clients)]
    waiting = [
        asyncio.create_task(_wait(server.address, number, plan, tally, waits[number]))
        for number in range(plan.clients)
    ]
    async with aio.Client(f"resultd://{server.address}?timeout=120") as reporter:
        await _all_wait(reporter, waits, plan)
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
