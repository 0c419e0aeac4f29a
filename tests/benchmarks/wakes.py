"""Waking: what is stored in one process is waited for in another, one result after the other."""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable, Sequence

from tests.benchmarks.orders import STORE_ONE, Partner

LIMIT_S = 60.0
_LOOK_S = 0.002


def wakes(
    ids: Sequence[str],
    storer: Partner,
    get: Callable[[str], object],
    is_subscribed: Callable[[str], bool],
) -> dict[str, float]:
    """Call of the storer's `store_one` → `get` returned here, in µs; the first tenth warms up."""
    returned: queue.SimpleQueue[float] = queue.SimpleQueue()

    def wait() -> None:
        for task_id in ids:
            get(task_id)
            returned.put(time.perf_counter())

    took = []
    waiting = threading.Thread(target=wait)
    waiting.start()
    for task_id in ids:
        _until_subscribed(task_id, is_subscribed)
        called_s = storer.ask(STORE_ONE, task_id)["called_s"]
        took.append((returned.get(timeout=LIMIT_S) - called_s) * 1e6)
    waiting.join()
    took = took[len(ids) // 11 :]
    return {"p50": statistics.median(took), "p99": statistics.quantiles(took, n=100)[98]}


def _until_subscribed(task_id: str, is_subscribed: Callable[[str], bool]) -> None:
    """Until the server knows that the task is waited for."""
    end = time.monotonic() + LIMIT_S
    while not is_subscribed(task_id):
        if time.monotonic() > end:
            raise TimeoutError(f"nobody waits for {task_id}")
        time.sleep(_LOOK_S)
    time.sleep(_LOOK_S)  # a task runs, meanwhile the stream's message is read
