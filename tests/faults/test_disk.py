"""The disk fails or is full under a live server. More: `disk_faults`."""

from __future__ import annotations

import pytest

from tests.campaigns import disk_faults
from tests.support import plants

SEED = 3


def plan(name: str, fault: str = "none") -> disk_faults.Plan:
    """One fault, once; or skips the test and says why."""
    reason = disk_faults.why_not(name)
    if reason is not None:
        pytest.skip(reason)
    if fault == "none":
        return disk_faults.Plan(each=1, names=(name,))
    return disk_faults.Plan(1, (name,), plants.program(fault), settle_s=3.0)


@pytest.mark.parametrize("name", ["write of the journal", "sync of the store"])
def test_a_broken_disk_ends_the_server_and_nobody_is_told_a_lie(name: str) -> None:
    """Where a write or a sync fails, health says so, the server ends, and nothing is lost."""
    tally = disk_faults.run(plan(name), SEED)
    assert tally.faults == []
    assert tally.counts["writes acknowledged"] > 0


@pytest.mark.parametrize("name", ["full disk", "full store"])
def test_a_full_disk_is_a_mode_that_can_be_left(name: str) -> None:
    """Without room writes are STORE_FULL; reads, waits, deleting, expiry go on; with it, all."""
    tally = disk_faults.run(plan(name), SEED)
    assert tally.faults == []
    assert tally.counts["refused as STORE_FULL"] == 1


@pytest.mark.parametrize(
    ("name", "fault", "said"),
    [
        ("write of the journal", "overlooked-errors", "goes on though its disk has failed"),
        ("full store", "full-for-ever", "writes are taken again"),
        ("full store", "full-for-all", "a wait or deleting is refused with STORE_FULL"),
    ],
)
def test_the_disk_faults_bite(name: str, fault: str, said: str) -> None:
    """A server that overlooks what the disk says, or never gets over it, is found out."""
    faults = disk_faults.run(plan(name, fault), SEED).faults
    assert any(said in found for found in faults), faults
