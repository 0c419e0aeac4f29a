"""Chords on workers and a server that are killed at random: a small campaign.

`python -m tests.campaigns.chords` runs a large one.
"""

from __future__ import annotations

import pytest

from tests.campaigns import chords
from tests.support.redis_server import why_no_redis

pytestmark = pytest.mark.skipif(why_no_redis() is not None, reason="no redis-server here")

PLAN = chords.Plan(
    chords=20,
    members=(10, 50),
    seed=7,
    seconds=10.0,
    settle_s=60.0,
    parallel=20,
    pause_s=(0.2, 0.8),
    away_s=(0.0, 0.5),
    visibility_s=3,
)


@pytest.mark.slow
@pytest.mark.timeout(120)  # 20 s on a machine that does nothing else
def test_every_body_runs_whatever_is_killed() -> None:
    """Bodies run with all parts in order, are stored once, and repeats have their reasons."""
    verdict = chords.run(PLAN)
    print(verdict.table())
    assert verdict.faults == []
    assert verdict.begun == PLAN.chords
