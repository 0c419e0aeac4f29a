"""Memory is bounded: when a process holds more than it may, callers make room.

pressure = Pressure(most_bytes, acceptance.relieve, close_share)
asyncio.create_task(pressure.run())
pressure.short  # nobody new is let in meanwhile

What has come of messages that are not whole yet lies in gRPC, and so do whole ones while their
call goes on, and answers that a peer does not take: up to 16 MiB each, and nobody is told how much
that is. A resource quota would bound it, which Python's gRPC has no word for. So the process looks
at what it holds. Calls whose requests are on their way are ended, and where that is not enough
connections are closed, more of them in each round: all that gRPC holds for somebody goes with
them, and clients try again, or resume (decision 0016).
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from resultd_server import heap, limits

EVERY_S = 0.1
ROUND_S = 0.25
"""What was ended is freed meanwhile."""

SHARES = (0.0, 0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 1.0)
"""Of the connections, closed in one round after another."""

ENOUGH = 0.9
"""Of what may be held: so much is left when callers have made room."""

GROWTH = 1.1
"""Where all that did not help, what is held then is no caller's: it may grow by a tenth."""

OF_AVAILABLE = 0.75
"""What a server may hold where nobody says: the rest is for the store's pages and for others."""

_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")

log = structlog.get_logger("resultd.memory")


class Pressure:
    """Whether memory is short, looked at all the time.

    `relieve` ends calls whose requests are on their way, `close` a share of the connections;
    both say how many that were. `close` is called in another thread.
    """

    def __init__(
        self, most_bytes: int, relieve: Callable[[], int], close: Callable[[float], int]
    ) -> None:
        self.most_bytes = most_bytes
        self.short = False
        #: Since the start: calls that were ended, and connections that were closed.
        self.ended = self.closed = 0
        self._relieve = relieve
        self._close = close
        self._rounds = 0
        self._in_use_bytes = 0.0
        self._closed_at_bytes = 0

    def held_bytes(self) -> int | None:
        """What is held; None where the system does not say it."""
        return None if heap.find_trim() is None else heap.held_bytes()

    async def run(self) -> None:
        """Looks until cancelled; returns at once where the system does not say what is held."""
        give_back = heap.find_trim()
        if give_back is None:
            return
        blind = False
        try:
            while True:
                await asyncio.sleep(ROUND_S if self.short else EVERY_S)
                try:
                    await self.look(give_back)
                except (OSError, RuntimeError, MemoryError) as error:
                    # No descriptor, thread or memory for a look: the next may have them.
                    if not blind:
                        log.error("memory cannot be looked at", error=repr(error))
                    blind, self.short = True, False
                else:
                    blind = False
        finally:
            self.short = False  # nobody is kept out for ever

    async def look(self, give_back: Callable[[], object]) -> None:
        """Sees what is held, and does a round of what is to be done about it."""
        most_bytes = max(self.most_bytes, self._in_use_bytes)
        wanted_bytes = most_bytes * (ENOUGH if self.short else 1)
        held_bytes = heap.held_bytes()
        if held_bytes > wanted_bytes:
            # What is free may still count, and what was cancelled may hold itself.
            gc.collect()
            await asyncio.to_thread(give_back)
            held_bytes = heap.held_bytes()
        if held_bytes <= wanted_bytes:
            if self.short:
                log.warning("memory is enough again", **self._facts(held_bytes))
            # What is no caller's may be freed, too, and is then no reason for a wider bound.
            kept_bytes = min(self._in_use_bytes, held_bytes * GROWTH)
            self._in_use_bytes = kept_bytes if held_bytes > self.most_bytes else 0.0
            self.short, self._rounds = False, 0
        elif self._rounds == len(SHARES) and held_bytes > self._closed_at_bytes * ENOUGH:
            log.error("memory is short, and not for callers", **self._facts(held_bytes))
            self._in_use_bytes = held_bytes * GROWTH
            self.short, self._rounds = False, 0
        else:
            if not self.short:
                log.warning("memory is short", **self._facts(held_bytes))
            self.short = True
            # The last again, as long as something comes of it: others may come as fast.
            share = SHARES[min(self._rounds, len(SHARES) - 1)]
            self._rounds = min(self._rounds + 1, len(SHARES))
            self.ended += self._relieve()
            if share:
                self._closed_at_bytes = held_bytes
                self.closed += await asyncio.to_thread(self._close, share)

    def _facts(self, held_bytes: int) -> dict[str, int]:
        return {
            "held_bytes": held_bytes,
            "most_bytes": self.most_bytes,
            "calls_ended": self.ended,
            "connections_closed": self.closed,
        }


def most_bytes(said: int | None, processes: int) -> int:
    """What one of so many processes may hold: its part of what was said, or of what there is."""
    if said is not None:
        return said // processes
    return max(limits.MEMORY_LEAST_BYTES, int(OF_AVAILABLE * available_bytes() / processes))


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
