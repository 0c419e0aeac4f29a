"""The examples people know, their result-handling lines as written.

The tasks run in worker processes of their own, which report over gRPC: `seed_worker`. The
variables, the prints and the pauses are those of the examples.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resultd.client import Client
from resultd.results import AsyncResult, ResultSet
from resultd.testing import Server

WORKERS = 2
ROOT = Path(__file__).parents[2]

NewId = Callable[[], str]
Step = dict[str, object]


class Workers:
    """Worker processes; orders go to them in turn."""

    def __init__(self, url: str) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.seed_worker", url],
                stdin=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for _ in range(WORKERS)
        ]
        self._turns = itertools.cycle(self.processes)

    def order(self, steps: list[Step]) -> None:
        """Have one of them run these steps."""
        process = next(self._turns)
        assert process.stdin is not None
        process.stdin.write(json.dumps(steps) + "\n")
        process.stdin.flush()

    def stop(self) -> list[int]:
        """End the input, and with it the processes; gives their exit codes."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        return [process.wait(20) for process in self.processes]


class Task:
    """What `@app.task` makes of a function, as far as the examples need it."""

    def __init__(
        self, workers: Workers, client: Client, new_id: NewId, name: str, seconds: float
    ) -> None:
        self.workers = workers
        self.client = client
        self.new_id = new_id
        self.name = name
        self.seconds = seconds

    def s(self, *args: object) -> Step:
        """Return a task to be run, with an id of its own."""
        return {"id": self.new_id(), "name": self.name, "args": args, "seconds": self.seconds}

    def delay(self, *args: object) -> AsyncResult:
        """Have it run; gives its result."""
        step = self.s(*args)
        self.workers.order([step])
        return self.client.AsyncResult(str(step["id"]))


@pytest.fixture(scope="module")
def workers(server: Server) -> Iterator[Workers]:
    """Worker processes that all examples share."""
    running = Workers(server.url)
    try:
        yield running
    finally:
        assert running.stop() == [0] * WORKERS


@pytest.fixture
def task(workers: Workers, client: Client, new_id: NewId) -> Callable[[str, float], Task]:
    """Make tasks, by the name of the function and the seconds it works."""
    return lambda name, seconds: Task(workers, client, new_id, name, seconds)


