"""Streams over a network that breaks: `python -m tests.campaigns.links --size ci --seed 7`.

What `streams` does, with a server on a host of its own, as a network namespace has it: no proxy
ends connections or says a word. The cable is pulled, for a moment that TCP bridges and for
longer than a heartbeat may be late, packets are delayed and lost, and the server is ended or
killed while nobody can hear of it. Each group is under way over one of all of these.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
from pathlib import Path

from tests.campaigns import streams
from tests.campaigns._record import Campaign, Size, Tally
from tests.support import links, readers
from tests.support.links import Link
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

PORT = 7758
SHORT_S = (0.05, 0.5)
LONG_S = (readers.SILENCE_S + 0.5, readers.SILENCE_S + 2.0)
NARROW_S = (0.5, 1.5)
FEW, FEW_S = 5, 0.1
SHORT, LONG, RESTART = "cable out, shortly", "cable out, long", "restarts unheard"
NARROW = "narrow, by"
KINDS = (SHORT, LONG, RESTART, NARROW)


class Run(streams.Run):
    """One run of a plan over one cable."""

    def __init__(self, plan: streams.Plan, seed: int, directory: Path, link: Link) -> None:
        super().__init__(plan, seed, directory)
        self._link = link
        self._reporting = asyncio.Event()
        self._broken = 0
        self._over = False
        self._server = ServerProcess(
            directory, "--drain-s", "2", "--insecure", listen=f"{link.far}:{PORT}",
            program=plan.program, within=link.within,
        )  # fmt: skip

    async def go(self) -> Tally:
        """Until enough events were looked at."""
        with self._server:
            self._direct = self._proxied = self._server.address
            breaking = asyncio.create_task(self._break())
            try:
                await asyncio.gather(*(self._groups() for _ in range(self.plan.groups)))
            finally:
                breaking.cancel()
                await asyncio.gather(breaking, return_exceptions=True)
        self.tally.counts["packets lost"] += self._link.drops
        return self.tally

    async def _report(self, stubs: Stubs, group_id: str, members: list[str]) -> None:
        half = len(members) // 2  # a few at a time, so that there is something to lose
        few = iter([members[start : start + FEW] for start in range(0, half, FEW)])
        self._reporting.set()
        until = self._broken + len(KINDS) + 1  # one of them began before
        while self._broken < until and not self._over:
            await super()._report(stubs, group_id, next(few, []))
            await asyncio.sleep(FEW_S)
        await super()._report(stubs, group_id, [*itertools.chain(*few), *members[half:]])
        # The cable stays in once the last is reported: else luck says when the last wait ends.
        self._over = self._left <= 0

    async def _break(self) -> None:
        await self._reporting.wait()
        kinds = self._random.sample(KINDS, len(KINDS))
        for kind in itertools.cycle(kinds):
            if self._over:
                return
            await asyncio.sleep(self._random.uniform(*self.plan.pause_s))
            if kind == NARROW:
                await self._narrow()
            else:
                await self._pull(kind)
            self._broken += 1

    async def _pull(self, kind: str) -> None:
        self._link.pull()
        try:
            if kind == RESTART:
                await self._restart()
            else:
                await asyncio.sleep(self._random.uniform(*(LONG_S if kind == LONG else SHORT_S)))
        finally:
            self._link.plug()
        self.tally.counts[kind] += 1

    async def _narrow(self) -> None:
        how = self._link.narrow()
        try:
            await asyncio.sleep(self._random.uniform(*NARROW_S))
        finally:
            self._link.widen()
        self.tally.counts[f"{NARROW} {how}"] += 1


def run(plan: streams.Plan, seed: int) -> Tally:
    """Runs a plan; where there can be no links it is left out, and said so."""
    reason = links.why_not()
    if reason is not None:
        print(f"links: left out, {reason}")
        return Tally()
    with tempfile.TemporaryDirectory(prefix="links-") as directory, Link() as link:
        return asyncio.run(Run(plan, seed, Path(directory), link).go())


CAMPAIGN = Campaign(
    "links",
    "Over a cable that is pulled and loses packets, and over restarts nobody hears of, every wait "
    "gets every event in order, without a gap, each terminal one once.",
    {
        Size.CI: streams.Plan(events=8_000, members=250, groups=2),
        Size.DEEP: streams.Plan(events=100_000),
        Size.RELEASE: streams.Plan(events=5_000_000),
    },
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
