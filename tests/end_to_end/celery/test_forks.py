"""Forks under Celery's API, a tenth of `python -m tests.campaigns.forks`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from resultd import testing
from tests.campaigns import forks

COUNT = 20
# Parent and child at a time; one alone is the campaign's.
NAMES = ("never-used-both", "first-use-both", "channel-both", "stream-both")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork on this platform"),
    pytest.mark.usefixtures("differs_from_redis"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that keeps nothing."""
    with testing.Server(engine="memory") as server:
        yield server.url


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_of_a_fork_go_on(url: str, name: str) -> None:
    """20 of 20 forks: who goes on stores and gets, whatever the parent did before."""
    assert forks.fork(name, url, COUNT) == forks.Outcome(forks=COUNT, hangs=0, failures=0, noise="")


def test_calls_in_flight_at_a_fork_are_tried_again(url: str) -> None:
    """20 forks while other threads are inside calls: none of these calls fails or is lost."""
    outcome = forks.fork("in-flight-both", url, COUNT)
    assert outcome.broken() == []
    assert outcome.forks == outcome.forks_with_calls_in_flight == COUNT
    assert outcome.calls > 0


def test_the_forks_bite() -> None:
    """A child that is left with a lock of a thread that is gone hangs, and is found out."""
    plan = forks.Plan(each=1, names=("never-used-child",), guarded=False)
    assert any("hang" in fault for fault in forks.run(plan, 0).faults)