MakeTask = Callable[[str, float], Task]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Give the lines printed so far."""
    return lambda: capsys.readouterr().out.splitlines()


Said = Callable[[], list[str]]


def test_basic_result_handling(task: MakeTask, said: Said) -> None:
    """Id and state without blocking; get with a timeout; successful."""
    add = task("add", 0.3)
    result = add.delay(4, 4)

    print(f"Task ID: {result.id}")
    print(f"Ready: {result.ready()}")
    print(f"State: {result.state}")

    try:
        value = result.get(timeout=10)
        print(f"Result: {value}")
    except TimeoutError:
        print("Task took too long")

    if result.successful():
        print("Task completed successfully")
    else:
        print("Task failed or not ready")

    first, ready, state, *rest = said()
    assert (first, ready) == (f"Task ID: {result.task_id}", "Ready: False")
    assert state in ("State: PENDING", "State: STARTED")
    assert rest == ["Result: 8", "Task completed successfully"]


def test_basic_result_handling_when_the_task_takes_too_long(task: MakeTask, said: Said) -> None:
    """`except TimeoutError`, as the example writes it, catches a get that took too long."""
    add = task("add", 5.0)
    result = add.delay(4, 4)

    try:
        value = result.get(timeout=0.1)
        print(f"Result: {value}")
    except TimeoutError:
        print("Task took too long")

    if result.successful():
        print("Task completed successfully")
    else:
        print("Task failed or not ready")

    result.revoke(terminate=True)
    assert said() == ["Task took too long", "Task failed or not ready"]


def test_error_handling_and_propagation(task: MakeTask, said: Said) -> None:
    """Raised as its class with propagate, returned without; the traceback as text."""
    divide = task("divide", 0.1)
    result = divide.delay(10, 0)

    try:
        value = result.get(propagate=True)
        print(f"Result: {value}")
    except ValueError as exc:
        print(f"Task failed: {exc}")
        print(f"Traceback: {result.traceback}")

    value = result.get(propagate=False)
    if result.failed():
        print(f"Task failed with: {result.result}")
        print(f"Info: {result.info}")

    lines = said()
    assert lines[0] == "Task failed: Cannot divide by zero"
    assert lines[1] == "Traceback: Traceback (most recent call last):"
    assert any("seed_worker.py" in line and "in divide" in line for line in lines)
    assert lines[-2:] == ["Task failed with: Cannot divide by zero", "Info: Cannot divide by zero"]
    assert isinstance(value, ValueError)


def test_group_results(client: Client, new_id: NewId, task: MakeTask, said: Said) -> None:
    """In order with get, as they complete with iterate."""
    add = task("add", 0.3)
    job = [add.delay(2, 2), add.delay(4, 4), add.delay(8, 8)]
    result = client.GroupResult(new_id(), job)

    print(f"Group ready: {result.ready()}")
    print(f"Group successful: {result.successful() if result.ready() else 'Not ready'}")

    try:
        results = result.get(timeout=30)
        print(f"All results: {results}")  # [4, 8, 16]
    except Exception as exc:  # noqa: BLE001  the example's line
        print(f"Group failed: {exc}")

    print("Results as they complete:")
    for task_result in result.iterate(timeout=30):
        print(f"Got result: {task_result}")

    *lines, a, b, c = said()
    assert lines == [
        "Group ready: False",
        "Group successful: Not ready",
        "All results: [4, 8, 16]",
        "Results as they complete:",
    ]
    assert {a, b, c} == {"Got result: 4", "Got result: 8", "Got result: 16"}


def test_result_set_operations(task: MakeTask, said: Said) -> None:
    """Values as they complete, collected."""
    add = task("add", 0.3)
    tasks = [add.delay(i, i) for i in range(5)]

    result_set = ResultSet(tasks)

    print(f"All ready: {result_set.ready()}")

    results = []
    for result in result_set.iterate(timeout=60):
        try:
            value = result
            results.append(value)
            print(f"Task completed with result: {value}")
        except Exception as exc:  # noqa: BLE001  the example's line
            print(f"Task failed: {exc}")
    print(f"Final results: {results}")

    lines = said()
    assert lines[0] == "All ready: False"
    assert lines[1:-1] == [f"Task completed with result: {value}" for value in results]
    assert sorted(results) == [0, 2, 4, 6, 8]
    assert lines[-1] == f"Final results: {results}"


def test_task_revocation_and_control(task: MakeTask, said: Said) -> None:
    """The worker at work hears of it, stops and says so; forget deletes the record."""
    add = task("add", 60.0)
    result = add.delay(1000000, 2000000)

    while result.state != "STARTED":  # else it would never reach a worker
        time.sleep(0.01)

    if not result.ready():
        print("Revoking task...")
        result.revoke(terminate=True)

    time.sleep(1)
    if result.state == "REVOKED":
        print("Task was revoked")
    assert str(result.result) == "terminated"

    result.forget()
    assert said() == ["Revoking task...", "Task was revoked"]
    assert not result.exists()


def monitor_task(result: AsyncResult, name: str = "Task") -> None:
    """Monitor task execution with detailed status."""
    print(f"Monitoring {name} (ID: {result.id})")

    while not result.ready():
        print(f" Status: {result.state}")
        if hasattr(result, "info") and result.info:
            print(f" Info: {result.info}")
        time.sleep(1)

    if result.successful():
        print(f" ✓ Completed: {result.result}")
    else:
        print(f" ✗ Failed: {result.result}")
        if result.traceback:
            print(f" Traceback: {result.traceback}")


def test_advanced_result_monitoring(task: MakeTask, said: Said) -> None:
    """The status while it runs, then what came of it, for good and for bad."""
    add, divide = task("add", 0.5), task("divide", 0.0)

    result = add.delay(10, 20)
    monitor_task(result, "Addition")
    first, *statuses, last = said()
    assert first == f"Monitoring Addition (ID: {result.id})"
    assert set(statuses) <= {" Status: PENDING", " Status: STARTED"}
    assert statuses
    assert last == " ✓ Completed: 30"

    monitor_task(divide.delay(1, 0), "Division")
    lines = said()
    assert " ✗ Failed: Cannot divide by zero" in lines
    assert " Traceback: Traceback (most recent call last):" in lines


def test_working_with_task_metadata(task: MakeTask, said: Said) -> None:
    """The polling loop over state and info."""
    # Between reading state and info a task may finish. Ten steps of 0.13 s end halfway
    # between two looks.
    task_with_progress = task("task_with_progress", 0.13)
    result = task_with_progress.delay(10)

    while not result.ready():
        if result.state == "PROGRESS":
            meta = result.info
            progress = (meta["current"] / meta["total"]) * 100
            print(f"Progress: {progress:.1f}% ({meta['current']}/{meta['total']})")
        time.sleep(0.5)
    print(f"Final result: {result.get()}")

    *seen, last = said()
    assert seen
    assert all(line.startswith("Progress: ") and line.endswith("/10)") for line in seen)
    assert last == "Final result: {'status': 'Complete', 'processed': 10}"


def test_handling_task_dependencies(
    client: Client, workers: Workers, task: MakeTask, said: Said
) -> None:
    """The walk up the chain, by what the worker reported."""
    add = task("add", 0.1)
    workflow = [
        add.s(2, 3),  # First task: 2 + 3 = 5
        add.s(10),  # Second task: 5 + 10 = 15
        add.s(5),  # Third task: 15 + 5 = 20
    ]
    workers.order(workflow)
    result = client.AsyncResult(str(workflow[-1]["id"]))

    print(f"Final result: {result.get()}")  # 20

    if hasattr(result, "parent") and result.parent:
        print(f"Parent result: {result.parent.get()}")  # 15

        if hasattr(result.parent, "parent") and result.parent.parent:
            print(f"Grandparent result: {result.parent.parent.get()}")  # 5

    assert said() == ["Final result: 20", "Parent result: 15", "Grandparent result: 5"]
