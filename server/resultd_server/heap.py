"""Garbage is looked for seldom, and memory that was freed goes back to the system.

heap.settle()  # everything is imported, and no call has come
asyncio.create_task(heap.run())

Of its own Python looks for garbage among every 700 new objects that stay, and now and then among
all 50,000 that imports leave, for 36 ms: together a tenth of a busy server's CPU. Hardly anything
here is freed that way.

What thousands of calls at once allocated lies, freed, between blocks that are still in use, and
glibc keeps the pages: after a flood a process that holds 12 MiB has 200. `malloc_trim` gives them
back, and holds up whoever allocates meanwhile for some ms: so only a process that does nearly
nothing does it, and only while something comes of it or it has grown since.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

EVERY_S = 10.0
BUSY = 0.1
"""Of one core: who does more than that is not held up."""

WORTH_BYTES = 4 * 2**20
"""Grown by less, or with less given back, a process is left alone for a while."""

AGAIN_S = 20.0
AGAIN_MAX_S = 3_600.0
"""Then it is tried all the same, less and less often: what was in use may have been freed since."""

GARBAGE_OBJECTS = 10_000
GARBAGE_TURNS = 3
"""So many objects more than were freed, and garbage is looked for among them, for a ms or two;
every so many times also among those that the times before left."""

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def settle() -> None:
    """What is there now stays for as long as the process: garbage is looked for beside it.

    Nothing of a call may be there: garbage that something frozen refers to is never found.
    """
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS, GARBAGE_TURNS, gc.get_threshold()[2])


class Quiet:
    """Whether it is time, looked at every now and then."""

    def __init__(self) -> None:
        self._left_bytes = self._cpu_s = self._at_s = 0.0
        self._again_s = 0.0
        self._pause_s = AGAIN_S

    def due(self, held_bytes: float, cpu_s: float, at_s: float) -> bool:
        """Whether a process that holds so much now and has used so much CPU should give back."""
        busy = cpu_s - self._cpu_s > BUSY * (at_s - self._at_s)
        self._cpu_s, self._at_s = cpu_s, at_s
        if held_bytes > self._left_bytes + WORTH_BYTES:
            self._pause_s = AGAIN_S
            return not busy
        return not busy and at_s >= self._again_s

    def gave_back(self, held_bytes: float, left_bytes: float, at_s: float) -> None:
        """So much was held and is left: in use, if little came of it; else there may be more."""
        if held_bytes - left_bytes >= WORTH_BYTES:
            self._left_bytes = 0.0
            return
        self._left_bytes = left_bytes
        self._again_s = at_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, AGAIN_MAX_S)


async def run() -> None:
    """Gives back until cancelled; returns at once where the system does not know how."""
    give_back = find_trim()
    if give_back is None:
        return
    quiet = Quiet()
    while True:
        await asyncio.sleep(EVERY_S)
        held = held_bytes()
        if quiet.due(held, time.process_time(), time.monotonic()):
            await asyncio.to_thread(give_back)
            quiet.gave_back(held, held_bytes(), time.monotonic())


def find_trim() -> Callable[[], object] | None:
    """glibc's `malloc_trim`, which returns every page that is all free; None but on Linux."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return None if trim is None or not _STATM.exists() else lambda: trim(0)


def held_bytes() -> int:
    """Memory of this process that no file stands behind."""
    _, resident, of_files, *_ = map(int, _STATM.read_text().split())
    return (resident - of_files) * _PAGE_BYTES
