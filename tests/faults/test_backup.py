"""A store is copied under load: all that was acknowledged before is in the copy."""

from __future__ import annotations

import asyncio
import copy
import itertools
import sys
import time
from pathlib import Path

import grpc
import pytest

from resultd import aio
from resultd.v1 import group_pb2, group_service_pb2
from resultd_server.engine import audit, backup
from tests.support import reports
from tests.support.acknowledged import FORGOTTEN, STARTED, UNKNOWN, Load, done_in, read_all
from tests.support.addresses import free_address
from tests.support.frames import anext_of
from tests.support.in_process import Served, serving, until
from tests.support.server_process import ServerProcess
from tests.support.stores import Clock, Store, make_engine
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


async def test_a_restore_under_a_stream_takes_nothing_from_its_user(tmp_path: Path) -> None:
    """A cursor younger than the backup fits by chance: the stream begins again all the same."""
    store, restored, address = tmp_path / "store", tmp_path / "restored", free_address()

    async def report(served: Served, *task_ids: str) -> None:
        for task_id in task_ids:
            await served.results.StoreResult(reports.success(task_id, b'"%s"' % task_id.encode()))

    async with serving(engine="lmdb", data=store, listen=address) as served:
        members = [group_pb2.GroupMember(id=name) for name in "abcd"]
        await served.groups.CreateGroup(
            group_service_pb2.CreateGroupRequest(group_id="g", members=members, seal=True)
        )
        await report(served, "a")
    backup.back_up(store, tmp_path / "b")
    async with aio.Client(f"resultd://{address}?heartbeat=1") as client:
        told = client.group("g").iterate(timeout=50)
        async with serving(engine="lmdb", data=store, listen=address) as served:
            await report(served, "b", "c")
            values = [await anext_of(told) for _ in range(3)]
        backup.restore(tmp_path / "b", restored, time.time_ns() // 10**6)
        async with serving(engine="lmdb", data=restored, listen=address) as served:
            await report(served, "d", "c")  # the third to be done is the same again
            values.append(await anext_of(told))
            await report(served, "b")
            values += [value async for value in told]
    assert values == ["a", "b", "c", "d"]


STALLED = """
import sys, time
from pathlib import Path
from resultd_server.engine import backup, environment

def stall(*_):
    print("reading", flush=True)
    time.sleep(3600)

environment.copy_to = stall
backup.back_up(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("name", ["journaled", "lmdb"])
async def test_a_backup_that_was_killed_pins_no_pages(name: str, tmp_path: Path) -> None:
    """Its reader is cleared while the server writes, and freed pages are used again."""
    clock = Clock()
    engine = make_engine(name, clock, tmp_path / "store")
    await engine.start()
    store = Store(engine, clock)
    await store.report("t")

    def pinned() -> int:
        space = engine.stats().space
        assert space is not None
        return space.oldest_reader_transactions

    copying = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STALLED, str(tmp_path / "store"), str(tmp_path / "b"),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert copying.stdout is not None
    assert await copying.stdout.readline() == b"reading\n"
    numbers = itertools.count()
    while not pinned():
        await store.report(f"t{next(numbers)}", value=bytes(100_000))
        await asyncio.sleep(0.01)
    copying.kill()
    await copying.wait()
    while pinned():
        await store.report(f"t{next(numbers)}", value=bytes(100_000))
        await asyncio.sleep(0.01)
    await engine.close()
    assert not (tmp_path / "b").exists()
