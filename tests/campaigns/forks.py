"""Forks under Celery's API: `python -m tests.campaigns.forks --size ci`.

Every way a process may have used the backend before it forks, times who goes on afterwards;
and forks while other threads are inside calls. Each fork has to leave both sides working.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

from resultd import testing
from tests.campaigns._record import Campaign, Size, Tally
from tests.support.celery_forker import SIDES, STATES, UNGUARDED
from tests.tooling.repository import ROOT

# Seconds one fork may take on a machine that is busy with other things; it needs 0.05.
FORK_S = 2.0
START_S = 30.0

CASES = {
    f"{state}-{side}": (state, side)
    for state in STATES
    for side in SIDES
    # Its threads are the parent's, and they go on in any case.
    if state != "in-flight" or side == "both"
}


@dataclass(frozen=True)
class Outcome:
    """What became of the forks of one case.

    Attributes:
        lost: calls of other threads that were said to be done and were not.
        errors: what calls of other threads raised.
        noise: what the processes wrote to their standard error.
    """

    forks: int
    hangs: int
    failures: int
    noise: str
    calls: int = 0
    forks_with_calls_in_flight: int = 0
    lost: int = 0
    errors: tuple[str, ...] = ()

    def broken(self) -> list[str]:
        """Where a fork did not leave both sides working, without a word."""
        said = {
            "hang": self.hangs,
            "fail": self.failures,
            "calls of other threads are lost": self.lost,
            "errors": self.errors,
            "said": self.noise,
        }
        return [f"{what}: {found}" for what, found in said.items() if found]


def fork(name: str, url: str, count: int, *, guarded: bool = True) -> Outcome:
    """Forks `count` times in one way. `guarded`: False with a fault planted."""
    state, side = CASES[name]
    # From 3.12 on Python warns of forks in processes with threads, which is what is tried.
    command = [sys.executable, "-W", "ignore::DeprecationWarning"]
    command += ["-m", "tests.support.celery_forker", url, state, side, str(count)]
    environ = os.environ if guarded else {**os.environ, UNGUARDED: "1"}
    limit_s = START_S + count * FORK_S
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, env=environ
    )
    if done.returncode:
        raise AssertionError(f"{name}: exit code {done.returncode}\n{done.stderr}")
    found = json.loads(done.stdout)
    errors = tuple(found.pop("errors", ()))
    return Outcome(noise=done.stderr, errors=errors, **found)


@dataclass(frozen=True)
class Plan:
    """How many forks of each case, which cases, and whether with a fault planted."""

    each: int
    names: tuple[str, ...] = tuple(CASES)
    guarded: bool = True


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan. The moments are the processes' own: a seed changes nothing."""
    tally = Tally()
    with testing.Server(engine="memory") as server:
        for name in plan.names:
            found = fork(name, server.url, plan.each, guarded=plan.guarded)
            tally.counts["forks"] += found.forks
            tally.counts["calls of other threads"] += found.calls
            tally.counts["forks with calls in flight"] += found.forks_with_calls_in_flight
            tally.faults += [f"{name}: {line}" for line in found.broken()]
    return tally


CAMPAIGN = Campaign(
    "forks",
    "Whatever a process has done with the Celery backend when it forks, and whichever side goes "
    "on, both work: no fork hangs or fails, and no call of another thread fails or is lost.",
    {Size.CI: Plan(each=5), Size.DEEP: Plan(each=200), Size.RELEASE: Plan(each=2_000)},
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
