"""Forks under Celery's API: `python -m tests.campaigns.forks [--count 200] [NAME …]`.

Every way a process may have used the backend before it forks, times who goes on afterwards;
and forks while other threads are inside calls. Each fork has to leave both sides working:
what hangs or fails is counted, and the command ends with 1 if there is any.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from resultd import testing
from tests.support.celery_forker import SIDES, STATES

ROOT = Path(__file__).resolve().parents[2]
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

    @property
    def good(self) -> bool:
        """Whether every fork left both sides working, without a word."""
        return not (self.hangs or self.failures or self.lost or self.errors or self.noise)


def run(name: str, url: str, count: int) -> Outcome:
    """Forks `count` times in one way."""
    state, side = CASES[name]
    # From 3.12 on Python warns of forks in processes with threads, which is what is tried.
    command = [sys.executable, "-W", "ignore::DeprecationWarning"]
    command += ["-m", "tests.support.celery_forker", url, state, side, str(count)]
    limit_s = START_S + count * FORK_S
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    if done.returncode:
        raise AssertionError(f"{name}: exit code {done.returncode}\n{done.stderr}")
    found = json.loads(done.stdout)
    errors = tuple(found.pop("errors", ()))
    return Outcome(noise=done.stderr, errors=errors, **found)


def main() -> int:
    """Runs what was asked for and prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.forks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--count", type=int, default=200, help="forks of each; 200 unless told")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(CASES))
    if unknown:
        parser.error(f"no case {', '.join(unknown)}: known are {', '.join(CASES)}")
    good = True
    with testing.Server(engine="memory") as server:
        for name in arguments.names or CASES:
            began = time.monotonic()
            outcome = run(name, server.url, arguments.count)
            good = good and outcome.good
            line = f"{name:18} {outcome.forks} forks, {outcome.hangs} hangs, "
            line += f"{outcome.failures} failures"
            if outcome.calls:
                line += f"; {outcome.calls} calls of other threads, some in flight at "
                line += f"{outcome.forks_with_calls_in_flight} forks, "
                line += f"{len(outcome.errors)} failed, {outcome.lost} lost"
            print(f"{line}; {time.monotonic() - began:.0f} s", flush=True)
            if outcome.noise or outcome.errors:
                print(outcome.noise, *outcome.errors, sep="\n", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
