"""Memory that was freed goes back to the system."""

from __future__ import annotations

import asyncio
import os

import pytest

from resultd_server import heap
from tests.support.in_process import until
from tests.support.memory import MIB, anonymous_bytes

PIECES, PIECE_BYTES, PIN_BYTES = 800, 100_000, 2_000
FREED_BYTES = PIECES * PIECE_BYTES


def pinned() -> list[bytearray]:
    """Leaves 80 MB freed between small pieces that stay."""
    pieces, pins = [], []
    for _ in range(PIECES):
        pieces.append(bytearray(PIECE_BYTES))
        pins.append(bytearray(PIN_BYTES))
    del pieces
    return pins


GLIBC = pytest.mark.skipif(heap.find_trim() is None, reason="another C library than glibc")


@GLIBC
def test_what_is_held_is_what_no_file_stands_behind() -> None:
    """As the system says it."""
    assert abs(heap.held_bytes() - anonymous_bytes(os.getpid())) < 8 * MIB


@GLIBC
async def test_what_was_freed_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of it, though something between stays."""
    monkeypatch.setattr(heap, "EVERY_S", 0.05)
    monkeypatch.setattr(heap, "BUSY", 1_000.0)
    pins = pinned()
    before_bytes = heap.held_bytes()
    giving = asyncio.create_task(heap.run())
    try:
        await until(lambda: heap.held_bytes() < before_bytes - FREED_BYTES / 2)
    finally:
        giving.cancel()
    assert len(pins) == PIECES


def test_only_a_process_that_does_nearly_nothing_gives_back() -> None:
    """Others would be held up."""
    quiet = heap.Quiet()
    assert not quiet.due(100 * MIB, cpu_s=5.0, at_s=10.0)
    assert quiet.due(100 * MIB, cpu_s=5.5, at_s=20.0)


def test_what_is_in_use_is_not_looked_for_again() -> None:
    """A process gives back until little comes of it, and again when it has grown since."""
    quiet = heap.Quiet()
    assert quiet.due(100 * MIB, cpu_s=0.0, at_s=10.0)
    quiet.gave_back(100 * MIB, 60 * MIB)
    assert quiet.due(60 * MIB, cpu_s=0.0, at_s=20.0)
    quiet.gave_back(60 * MIB, 58 * MIB)
    assert not quiet.due(61 * MIB, cpu_s=0.0, at_s=30.0)
    assert quiet.due(63 * MIB, cpu_s=0.0, at_s=40.0)


async def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends by itself."""
    monkeypatch.setattr(heap, "find_trim", lambda: None)
    await asyncio.wait_for(heap.run(), 20)
