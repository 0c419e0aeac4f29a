"""Disks that break and fill up: `python -m tests.campaigns.disk_faults --size ci --seed 7`.

Under load a system call of the live server begins to fail: the journal's writes, the store's,
the store's syncs, once or from then on. The server has to say NOT_SERVING and end, and all that
it acknowledged has to be there. And the disk, or what the store may have, is full for a while:
what grows is refused, everything else goes on. `tests/support/disk_faults.py` has how. Needs
strace, and root for a small filesystem.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns._record import Campaign, Size, Tally
from tests.support import disk_faults
from tests.support.disk_faults import BREAKS, REAL, Break, Outcome


@dataclass(frozen=True)
class Plan:
    """How often each fault, which of them, and on which server.

    Attributes:
        names: of the faults.
        program: the server, or one with a fault planted.
        settle_s: how long may pass until it ends, or takes writes again.
    """

    each: int
    names: tuple[str, ...] = (*BREAKS, "full disk", "full store")
    program: tuple[str, ...] = REAL
    settle_s: float = disk_faults.SETTLE_S


def _broken(how: Break, directory: Path, seed: int, plan: Plan) -> Outcome:
    return asyncio.run(disk_faults.break_disk(directory, how, seed, plan.program, plan.settle_s))


def _full_disk(directory: Path, seed: int, plan: Plan) -> Outcome:
    with disk_faults.small_disk(directory) as disk:
        return disk_faults.fill_disk(disk, directory, seed, plan.program, plan.settle_s)


def _full_store(directory: Path, seed: int, plan: Plan) -> Outcome:
    return disk_faults.fill_map(directory, seed, plan.program, plan.settle_s)


Fault = Callable[[Path, int, Plan], Outcome]
FAULTS: dict[str, Fault] = {
    **{name: functools.partial(_broken, how) for name, how in BREAKS.items()},
    "full disk": _full_disk,
    "full store": _full_store,
}


def why_not(name: str) -> str | None:
    """Why a fault cannot be had here; None if it can."""
    if name in BREAKS:
        return disk_faults.no_strace()
    return disk_faults.no_small_disk() if name == "full disk" else None


def _possible(plan: Plan) -> Iterator[str]:
    for name in plan.names:
        reason = why_not(name)
        if reason is None:
            yield name
        else:
            print(f"{name}: left out, {reason}")


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan; a fault that cannot be had here is left out, and said so."""
    tally = Tally()
    names = [*_possible(plan)]
    slowest_s = 0.0
    for each in range(seed, seed + plan.each):
        for name in names:
            with tempfile.TemporaryDirectory(prefix="disk-faults-") as directory:
                found = FAULTS[name](Path(directory), each, plan)
            tally.counts[name] += 1
            tally.counts["writes acknowledged"] += found.acknowledged
            tally.counts["refused as STORE_FULL"] += found.refused
            slowest_s = max(slowest_s, found.exit_s)
            tally.faults += [f"{name}, seed {each}: {line}" for line in found.broken]
    tally.figures["ended after, s"] = slowest_s
    return tally


CAMPAIGN = Campaign(
    "disk_faults",
    "A server whose disk fails says NOT_SERVING and ends within a second, and nothing that it "
    "acknowledged is missing; where there is no room it refuses what grows with STORE_FULL, "
    "everything else goes on, and so does storing once there is room.",
    {Size.CI: Plan(each=1), Size.DEEP: Plan(each=5), Size.RELEASE: Plan(each=500)},
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
