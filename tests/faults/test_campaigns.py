"""Campaigns in small: each passes on the server and finds what is planted in one.

`python -m tests.campaigns` runs them at their sizes.
"""

from __future__ import annotations

import pytest

from tests.campaigns import cancels, clocks, overload, races, restarts, soak, tenants
from tests.support import plants

SEED = 7

pytestmark = pytest.mark.slow
moves_clocks = pytest.mark.skipif(clocks.why_not() is not None, reason=str(clocks.why_not()))


def test_no_wait_hangs_whatever_the_moment() -> None:
    """2,500 waits that race with the reports they wait for: each is told once, none hangs."""
    tally = races.run(races.Plan(waits=2_500), SEED)
    assert tally.faults == []
    assert tally.counts["waits"] >= 2_500


@pytest.mark.parametrize("fault", ["lost-wake-up", "read-before-subscribe"])
def test_the_races_bite(fault: str) -> None:
    """A wake-up that is lost, or a subscription that comes after the read, hangs a wait."""
    plan = races.Plan(waits=100_000, hang_s=4.0, program=plants.program(fault))
    assert any("hang" in found for found in races.run(plan, SEED).faults)


def test_cancelled_calls_leave_nothing() -> None:
    """2,000 calls taken back at any moment: no stream, subscription or task stays."""
    tally = cancels.run(cancels.Plan(calls=2_000), SEED)
    assert [fault for fault in tally.faults if "memory" not in fault] == []
    assert tally.counts["cancelled"] == 2_000


def test_the_cancels_bite() -> None:
    """A server that keeps what its streams waited for is found out."""
    plan = cancels.Plan(calls=1_000, fault="kept-subscriptions", settle_s=3.0)
    faults = cancels.run(plan, SEED).faults
    assert any("subscriptions are left" in fault for fault in faults), faults


def test_clients_wait_over_restarts() -> None:
    """30 clients get every result while the server is killed or ended twice."""
    tally = restarts.run(restarts.Plan(clients=30, restarts=2, away_s=(0.0, 0.3)), SEED)
    assert tally.faults == []
    assert tally.counts["results waited for"] == 90


def test_the_restarts_bite() -> None:
    """A server that wakes nobody leaves clients waiting."""
    plan = restarts.Plan(clients=30, restarts=0, wait_s=5.0, program=plants.program("no-wake-ups"))
    assert any("hang" in fault for fault in restarts.run(plan, SEED).faults)


@moves_clocks
def test_lives_follow_the_clock_when_it_jumps() -> None:
    """Eight jumps: what is due is gone, what is not is there, and streams tell everything."""
    tally = clocks.run(clocks.Plan(jumps=8), SEED)
    assert tally.faults == []
    assert tally.counts["of them gone"] > 0


@moves_clocks
def test_the_clocks_bite() -> None:
    """A server whose clock stands still keeps what is over."""
    faults = clocks.run(clocks.Plan(jumps=8, program=plants.program("stopped-clock")), SEED).faults
    assert any("after its end" in fault for fault in faults), faults


def test_an_overloaded_server_recovers() -> None:
    """At three times what it can do it refuses with a reason, and is there again at once."""
    short = overload.Plan(1.0, queue_bytes=plants.SHORT_QUEUE_BYTES, fault="short-queue")
    tally = overload.run(short, SEED)
    assert tally.faults == []
    assert tally.counts["batches stored"] > 0
    assert tally.counts["batches refused as OVERLOADED"] > 0


def test_the_overload_bites() -> None:
    """A server that goes on refusing after it was overloaded has not recovered."""
    plan = overload.Plan(1.0, 3.0, plants.SHORT_QUEUE_BYTES, fault="overloaded-for-ever")
    faults = overload.run(plan, SEED).faults
    assert any("not recovered" in fault for fault in faults), faults


def test_a_short_soak_is_flat() -> None:
    """9 s of everything: nobody is refused, and nothing is held more and more."""
    tally = soak.run(soak.Plan(seconds=9.0, slope_max=36_000.0), SEED)
    assert tally.faults == []
    assert tally.counts["turns"] > 0


def test_the_soak_bites() -> None:
    """A server that keeps a little of every report has a slope."""
    faults = soak.run(soak.Plan(seconds=9.0, slope_max=360.0, fault="leak"), SEED).faults
    assert any("memory grows" in fault for fault in faults), faults


def test_tenants_see_nothing_of_each_other() -> None:
    """600 steps of three tenants with the same ids: each is answered as if it were alone."""
    tally = tenants.run(tenants.Plan(steps=600), SEED)
    assert tally.faults == []
    assert min(tally.counts[what] for what in ("calls", "streams held", "trespasses")) > 0


@pytest.mark.parametrize(
    "fault", ["skipped-authorisation", "member-without-namespace", "hints-without-namespace"]
)
def test_the_tenants_bite(fault: str) -> None:
    """A check that is skipped, a key or a hint that is shared: another tenant shows through."""
    plan = tenants.Plan(steps=20_000, program=plants.program(fault))
    assert tenants.run(plan, SEED).faults != []
