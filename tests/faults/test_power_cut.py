"""The power goes under a server: nothing it acknowledged is gone. More: `power_cuts`."""

from __future__ import annotations

import pytest

from tests.campaigns import power_cuts


def cut(filesystem: str, seed: int, module: str = "resultd_server") -> power_cuts.Cut:
    """One cut, or skips the test and says why."""
    reason = power_cuts.why_not(filesystem)
    if reason is not None:
        pytest.skip(reason)
    return power_cuts.cut(filesystem, seed, module)


@pytest.mark.parametrize("filesystem", power_cuts.MAKE)
def test_what_was_acknowledged_survives_a_power_cut(filesystem: str) -> None:
    """Records, tombstones and counts that a caller was told of are there afterwards."""
    found = cut(filesystem, seed=11)
    assert found.acknowledged > 0
    assert found.missing == []


def test_a_journal_that_is_not_waited_for_is_found_out() -> None:
    """The checker sees what is lost where the server does not wait for the disk."""
    found = cut("ext4", seed=2, module="tests.support.undurable_server")
    assert found.acknowledged > 0
    assert found.missing != []
