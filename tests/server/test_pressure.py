"""A process that holds more than it may: who is ended, in which order, and when it is over."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from resultd_server import heap, pressure
from resultd_server.pressure import SHARES, Pressure
from tests.support.in_process import until
from tests.support.memory import MIB

MOST = 1_000
MACHINE_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Process:
    """What a process holds: `held`, of which `freed` counts until it is given back."""

    def __init__(self, held: int, freed: int = 0) -> None:
        self.held = held
        self.freed = freed
        self.done: list[str | float] = []
        self.broken: Exception | None = None
        self.looks = 0

    def give_back(self) -> None:
        """In the place of glibc's."""
        self.done.append("give back")
        self.held, self.freed = self.held - self.freed, 0

    def look(self) -> int:
        """In the system's place."""
        self.looks += 1
        if self.broken is not None:
            raise self.broken
        return self.held

    def relieve(self) -> int:
        """Ends two calls."""
        self.done.append("calls")
        return 2

    def close(self, share: float) -> int:
        """Closes three connections."""
        assert threading.current_thread() is not threading.main_thread()
        self.done.append(share)
        return 3

    def rounds(self) -> list[str | float]:
        """What was done, and not said how it was looked for."""
        return [each for each in self.done if each != "give back"]


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    """In the place of this one."""
    process = Process(0)
    monkeypatch.setattr(heap, "find_trim", lambda: process.give_back)
    monkeypatch.setattr(heap, "held_bytes", process.look)
    return process


def looking(process: Process) -> Pressure:
    """What looks at it."""
    return Pressure(MOST, process.relieve, process.close)


ROUNDS: list[str | float] = [
    done for share in SHARES for done in (("calls", share) if share else ("calls",))
]
"""What is done in all of them."""

# What is done about it.


@pytest.mark.parametrize("held", [MOST - 1, MOST])
async def test_within_the_bound_nothing_is_done(process: Process, held: int) -> None:
    """Nobody is ended or kept out, however often it is looked, and nothing is said."""
    looked = looking(process)
    process.held = held
    with capture_logs() as lines:
        for _ in range(2 * len(SHARES)):
            await looked.look(process.give_back)
    assert (process.done, looked.short, looked.ended, lines) == ([], False, 0, [])


@pytest.mark.parametrize("held", [MOST + 1, 10 * MOST])
async def test_beyond_the_bound_calls_on_their_way_make_room(process: Process, held: int) -> None:
    """The first look already begins, and keeps out who is new; what was freed is given back."""
    looked = looking(process)
    process.held = held
    with capture_logs() as lines:
        await looked.look(process.give_back)
    assert process.done == ["give back", "calls"]
    assert (looked.short, looked.ended, looked.closed) == (True, 2, 0)
    [line] = lines
    assert (line["event"], line["log_level"]) == ("memory is short", "warning")
    assert (line["held_bytes"], line["most_bytes"]) == (held, MOST)


async def test_what_was_freed_is_not_held(process: Process) -> None:
    """Where it is enough to give it back nobody is ended."""
    looked = looking(process)
    process.held, process.freed = MOST + 1, 1
    await looked.look(process.give_back)
    assert (process.done, looked.short) == (["give back"], False)


async def test_then_connections_are_closed_more_and_more(process: Process) -> None:
    """Until a tenth of the bound is free: then nobody is kept out, and it would begin anew."""
    looked = looking(process)
    process.held = MOST + 1
    for _ in range(5):
        await looked.look(process.give_back)
    assert process.rounds() == ["calls", "calls", "calls", 1 / 16, "calls", 1 / 8, "calls", 1 / 4]
    assert (looked.ended, looked.closed) == (10, 9)
    process.held = MOST * 9 // 10 + 1
    await looked.look(process.give_back)
    assert looked.short
    process.held -= 1
    process.done.clear()
    with capture_logs() as lines:
        await looked.look(process.give_back)
        process.held = MOST
        await looked.look(process.give_back)
        process.held = MOST + 1
        await looked.look(process.give_back)
    assert [line["event"] for line in lines] == ["memory is enough again", "memory is short"]
    assert process.rounds() == ["calls"]


