"""A store is copied under load: all that was acknowledged before is in the copy."""

from __future__ import annotations

import asyncio
import copy
import sys
import time
from pathlib import Path

import grpc
import pytest

from resultd_server.engine import audit
from tests.support.acknowledged import FORGOTTEN, STARTED, UNKNOWN, Load, done_in, read_all
from tests.support.in_process import until
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

QUIET = ("--log-level", "error")
RANKS = {UNKNOWN[0]: 0, STARTED[0]: 1, "SUCCESS": 2, FORGOTTEN[0]: 3}
"""A task of the load goes this way, and never back."""

COMMAND = "import typer; from resultd_server.backup_command import {0}; typer.run({0})"


async def run(command: str, *arguments: str) -> str:
    """`resultd COMMAND` in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COMMAND.format(command), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, complaint = await process.communicate()
    assert process.returncode == 0, complaint
    return said.decode()


async def missing(before: Load, after: Load, address: str) -> list[str]:
    """What was acknowledged before and is less far now, or counted wrong, a line each."""
    async with grpc.aio.insecure_channel(address) as channel:
        stubs = Stubs(channel)
        found = await read_all(stubs, list(before.stood))
        lines = [
            f"{id_}: {found[id_][0]}, and was one of {standings}"
            for id_, standings in before.stood.items()
            if RANKS[found[id_][0]] < min(RANKS[standing[0]] for standing in standings)
            or (found[id_][0] == "SUCCESS" and len(standings) == 1 < RANKS[standings[0][0]]
                and found[id_] != standings[0])
        ]  # fmt: skip
        for group_id, (least, _) in before.counted.items():
            done, most = await done_in(stubs, group_id), after.counted[group_id][1]
            if not least <= done <= most:
                lines.append(f"{group_id}: counts {done}, not {least} to {most}")
    return lines


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_what_was_acknowledged_before_a_backup_is_in_it(
    tmp_path: Path, processes: str
) -> None:
    """Copied twice while 16 callers store, forget and count: no row is missing, none unfit."""
    load = Load(seed=8)
    server = ServerProcess(tmp_path, *QUIET, "--workers", processes).start()
    running = asyncio.create_task(load.run(server.address))
    befores = []
    for number in (1, 2):
        await until(lambda: load.acknowledged > 300 * number)  # noqa: B023  awaited in its turn
        befores.append(copy.deepcopy((load.stood, load.counted)))
        await run("backup", str(tmp_path / "data"), "--into", str(tmp_path / f"b{number}"))
    server.kill()
    await running
    for number, (stood, counted) in enumerate(befores, 1):
        before = Load(seed=8)
        before.stood, before.counted = stood, counted
        again = tmp_path / str(number)
        again.mkdir()
        await run("restore", str(tmp_path / f"b{number}"), "--into", str(again / "data"))
        assert audit.verify(again / "data", int(time.time() * 1000)).count == 0
        with ServerProcess(again, *QUIET) as restored:
            assert await missing(before, load, restored.address) == []
