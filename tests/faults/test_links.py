"""Hosts that lose one another. `python -m tests.campaigns.links` does more of it."""

from __future__ import annotations

import pytest

from tests.campaigns import links, streams
from tests.campaigns._record import Size, Tally
from tests.support.links import why_not


@pytest.mark.slow
def test_streams_go_on_when_the_cable_is_back() -> None:
    """Out for longer than 2.5 heartbeats, lossy, a restart unheard: no gap, nothing twice."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    tally = links.run(streams.Plan(events=1, members=200, groups=1, pause_s=(0.1, 0.4)), seed=7)
    assert tally.faults == []
    assert min(tally.counts[what] for what in (links.SHORT, links.LONG, links.RESTART)) > 0
    assert tally.counts["silences"] > 0
    assert tally.counts["packets lost"] > 0


def test_where_there_can_be_no_links_a_campaign_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is left out with the reason, and breaks nothing."""
    monkeypatch.setenv("PATH", "")
    assert links.run(links.CAMPAIGN.plans[Size.CI], seed=7) == Tally()
    assert "left out, " in capsys.readouterr().out
