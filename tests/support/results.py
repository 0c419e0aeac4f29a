"""Making results come later, and failures that were really raised."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from resultd.client import Client
from resultd.results import AsyncResult

_timers: list[threading.Timer] = []


def later(seconds: float, work: Callable[[], object]) -> threading.Timer:
    """Do something in a while."""
    timer = threading.Timer(seconds, work)
    timer.daemon = True
    timer.start()
    _timers.append(timer)
    return timer


def join_timers() -> None:
    """Wait for what was to be done later: a result may be there before its storer is answered."""
    while _timers:
        _timers.pop().join(5)


def failed(client: Client, task_id: str, error: Exception) -> AsyncResult:
    """Store a failure that was really raised."""
    try:
        raise error
    except Exception as raised:  # noqa: BLE001 (that is the point)
        client.store_result(task_id, raised, "FAILURE")
    return client.AsyncResult(task_id)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, and fail if it does not come."""
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.005)
