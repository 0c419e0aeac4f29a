"""Counts the words of files: python worker.py HOST:PORT [NAME].

Tasks come as JSON lines on stdin: {"task_id": "t1", "path": "README.md"}, with `pace`, the
least seconds to take, `group_id` and `index` if wanted. For each one done a line goes to
stdout: {"task_id": "t1", "state": "SUCCESS"}.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import resultd

STEPS = 4
# What the client tries again while no server answers, in seconds.
RETRY_SECONDS_MAX = 600


class Cancelled(Exception):
    """Somebody asked for this task to stop."""


def count_words(path: str, step: Callable[[int, int], None]) -> int:
    """Counts the words of UTF-8 text; calls `step` after each part."""
    lines = Path(path).read_bytes().decode().split("\n")
    size = -(-len(lines) // STEPS)
    words = 0
    for start in range(0, len(lines), size):
        part = lines[start : start + size]
        words += sum(len(re.findall(r"[A-Za-z0-9_]+", line)) for line in part)
        step(min(start + size, len(lines)), len(lines))
    return words


class Worker:
    """Runs one task at a time and reports what happens to it."""

    def __init__(self, client: resultd.Client, name: str) -> None:
        self.client = client
        self.name = name
        self.cancelled = threading.Event()
        # Called from a thread of its own; the stream is opened again by itself.
        self.revocations = client.watch_revocations(callback=lambda _: self.cancelled.set())

    def run(self, task: dict[str, Any]) -> str:
        """Runs a task; gives the state it ended in."""
        task_id = task["task_id"]
        fields: dict[str, Any] = {"group_id": task.get("group_id"), "index": task.get("index")}

        def report(state: str, result: Any = None, **more: Any) -> str:
            """Durable when it returns; tried again while no server answers."""
            answer = self.client.store_result(
                task_id, result, state, name="count_words", worker=self.name, **fields, **more
            )
            if answer.cancel_requested:
                self.cancelled.set()
            return answer.state

        def step(current: int, total: int) -> None:
            if self.cancelled.wait(task.get("pace", 0) / STEPS):
                raise Cancelled("cancelled while it ran")
            if current < total:
                report("PROGRESS", progress=(current, total))

        self.cancelled.clear()
        report("RECEIVED")
        self.revocations.add([task_id])
        try:
            report("STARTED")
            return report("SUCCESS", {"words": count_words(task["path"], step)})
        except Cancelled as error:
            return report("REVOKED", error)
        except Exception as error:  # noqa: BLE001 (what a task raises is its result)
            return report("FAILURE", error)  # its class, message and traceback
        finally:
            self.revocations.remove([task_id])


def main(address: str = "127.0.0.1:7758", name: str = "") -> None:
    """Runs the tasks of stdin."""
    with resultd.Client(f"resultd://{address}?timeout={RETRY_SECONDS_MAX}") as client:
        worker = Worker(client, name or f"python@{platform.node()}-{os.getpid()}")
        for line in sys.stdin:
            task = json.loads(line)
            state = worker.run(task)
            print(json.dumps({"task_id": task["task_id"], "state": state}), flush=True)
        worker.revocations.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
