"""Hosts that lose one another. `python -m tests.campaigns.links` does more of it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns import links, streams
from tests.campaigns._record import Size, Tally
from tests.support import plants
from tests.support.links import Link, remove_leftovers, why_not
from tests.tooling.repository import ROOT


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


@pytest.mark.slow
def test_the_links_bite() -> None:
    """A server whose cursors stay behind: who goes on after the cable was out gets events twice."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    program = plants.program("cursor-behind")
    plan = streams.Plan(events=1, members=200, groups=1, pause_s=(0.1, 0.4), program=program)
    assert any("duplicate" in fault for fault in links.run(plan, seed=7).faults)


LEAVES_ONE = """
import os, signal
from tests.support.links import Link
link = Link().__enter__()
print(link.within[-1], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def namespaces() -> set[str]:
    """The names of those there are."""
    done = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True)
    return {line.split()[0] for line in done.stdout.splitlines()}


def test_what_a_killed_process_left_is_removed_and_nobody_elses() -> None:
    """Its namespace, its cable and what runs there; not what a living process has."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with Link() as mine:
        done = subprocess.run(
            [sys.executable, "-c", LEAVES_ONE], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        left = done.stdout.strip()
        assert {left, mine.within[-1]} <= namespaces()
        command = ["ip", "netns", "exec", left, "sh", "-c", "echo there; exec sleep 1000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as inside:
            assert inside.stdout is not None
            inside.stdout.readline()
            remove_leftovers()
            assert inside.wait(20) == -signal.SIGKILL
        assert left not in namespaces()
        assert not Path("/sys/class/net", f"{left}a").exists()
        assert mine.within[-1] in namespaces()


def test_where_there_can_be_no_links_a_campaign_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is left out with the reason, and breaks nothing."""
    monkeypatch.setenv("PATH", "")
    assert links.run(links.CAMPAIGN.plans[Size.CI], seed=7) == Tally()
    assert "left out, " in capsys.readouterr().out
