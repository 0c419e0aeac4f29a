"""Waiting for what other processes do, and finding them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Wait for what other processes do."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)


def children_of(pid: int | None) -> list[int]:
    """The processes that one has started, the oldest first."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers_begun(supervisor: int) -> list[int]:
    """The workers of a server that run their own program already."""
    return [
        pid
        for pid in children_of(supervisor)
        if b"resultd_server.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
