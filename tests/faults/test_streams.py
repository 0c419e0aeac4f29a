"""The campaign of the streams: it passes on the server, and finds every fault planted in one.

`python -m tests.campaigns.streams` runs large ones.
"""

from __future__ import annotations

import pytest

from tests.campaigns import streams
from tests.support import plants

CALM = (1_000.0, 1_000.0)
ROUGH = (0.1, 0.4)
SEED = 7

# What is planted, whether connections have to break to see it, what the validator says.
BITES = {
    "lost-wake-up": (CALM, "hang"),
    "skipped-entry": (CALM, "gap"),
    "repeated-entry": (CALM, "duplicate"),
    "swapped-entries": (CALM, "order"),
    "repeated-task": (CALM, "duplicate"),
    "cursor-behind": (ROUGH, "duplicate"),
}


@pytest.mark.slow
def test_every_wait_gets_every_event_once_whatever_breaks() -> None:
    """16,000 events over connections that break and a server that restarts: none is amiss."""
    plan = streams.Plan(events=16_000, members=500, pause_s=ROUGH, restart_every=5)
    tally = streams.run(plan, SEED)
    assert tally.faults == []
    assert tally.counts["events"] >= 16_000
    assert tally.counts["resumes"] > 0


@pytest.mark.parametrize("fault", BITES)
def test_the_validator_bites(fault: str) -> None:
    """A server that loses, skips, repeats or swaps is found out, each by its name."""
    pause_s, said = BITES[fault]
    plan = streams.Plan(
        events=8_000_000,
        members=200,
        groups=2,
        pause_s=pause_s,
        restart_every=10**6,
        hang_s=4.0 if said == "hang" else 50.0,
        program=plants.program(fault),
    )
    found = streams.run(plan, SEED).faults
    assert any(said in fault for fault in found), found[:5]
