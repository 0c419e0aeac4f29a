"""Exact times on a machine that is busy with other things.

What the code waits for of its own is what the quickest of a few tries took: the rest is
the machine. Never too early is asked of every try.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

TRIES = 6


def check_takes(least: float, most: float, action: Callable[[], object]) -> None:
    """The action takes `least` seconds every time, and less than `most` in one of six tries."""
    for _ in range(TRIES):
        began = time.monotonic()
        action()
        took = time.monotonic() - began
        assert took >= least, f"ended early, after {took:.3f} s"
        if took < most:
            return
    raise AssertionError(f"{TRIES} tries, none under {most} s; the last took {took:.3f} s")


async def check_takes_async(
    least: float, most: float, action: Callable[[], Awaitable[object]]
) -> None:
    """The same of an awaitable."""
    for _ in range(TRIES):
        began = time.monotonic()
        await action()
        took = time.monotonic() - began
        assert took >= least, f"ended early, after {took:.3f} s"
        if took < most:
            return
    raise AssertionError(f"{TRIES} tries, none under {most} s; the last took {took:.3f} s")
