"""Chords on workers and a server that are killed at random: a small campaign, and its judge.

`python -m tests.campaigns.chords` runs a large one.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.campaigns import chords
from tests.campaigns.chord_verdict import Death, Outage, judge
from tests.support.redis_server import why_no_redis

SEED = 7
PLAN = chords.Plan(
    chords=20,
    seconds=10.0,
    parallel=20,
    pause_s=(0.2, 0.8),
    away_s=(0.0, 0.5),
    visibility_s=3,
)


@pytest.mark.skipif(why_no_redis() is not None, reason="no redis-server here")
@pytest.mark.slow
@pytest.mark.timeout(120)  # 20 s on a machine that does nothing else
def test_every_body_runs_whatever_is_killed() -> None:
    """Bodies run with all parts in order, are stored once, and repeats have their reasons."""
    tally = chords.run(PLAN, SEED)
    assert tally.faults == []
    assert tally.counts["chords"] == PLAN.chords


def seen(**changes: Any) -> dict[str, Any]:
    """A chord of two parts, published at second 10 and sent; all is well, but for the changes."""
    result = {"chord": 0, "run": "r", "parts": 2}
    ran = {"chord": 0, "run": "r", "pid": 2, "at": 12.0, "got": [[0, 0], [0, 1]]}
    said = {"chord": 0, "body": "b", "pid": 1, "at": 10.0}
    return {
        "sizes": {0: 2},
        "told": {0: [result]},
        "stored": {0: result},
        "executed": [json.dumps(ran)],
        "published": [json.dumps({**said, "phase": phase}) for phase in ("before", "after")],
        "deaths": [],
        "outages": [],
        "lost": [],
        **changes,
    }


def again(pid: int = 2) -> list[str]:
    """The same body, published once more ten seconds later."""
    said = {"chord": 0, "body": "b", "pid": pid, "at": 20.0, "phase": "before"}
    return [*seen()["published"], json.dumps(said)]


DISORDER = {"chord": 0, "run": "r", "pid": 2, "at": 12.0, "got": [[0, 1], [0, 0]]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"executed": []}, "never ran"),
        ({"executed": [json.dumps(DISORDER)]}, "its body got"),
        ({"told": {0: []}}, "told 0 times"),
        ({"stored": {0: {"chord": 0, "run": "another", "parts": 2}}}, "of no run"),
        ({"published": again()}, "NO REASON"),
        ({"published": again(), "deaths": [Death(1, 15.0)]}, "NO REASON"),
        ({"lost": [0]}, "never sent"),
    ],
)
def test_the_judge_bites(changes: dict[str, Any], said: str) -> None:
    """A body that did not run, ran with something else, or was published without a reason."""
    assert any(said in fault for fault in judge(**seen(**changes)).faults)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"published": again(), "deaths": [Death(1, 10.5)]},
        {"published": again(), "outages": [Outage(9.0, 11.0)]},
    ],
)
def test_the_judge_lets_pass_what_has_a_reason(changes: dict[str, Any]) -> None:
    """A death between publishing and saying so, or a server that was away then, is one."""
    assert judge(**seen(**changes)).faults == []