async def test_what_no_caller_holds_is_left_alone_and_may_not_grow(process: Process) -> None:
    """All connections were closed: an error, once, and everybody is let in, until it is a tenth
    more; where it falls below the bound, that counts again.
    """
    looked = looking(process)
    process.held = 2 * MOST
    for _ in SHARES:
        await looked.look(process.give_back)
        assert looked.short
    with capture_logs() as lines:
        for process.held in (2 * MOST, int(2.2 * MOST)):
            await looked.look(process.give_back)
    [line] = lines
    assert (line["event"], line["log_level"]) == ("memory is short, and not for callers", "error")
    assert (process.rounds(), looked.short) == (ROUNDS, False)
    for process.held, short in ((int(2.2 * MOST) + 1, True), (MOST * 9 // 10, False)):
        await looked.look(process.give_back)
        assert looked.short is short
    process.held = MOST + 1
    await looked.look(process.give_back)
    assert looked.short


async def test_who_comes_back_as_fast_is_closed_again(process: Process) -> None:
    """While closing all frees a tenth what is held is callers': there is no other bound."""
    looked = looking(process)
    for round_ in range(3 * len(SHARES)):
        process.held = int(100 * MOST * 0.89**round_)
        await looked.look(process.give_back)
        assert looked.short
    assert process.rounds()[-4:] == ["calls", 1.0, "calls", 1.0]


async def test_a_wider_bound_follows_what_is_held(process: Process) -> None:
    """Where some of what was no caller's is freed, callers may not have it."""
    looked = looking(process)
    process.held = 5 * MOST
    for _ in range(len(SHARES) + 1):
        await looked.look(process.give_back)
    for process.held, short in ((2 * MOST, False), (int(2.2 * MOST) + 1, True)):
        await looked.look(process.give_back)
        assert looked.short is short
    looked = looking(process)
    process.held = 5 * MOST
    for _ in range(len(SHARES) + 1):
        await looked.look(process.give_back)
    for process.held, short in ((MOST, False), (MOST + 1, True)):
        await looked.look(process.give_back)
        assert looked.short is short


# How it is looked at.


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked all the time."""
    monkeypatch.setattr(pressure, "EVERY_S", 0.001)
    monkeypatch.setattr(pressure, "ROUND_S", 0.001)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), RuntimeError("no thread"), MemoryError()]
)
async def test_a_look_that_fails_is_not_the_last(process: Process, error: Exception) -> None:
    """Nobody is kept out for ever where a process has no descriptor or thread left for a look."""
    looked = looking(process)
    process.held = MOST + 1
    task = asyncio.create_task(looked.run())
    await until(lambda: looked.short)
    with capture_logs() as lines:
        process.broken = error
        await until(lambda: not looked.short)
        looks = process.looks
        await until(lambda: process.looks > looks + 3)
    assert [line["event"] for line in lines] == ["memory cannot be looked at"]
    process.broken = None
    await until(lambda: looked.short)
    task.cancel()


@pytest.mark.usefixtures("often")
async def test_who_looks_no_more_keeps_nobody_out(process: Process) -> None:
    """Whatever ends it."""
    looked = looking(process)
    process.held = MOST + 1
    task = asyncio.create_task(looked.run())
    await until(lambda: looked.short)
    process.broken = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await task
    assert not looked.short


async def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is not known there: it ends by itself, and has ended nobody."""
    monkeypatch.setattr(heap, "find_trim", lambda: None)
    process = Process(0)
    looked = Pressure(0, process.relieve, process.close)
    await asyncio.wait_for(looked.run(), 20)
    assert process.done == []
    assert looked.held_bytes() is None


# What there is.


class Groups:
    """Control groups: what a process reads of its own, and the tree of their limits."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._said = directory / "said"
        self._top = directory / "top"
        monkeypatch.setattr(pressure, "_CGROUP", self._said)
        monkeypatch.setattr(pressure, "_CGROUPS", self._top)

    def say(self, *lines: str) -> None:
        """The groups this process is in."""
        self._said.write_text("".join(f"{line}\n" for line in lines))

    def limit(self, path: str, said: int | str) -> None:
        """One group's limit."""
        file = self._top / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{said}\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """In the system's place."""
    return Groups(tmp_path, monkeypatch)


@pytest.mark.usefixtures("groups")
def test_without_control_groups_there_is_the_machine() -> None:
    """Nothing is there to read."""
    assert pressure.available_bytes() == MACHINE_BYTES


@pytest.mark.parametrize(("own", "parents"), [(5_000, 4_000), (4_000, 5_000), ("max", 4_000)])
def test_the_narrowest_group_counts(groups: Groups, own: int | str, parents: int) -> None:
    """Of the process' own and those around it, up to the top."""
    groups.say("0::/system.slice/resultd.service")
    groups.limit("system.slice/resultd.service/memory.max", own)
    groups.limit("system.slice/memory.max", parents)
    groups.limit("memory.max", 6_000)
    groups.limit("other/memory.max", 1)
    assert pressure.available_bytes() == 4_000


def test_a_group_without_a_limit_has_the_machines(groups: Groups) -> None:
    """Where every one says "max", and where one says more than there is."""
    groups.say("0::/a")
    groups.limit("a/memory.max", "max")
    groups.limit("memory.max", "max")
    assert pressure.available_bytes() == MACHINE_BYTES
    groups.limit("memory.max", MACHINE_BYTES + 1)
    assert pressure.available_bytes() == MACHINE_BYTES


def test_groups_of_version_1_count_too(groups: Groups) -> None:
    """Only the memory's: they have a tree of their own."""
    groups.say("12:cpu,cpuacct:/a", "5:memory:/a/b", "1:name=systemd:/a", "0::/a")
    groups.limit("memory/a/b/memory.limit_in_bytes", 9_223_372_036_854_771_712)
    groups.limit("memory/a/memory.limit_in_bytes", 4_000)
    groups.limit("memory/memory.limit_in_bytes", 9_223_372_036_854_771_712)
    groups.limit("cpu,cpuacct/a/memory.limit_in_bytes", 1)
    groups.limit("memory.limit_in_bytes", 1)
    assert pressure.available_bytes() == 4_000


@pytest.mark.parametrize(
    ("line", "limit"),
    [
        ("0::/system.slice/docker-1.scope", "memory.max"),
        ("5:memory:/docker/1", "memory/memory.limit_in_bytes"),
    ],
)
def test_in_a_container_the_top_is_its_own_group(groups: Groups, line: str, limit: str) -> None:
    """The path is the host's and not to be seen below the mount."""
    groups.say(line)
    groups.limit(limit, 4_000)
    assert pressure.available_bytes() == 4_000


# What a process may hold.


@pytest.mark.parametrize(("processes", "most"), [(1, 8_000), (3, 2_666)])
def test_what_is_said_is_split_among_processes(processes: int, most: int) -> None:
    """Each has its part, in whole bytes."""
    assert pressure.most_bytes(8_000, processes) == most


@pytest.mark.parametrize(("processes", "most"), [(1, 6_000), (4, 1_500), (1_000, 64)])
def test_where_nobody_says_it_is_a_part_of_what_there_is(
    groups: Groups, processes: int, most: int
) -> None:
    """Three quarters, split the same; but no less than a process needs."""
    groups.say("0::/")
    groups.limit("memory.max", 8_000 * MIB)
    assert pressure.most_bytes(None, processes) == most * MIB
