"""A server is killed under load: nothing it acknowledged is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.campaigns import kills
from tests.support import plants
from tests.support.acknowledged import Load
from tests.support.server_process import ServerProcess


@pytest.mark.parametrize("after_s", [0.3, 0.9, 1.3])
async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, after_s: float) -> None:
    """Killed before, about and after the first checkpoint, a server keeps what it answered."""
    load = Load(seed=int(after_s * 1000))
    server = ServerProcess(tmp_path, "--log-level", "error").start()
    running = asyncio.create_task(load.run(server.address))
    await asyncio.sleep(after_s)
    server.kill()
    await running
    with ServerProcess(tmp_path, "--log-level", "error") as again:
        assert await load.missing(again.address) == []
    assert load.acknowledged > 0


async def test_several_processes_find_what_one_left_behind(tmp_path: Path) -> None:
    """What a killed server of one process left in its journal, one of several serves."""
    load = Load(seed=5)
    server = ServerProcess(tmp_path, "--log-level", "error", "--workers", "1").start()
    running = asyncio.create_task(load.run(server.address))
    await asyncio.sleep(0.5)
    server.kill()
    await running
    with ServerProcess(tmp_path, "--log-level", "error", "--workers", "2") as again:
        assert await load.missing(again.address) == []
    assert load.acknowledged > 0


def test_a_server_that_is_killed_again_and_again_keeps_everything() -> None:
    """The campaign `kills`, small: streams go on, groups are whole, nothing is missing."""
    tally = kills.run(kills.Plan(kills=2), seed=4)
    assert tally.faults == []
    assert tally.counts["events streamed"] > 0


def test_answers_before_the_journal_is_written_are_found_out() -> None:
    """The campaign sees what a server loses that answers too early."""
    tally = kills.run(kills.Plan(kills=2, program=("tests.support.hasty_server",)), seed=4)
    assert tally.faults != []


def test_members_that_are_counted_twice_are_found_out() -> None:
    """Both in the store as it lies there and in what the server says of its groups."""
    plan = kills.Plan(kills=1, program=plants.program("double-count"))
    faults = kills.run(plan, seed=6).faults
    for said in ("members and", ": counts "):
        assert any(said in fault for fault in faults), (said, faults)
