"""Memory that was freed goes back to the system."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from resultd_server import config, heap, serve
from resultd_server.acceptance import Acceptance
from tests.support.memory import MIB, anonymous_bytes

GLIBC = pytest.mark.skipif(heap.find_trim() is None, reason="another C library than glibc")


@GLIBC
def test_what_is_held_is_what_no_file_stands_behind() -> None:
    """As the system says it."""
    assert abs(heap.held_bytes() - anonymous_bytes(os.getpid())) < 8 * MIB


FREED_BETWEEN = """
import asyncio
from resultd_server import heap

FREED_BYTES = 800 * 100_000

async def given_back(before_bytes):
    heap.EVERY_S, heap.BUSY = 0.05, 1_000.0
    giving = asyncio.create_task(heap.run())
    while heap.held_bytes() > before_bytes - FREED_BYTES / 2:
        await asyncio.sleep(0.05)
    giving.cancel()

pieces, pins = [], []
for _ in range(800):
    pieces.append(bytearray(100_000))
    pins.append(bytearray(2_000))
full_bytes = heap.held_bytes()
del pieces
before_bytes = heap.held_bytes()
assert before_bytes > full_bytes - FREED_BYTES / 10, "nothing to do: freed by itself"
asyncio.run(asyncio.wait_for(given_back(before_bytes), 20))
"""


@GLIBC
def test_what_was_freed_goes_back() -> None:
    """Most of it, though something between stays.

    In a process of its own: in one with holes what is to stay finds place elsewhere.
    """
    done = subprocess.run([sys.executable, "-c", FREED_BETWEEN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


SETTLED = """
import gc
from resultd_server import heap

there, before = len(gc.get_objects()), gc.get_threshold()
heap.settle()
assert gc.get_freeze_count() >= there
wanted = (heap.GARBAGE_OBJECTS, heap.GARBAGE_TURNS, before[2])
assert gc.isenabled() and gc.get_threshold() == wanted
circle = []
circle.append(circle)
del circle
assert gc.collect() == 1
"""


def test_what_is_there_from_the_start_is_no_garbage() -> None:
    """It is not looked at again; what comes later is, and less often."""
    done = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


async def test_a_server_settles_before_it_asks_for_calls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing of a call is kept for ever."""
    order: list[str] = []
    asks, orphaned = asyncio.Event(), asyncio.Event()
    start = Acceptance.start

    def begin(itself: Acceptance) -> None:
        order.append("asks")
        start(itself)
        asks.set()

    monkeypatch.setattr(heap, "settle", lambda: order.append("settled"))
    monkeypatch.setattr(Acceptance, "start", begin)
    settings = config.load({"data": tmp_path, "listen": f"unix:{tmp_path}/socket"})
    running = asyncio.create_task(serve.run(settings, orphaned=orphaned))
    await asks.wait()
    orphaned.set()
    assert await running == 0
    assert order == ["settled", "asks"]


def test_only_a_process_that_does_nearly_nothing_gives_back() -> None:
    """Others would be held up."""
    quiet = heap.Quiet()
    assert not quiet.due(100 * MIB, cpu_s=5.0, at_s=10.0)
    assert quiet.due(100 * MIB, cpu_s=5.5, at_s=20.0)


def test_what_is_in_use_is_not_looked_for_again() -> None:
    """A process gives back until little comes of it, and again when it has grown since."""
    quiet = heap.Quiet()
    assert quiet.due(100 * MIB, cpu_s=0.0, at_s=10.0)
    quiet.gave_back(100 * MIB, 60 * MIB, at_s=10.0)
    assert quiet.due(60 * MIB, cpu_s=0.0, at_s=20.0)
    quiet.gave_back(60 * MIB, 58 * MIB, at_s=20.0)
    assert not quiet.due(61 * MIB, cpu_s=0.0, at_s=30.0)
    assert quiet.due(63 * MIB, cpu_s=0.0, at_s=31.0)


def test_what_was_in_use_is_looked_for_after_a_while() -> None:
    """It may have been freed since: after longer and longer, and anew once it has grown."""
    quiet = heap.Quiet()
    at_s, tried = 0.0, []
    while at_s < 4 * heap.AGAIN_MAX_S:
        at_s += 10.0
        if quiet.due(58 * MIB, cpu_s=0.0, at_s=at_s):
            tried.append(at_s)
            quiet.gave_back(58 * MIB, 57 * MIB, at_s)
    assert tried[:4] == [10.0, 30.0, 70.0, 150.0]
    assert tried[-1] - tried[-2] == heap.AGAIN_MAX_S
    assert quiet.due(70 * MIB, cpu_s=0.0, at_s=at_s + 10)
    quiet.gave_back(70 * MIB, 70 * MIB, at_s + 10)
    assert not quiet.due(70 * MIB, cpu_s=0.0, at_s=at_s + 20)
    assert quiet.due(70 * MIB, cpu_s=0.0, at_s=at_s + 30)


async def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends by itself."""
    monkeypatch.setattr(heap, "find_trim", lambda: None)
    await asyncio.wait_for(heap.run(), 20)
