"""The examples people know, their result-handling lines as written.

What stands for the tasks is a thread that reports as a worker would; the variables are those
of the examples.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from resultd.client import Client
from resultd.errors import TaskRevokedError
from resultd.results import AsyncResult, ResultSet

NewId = Callable[[], str]


class Worker:
    """Runs functions as tasks, in threads, and reports what becomes of them."""

    def __init__(self, client: Client, new_id: NewId) -> None:
        self.client = client
        self.new_id = new_id

    def delay(
        self, function: Callable[..., object], *args: object, after: float = 0.1
    ) -> AsyncResult:
        """Start a task and return its result."""
        task_id = self.new_id()

        def work() -> None:
            self.client.store_result(task_id, None, "STARTED")
            time.sleep(after)
            try:
                self.client.store_result(task_id, function(*args))
            except ArithmeticError as error:
                self.client.store_result(task_id, error, "FAILURE")

        threading.Thread(target=work, daemon=True).start()
        return self.client.AsyncResult(task_id)


@pytest.fixture
def worker(client: Client, new_id: NewId) -> Worker:
    """Something that runs tasks."""
    return Worker(client, new_id)


def add(x: int, y: int) -> int:
    """A task."""
    return x + y


def divide(x: int, y: int) -> float:
    """A task that may fail."""
    return x / y


def test_basic_result_handling(worker: Worker, capsys: pytest.CaptureFixture[str]) -> None:
    """Ready, state, get with a timeout, successful."""
    result = worker.delay(add, 4, 4)
    print(f"Ready: {result.ready()}")
    try:
        value = result.get(timeout=10)
        print(f"Result: {value}")
    except TimeoutError:
        print("Task took too long")
    if result.successful():
        print(f"Task completed successfully: {result.result}, {result.state}")
    assert capsys.readouterr().out.splitlines() == [
        "Ready: False",
        "Result: 8",
        "Task completed successfully: 8, SUCCESS",
    ]


def test_error_handling_and_propagation(worker: Worker) -> None:
    """Raised as its class, returned without propagate, the traceback as text."""
    result = worker.delay(divide, 10, 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        result.get(propagate=True)
    assert "in divide" in str(result.traceback)
    value = result.get(propagate=False)
    assert result.failed()
    assert result.result is value is result.info


def test_group_results(client: Client, worker: Worker, new_id: NewId) -> None:
    """In order with get, as they complete with iterate."""
    result = client.GroupResult(
        new_id(), [worker.delay(add, n, n, after=0.3 - n / 32) for n in (2, 4, 8)]
    )
    assert not result.ready()
    assert result.get(timeout=30) == [4, 8, 16]
    assert result.successful()
    assert sorted(task_result for task_result in result.iterate(timeout=30)) == [4, 8, 16]


def test_result_set_operations(worker: Worker) -> None:
    """Values as they complete, collected."""
    tasks = [worker.delay(add, i, i) for i in range(5)]
    result_set = ResultSet(tasks)
    print(f"All ready: {result_set.ready()}")
    results = []
    for result in result_set.iterate(timeout=60):
        value = result
        results.append(value)
    assert sorted(results) == [0, 2, 4, 6, 8]


def test_task_revocation_and_control(client: Client, new_id: NewId) -> None:
    """A worker that listens hears of it and reports; forget deletes the record."""
    result = client.AsyncResult(new_id())
    client.store_result(result.id, None, "STARTED")

    def stop(revocation: object) -> None:
        client.store_result(result.id, "told to stop", "REVOKED")

    with client.watch_revocations([result.id], stop):
        if not result.ready():
            result.revoke(terminate=True)
        with pytest.raises(TaskRevokedError, match="told to stop"):
            result.get(timeout=5)
    if result.state == "REVOKED":
        result.forget()
    assert not result.exists()


def test_working_with_task_metadata(client: Client, new_id: NewId) -> None:
    """The polling loop over state and info."""
    result, total_items = client.AsyncResult(new_id()), 5

    def task_with_progress() -> None:
        for i in range(total_items):
            client.store_result(result.id, {"current": i + 1, "total": total_items}, "PROGRESS")
            time.sleep(0.05)
        client.store_result(result.id, {"status": "Complete", "processed": total_items})

    threading.Thread(target=task_with_progress, daemon=True).start()
    seen = []
    while not result.ready():
        if result.state == "PROGRESS":
            meta = result.info
            seen.append((meta["current"] / meta["total"]) * 100)
        time.sleep(0.01)
    assert seen
    assert seen == sorted(seen)
    assert result.get() == {"status": "Complete", "processed": 5}


def test_handling_task_dependencies(client: Client, new_id: NewId) -> None:
    """The walk up the chain."""
    ids = [new_id() for _ in range(3)]
    client.store_result(ids[0], 5)
    client.store_result(ids[1], 15, parent_id=ids[0])
    client.store_result(ids[2], 20, parent_id=ids[1])
    result = client.AsyncResult(ids[2])
    assert result.get() == 20
    if hasattr(result, "parent") and result.parent:
        assert result.parent.get() == 15
        if hasattr(result.parent, "parent") and result.parent.parent:
            assert result.parent.parent.get() == 5
