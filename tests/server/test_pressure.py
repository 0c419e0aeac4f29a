"""A process that holds more than it may: who is ended, in which order, and when it is over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from resultd_server import heap, pressure
from resultd_server.pressure import SHARES, Pressure
from tests.support.in_process import until

MOST = 1_000
MACHINE_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Relief:
    """Ends so many each time, and keeps the shares it was asked for."""

    def __init__(self, ends: int = 0) -> None:
        self.shares: list[float] = []
        self._ends = ends

    def __call__(self, share: float) -> int:
        """Ends them."""
        self.shares.append(share)
        return self._ends


# What is done about it.


@pytest.mark.parametrize("held", [MOST - 1, MOST])
def test_within_the_bound_nothing_is_done(held: int) -> None:
    """Nobody is ended or kept out, however often it is looked, and nothing is said."""
    relief = Relief(1)
    looked = Pressure(MOST, [relief])
    with capture_logs() as lines:
        assert [looked.look(held) for _ in range(2 * len(SHARES))] == [True] * 2 * len(SHARES)
    assert (relief.shares, looked.short, looked.ended, lines) == ([], False, 0, [])


@pytest.mark.parametrize("held", [MOST + 1, 10 * MOST])
def test_beyond_the_bound_everybody_who_knows_of_waiters_ends_some(held: int) -> None:
    """The first look already begins, and keeps out who is new; each relief is asked."""
    reliefs = [Relief(2), Relief(3)]
    looked = Pressure(MOST, reliefs)
    with capture_logs() as lines:
        assert looked.look(held)
    assert [relief.shares for relief in reliefs] == [[SHARES[0]], [SHARES[0]]]
    assert (looked.short, looked.ended) == (True, 5)
    [line] = lines
    assert (line["event"], line["log_level"]) == ("memory is short", "warning")
    assert (line["held_bytes"], line["most_bytes"]) == (held, MOST)


def test_shares_grow_until_it_helps_and_begin_anew() -> None:
    """Once enough is free nobody is kept out; the next time begins with the smallest share."""
    relief = Relief(1)
    looked = Pressure(MOST, [relief])
    for _ in range(3):
        assert looked.look(MOST + 1)
    assert relief.shares == list(SHARES[:3]) == sorted(set(SHARES))[:3]
    with capture_logs() as lines:
        assert looked.look(MOST)
    assert [(line["event"], line["ended"]) for line in lines] == [("memory is enough again", 3)]
    assert (looked.short, relief.shares) == (False, list(SHARES[:3]))
    assert looked.look(MOST + 1)
    assert (looked.short, relief.shares[3:]) == (True, [SHARES[0]])


def test_where_nothing_helps_it_says_so_and_lets_everybody_in() -> None:
    """After every share the bound itself is wrong: an error, once; later it begins anew."""
    relief = Relief()
    looked = Pressure(MOST, [relief])
    for number in range(len(SHARES)):
        assert looked.look(10 * MOST)
        assert (looked.short, relief.shares) == (True, list(SHARES[: number + 1]))
    with capture_logs() as lines:
        assert not looked.look(10 * MOST)
    [line] = lines
    assert line["log_level"] == "error"
    assert "raise memory_max_bytes" in line["event"]
    assert (looked.short, relief.shares) == (False, list(SHARES))
    assert looked.look(10 * MOST)
    assert (looked.short, relief.shares) == (True, [*SHARES, SHARES[0]])


# How it is looked at.


class Memory:
    """What a process holds: `held`, of which `freed` counts until it is given back."""

    def __init__(self, held: int, freed: int = 0) -> None:
        self.held = held
        self.freed = freed
        self.looks = 0
        self.done: list[str] = []

    def give_back(self) -> None:
        """In the place of glibc's."""
        self.done.append("give back")
        if self.freed:  # in a thread: what a test says meanwhile stays
            self.held -= self.freed
            self.freed = 0

    def look(self) -> int:
        """In the system's place."""
        self.looks += 1
        return self.held

    def relieve(self, share: float) -> int:
        """Ends nobody."""
        self.done.append("relieve")
        return 0


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked all the time."""
    monkeypatch.setattr(pressure, "EVERY_S", 0.001)
    monkeypatch.setattr(pressure, "REST_S", 0.001)


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts to look at a memory."""
    tasks: list[asyncio.Task[None]] = []

    def start(memory: Memory) -> Pressure:
        monkeypatch.setattr(heap, "find_trim", lambda: memory.give_back)
        monkeypatch.setattr(heap, "held_bytes", memory.look)
        looked = Pressure(MOST, [memory.relieve])
        tasks.append(asyncio.create_task(looked.run()))
        return looked

    yield start
    for task in tasks:
        task.cancel()


@pytest.mark.usefixtures("often")
async def test_what_was_freed_is_given_back_before_anybody_is_ended(looking: Any) -> None:
    """Where that is enough nobody is ended; where it is not, it was asked for first each time."""
    memory = Memory(MOST + 1, freed=1)
    looked = looking(memory)
    await until(lambda: memory.looks > 2)  # before it, after it, and the next time
    memory.held += 1
    await until(lambda: memory.done.count("relieve") >= 2)
    assert memory.done[:2] == ["give back", "give back"]  # the first was enough
    assert memory.done[2:5] == ["relieve", "give back", "relieve"]
    assert looked.short
    memory.held = MOST
    await until(lambda: not looked.short)


@pytest.mark.usefixtures("often")
async def test_it_goes_on_after_a_rest(looking: Any) -> None:
    """All rounds were for nothing, and after a while they begin anew."""
    memory = Memory(10 * MOST)
    looking(memory)
    await until(lambda: memory.done.count("relieve") > len(SHARES))


async def test_it_rests_where_nothing_helps(looking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look every quarter of a second, and a minute after all of them were for nothing."""
    slept: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)
        await asyncio.sleep(0)

    told = SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread)
    monkeypatch.setattr(pressure, "asyncio", told)
    looking(Memory(10 * MOST))
    rounds = [pressure.EVERY_S] * (len(SHARES) + 1)
    await until(lambda: len(slept) > len(rounds) + 1)
    assert slept[: len(rounds) + 2] == [*rounds, pressure.REST_S, pressure.EVERY_S]


async def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is not known there: it ends by itself, and has ended nobody."""
    monkeypatch.setattr(heap, "find_trim", lambda: None)
    relief = Relief()
    await asyncio.wait_for(Pressure(0, [relief]).run(), 20)
    assert relief.shares == []


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


@pytest.mark.parametrize(("processes", "most"), [(1, 6_000), (4, 1_500)])
def test_where_nobody_says_it_is_a_part_of_what_there_is(
    groups: Groups, processes: int, most: int
) -> None:
    """Three quarters, split the same."""
    groups.say("0::/")
    groups.limit("memory.max", 8_000)
    assert pressure.most_bytes(None, processes) == most
