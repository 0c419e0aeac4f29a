"""A worker in a process of its own: runs the tasks of the examples, reports over gRPC.

    python -m tests.support.seed_worker resultd://127.0.0.1:7758

Orders are lines of JSON on standard input: a list of steps, each with the id, name, args and
seconds of a task. Steps after the first get the value of the one before as first argument,
and name it as their parent. Nothing is answered here: what becomes of a task is reported.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from typing import Any

from resultd._revocations import Revocation
from resultd.client import Client


class Revoked(Exception):
    """The task at work was told to stop."""


class Request:
    """What a task sees of itself."""

    def __init__(self, client: Client, task_id: str) -> None:
        self.id = task_id
        self.stop = threading.Event()
        self._client = client

    def revoked(self, _: Revocation) -> None:
        """Note that the task is to stop."""
        self.stop.set()

    def work(self, seconds: float) -> None:
        """Take some time; ends early if told to stop."""
        if self.stop.wait(seconds):
            raise Revoked("terminated")

    def update_state(self, state: str, meta: dict[str, Any]) -> None:
        """Report how far the task is."""
        self._client.store_result(self.id, meta, state)


def add(request: Request, seconds: float, x: int, y: int) -> int:
    """Simulate work, add."""
    request.work(seconds)
    return x + y


def divide(request: Request, seconds: float, x: int, y: int) -> float:
    """Divide, or fail."""
    request.work(seconds)
    if y == 0:
        raise ValueError("Cannot divide by zero")
    return x / y


def task_with_progress(request: Request, seconds: float, total_items: int) -> dict[str, Any]:
    """Report progress."""
    for i in range(total_items):
        request.update_state(state="PROGRESS", meta={"current": i + 1, "total": total_items})
        request.work(seconds)
    return {"status": "Complete", "processed": total_items}


TASKS: dict[str, Callable[..., Any]] = {
    "add": add,
    "divide": divide,
    "task_with_progress": task_with_progress,
}


def run(client: Client, steps: list[dict[str, Any]]) -> None:
    """Run one order, step by step, to its end or its first failure."""
    before: list[Any] = []
    parent_id = ""
    for step in steps:
        request = Request(client, step["id"])
        client.store_result(request.id, None, "STARTED", parent_id=parent_id)
        with client.watch_revocations([request.id], request.revoked):
            try:
                value = TASKS[step["name"]](request, step["seconds"], *before, *step["args"])
            except Revoked as error:
                client.store_result(request.id, str(error), "REVOKED")
                return
            except ValueError as error:
                client.store_result(request.id, error, "FAILURE")
                return
        client.store_result(request.id, value, parent_id=parent_id)
        before, parent_id = [value], request.id


def main(url: str) -> None:
    """Run orders, each in a thread, until the input ends."""
    with Client(url) as client:
        threads = []
        for line in sys.stdin:
            thread = threading.Thread(target=run, args=(client, json.loads(line)), daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join(1.0)


if __name__ == "__main__":
    main(sys.argv[1])
