"""Memory is bounded: when a process holds more than it may, who waits makes room.

pressure = Pressure(most_bytes, [acceptance.relieve, streams.relieve])
asyncio.create_task(pressure.run())
pressure.short  # nobody new is let in meanwhile

What has come of messages that are not whole yet lies in gRPC, up to 16 MiB for each call and
stream, and nobody is told how much that is. A resource quota would bound it, which Python's gRPC
has no word for. So the process looks at what it holds. Those who wait for the rest of a message
are ended, a larger share in each round: clients try again, or resume (decision 0016).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from resultd_server import heap

EVERY_S = 0.25
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 1.0, 1.0)
"""Of those that wait, ended in one round after another."""

REST_S = 60.0
"""Where all that did not help nobody is ended, nor kept out, for so long."""

OF_AVAILABLE = 0.75
"""What a server may hold where nobody says: the rest is for the store's pages and for others."""

_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")

Relief = Callable[[float], int]
"""Ends a share of what it knows to wait; how many that were."""

log = structlog.get_logger("resultd.memory")


class Pressure:
    """Whether memory is short, looked at all the time."""

    def __init__(self, most_bytes: int, reliefs: Sequence[Relief]) -> None:
        self.most_bytes = most_bytes
        self.short = False
        self.ended = 0
        self._reliefs = reliefs
        self._rounds = 0

    def held_bytes(self) -> int | None:
        """What is held; None where the system does not say it."""
        return None if heap.find_trim() is None else heap.held_bytes()

    async def run(self) -> None:
        """Looks until cancelled; returns at once where the system does not say what is held."""
        give_back = heap.find_trim()
        if give_back is None:
            return
        while True:
            await asyncio.sleep(EVERY_S)
            held_bytes = heap.held_bytes()
            if held_bytes > self.most_bytes:
                # What was freed may still count: it is asked for first.
                await asyncio.to_thread(give_back)
                held_bytes = heap.held_bytes()
            if not self.look(held_bytes):
                await asyncio.sleep(REST_S)

    def look(self, held_bytes: int) -> bool:
        """Does what is to be done about so much; whether there is a use in looking on."""
        if held_bytes <= self.most_bytes:
            if self.short:
                log.warning("memory is enough again", ended=self.ended, **self._facts(held_bytes))
            self.short, self._rounds = False, 0
            return True
        if not self.short:
            log.warning("memory is short", **self._facts(held_bytes))
            self.short = True
        if self._rounds == len(SHARES):
            log.error(
                "memory is short, and not for those who wait: raise memory_max_bytes, or let "
                "less be under way",
                **self._facts(held_bytes),
            )
            self.short, self._rounds = False, 0
            return False
        share = SHARES[self._rounds]
        self._rounds += 1
        self.ended += sum(relieve(share) for relieve in self._reliefs)
        return True

    def _facts(self, held_bytes: int) -> dict[str, int]:
        return {"held_bytes": held_bytes, "most_bytes": self.most_bytes}


def most_bytes(said: int | None, processes: int) -> int:
    """What one of so many processes may hold: its part of what was said, or of what there is."""
    return int((OF_AVAILABLE * available_bytes() if said is None else said) / processes)


def available_bytes() -> int:
    """Memory of the machine, or of the narrowest control group this process is in."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in _limits():
        try:
            text = limit.read_text().strip()
        except OSError:
            continue  # no such group here, or not ours to see
        if text.isdigit():  # else "max"
            found.append(int(text))
    return min(found)


def _limits() -> list[Path]:
    """Where the limits of this process' control groups stand, version 2 and 1."""
    try:
        groups = _CGROUP.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = _CGROUPS / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        group = top / path.lstrip("/")
        # In a container the path may be the host's, of which only the end is to be seen.
        found += [at / name for at in (group, *group.parents) if at.is_relative_to(top)]
    return found
