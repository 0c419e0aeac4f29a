"""A client process that lives long, a twentieth of `python -m tests.campaigns.leaks`."""

from __future__ import annotations

import pytest

from tests.campaigns import leaks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("differs_from_redis", "redis_server"),
]


@pytest.mark.timeout(180)  # 10 s on a quiet machine; it is as long as the machine is slow
def test_a_client_holds_no_more_than_after_its_warm_up() -> None:
    """1,000 gets, 100 groups and 10 chords leave nothing: no memory, wait, stream or thread."""
    assert leaks.run(leaks.Plan(0.05), 0).faults == []


def test_the_leaks_bite() -> None:
    """A client that keeps its results is found out."""
    faults = leaks.run(leaks.Plan(0.001, hoarding=True), 0).faults
    assert any("AsyncResult" in fault for fault in faults), faults
