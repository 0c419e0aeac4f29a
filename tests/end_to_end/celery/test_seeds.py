"""The page "Results and State Management": its examples run, its API is there.

The lines that handle results are the page's, on real tasks in a real worker. Where Celery
itself differs from the page the difference stands in `DIFFERENCES`, and is tested.
"""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery.states
import pytest
from celery import chain, group
from celery.result import ResultSet, result_from_tuple
from celery.utils.graph import DependencyGraph

from tests.support.celery_worker import CeleryWorker
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.usefixtures("differs_from_redis")

BROKER_DATABASE = 41
# As many children as an example has tasks: most of the time they sleep.
CHILDREN = 5

#: What the page says and Celery does not do, whatever the backend; each with its test below.
DIFFERENCES = {
    "result_from_tuple": "takes Celery's ((id, parent), children), not five values",
    "successful, failed": "before the task is ready they say False and raise nothing",
    "build_graph": "gives Celery's DependencyGraph, not a dict",
    "revoke": "its signal is None unless given, which means SIGTERM",
    "UNREADY_STATES": "has REJECTED too",
    "ResultSet": "its results have to be given",
    "args, kwargs": "None without the setting result_extended",
}


@pytest.fixture(scope="module")
def page(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, backend_url: str
) -> Iterator[Any]:
    """The page's module, with a worker that runs its tasks."""
    broker_url = redis_server.database(BROKER_DATABASE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTS_CELERY_BROKER", broker_url)
        patch.setenv("TESTS_CELERY_RESULTS", backend_url)
        module = importlib.import_module("tests.support.celery_seed_page")
        directory: Path = tmp_path_factory.mktemp("seeds")
        with CeleryWorker(
            directory,
            broker=broker_url,
            backend=backend_url,
            app=module.__name__,
            concurrency=CHILDREN,
            name="seeds",
        ) as running:
            yield module
            running.kill()  # it has nothing left to do: that saves the seconds of its farewell
    module.app.close()


@pytest.fixture(scope="module")
def add(page: Any) -> Any:
    """Takes two seconds for a sum."""
    return page.add


@pytest.fixture(scope="module")
def divide(page: Any) -> Any:
    """Fails where it should."""
    return page.divide


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The lines printed so far."""
    return lambda: capsys.readouterr().out.splitlines()


Said = Callable[[], list[str]]


# The examples.


def test_basic_result_handling(add: Any, said: Said) -> None:
    """Id and state without blocking; get with a timeout; successful."""
    # Execute task and get result
    result = add.delay(4, 4)

    # Check status without blocking
    print(f"Task ID: {result.id}")
    print(f"Ready: {result.ready()}")
    print(f"State: {result.state}")

    # Get result with timeout
    try:
        value = result.get(timeout=10)
        print(f"Result: {value}")
    except TimeoutError:
        print("Task took too long")

    # Check if successful
    if result.successful():
        print("Task completed successfully")
    else:
        print("Task failed or not ready")

    assert said() == [
        f"Task ID: {result.task_id}",
        "Ready: False",
        "State: PENDING",
        "Result: 8",
        "Task completed successfully",
    ]


def test_basic_result_handling_when_the_task_takes_too_long(add: Any, said: Said) -> None:
    """`except TimeoutError`, the builtin, catches what Celery's own class is raised as."""
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

    assert said() == ["Task took too long", "Task failed or not ready"]
    with pytest.raises(celery.exceptions.TimeoutError):
        result.get(timeout=0)


def test_error_handling_and_propagation(divide: Any, said: Said) -> None:
    """Raised as its class with propagate, returned without; the traceback as text."""
    # Task that may fail
    result = divide.delay(10, 0)

    # Get result with error handling
    try:
        value = result.get(propagate=True)
        print(f"Result: {value}")
    except ValueError as exc:
        print(f"Task failed: {exc}")
        print(f"Traceback: {result.traceback}")

    # Get result without propagating errors
    value = result.get(propagate=False)
    if result.failed():
        print(f"Task failed with: {result.result}")
        print(f"Info: {result.info}")

    lines = said()
    assert lines[:2] == [
        "Task failed: Cannot divide by zero",
        "Traceback: Traceback (most recent call last):",
    ]
    assert any("celery_seed_page.py" in line and "in divide" in line for line in lines)
    assert lines[-2:] == ["Task failed with: Cannot divide by zero", "Info: Cannot divide by zero"]
    assert isinstance(value, ValueError)


def test_group_results(add: Any, said: Said) -> None:
    """In order with get, as they complete with iterate."""
    # Create and execute group
    job = group([add.s(2, 2), add.s(4, 4), add.s(8, 8)])
    result = job.apply_async()

    # Check group status
    print(f"Group ready: {result.ready()}")
    print(f"Group successful: {result.successful() if result.ready() else 'Not ready'}")

    # Get all results
    try:
        results = result.get(timeout=30)
        print(f"All results: {results}")  # [4, 8, 16]
    except Exception as exc:  # noqa: BLE001  the example's line
        print(f"Group failed: {exc}")

    # Iterate over results as they complete
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


def test_result_set_operations(add: Any, said: Said) -> None:
    """A ResultSet that was imported from Celery iterates, too."""
    # Create multiple tasks
    tasks = [add.delay(i, i) for i in range(5)]

    # Create result set
    result_set = ResultSet(tasks)

    # Batch operations
    print(f"All ready: {result_set.ready()}")

    # Get results with error handling
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


def test_task_revocation_and_control(
    add: Any, said: Said, until: Callable[[Callable[[], bool]], None]
) -> None:
    """The worker's process is terminated and the worker says so; forget deletes the record."""
    # Start long-running task
    result = add.delay(1000000, 2000000)

    # Check if we can revoke it
    if not result.ready():
        print("Revoking task...")
        result.revoke(terminate=True)

    # Wait a moment and check
    time.sleep(1)
    until(result.ready)  # a busy machine's moment is longer
    if result.state == "REVOKED":
        print("Task was revoked")

    # Forget about result
    assert result.exists()
    result.forget()
    assert said() == ["Revoking task...", "Task was revoked"]
    assert (result.state, result.exists()) == ("PENDING", False)


def monitor_task(result: Any, name: str = "Task") -> None:
    """Monitor task execution with detailed status."""
    print(f"Monitoring {name} (ID: {result.id})")

    # Polling loop
    while not result.ready():
        print(f" Status: {result.state}")
        if hasattr(result, "info") and result.info:
            print(f" Info: {result.info}")
        time.sleep(1)

    # Final status
    if result.successful():
        print(f" ✓ Completed: {result.result}")
    else:
        print(f" ✗ Failed: {result.result}")
        if result.traceback:
            print(f" Traceback: {result.traceback}")


def test_advanced_result_monitoring(add: Any, divide: Any, said: Said) -> None:
    """The status while it runs, then what came of it, for good and for bad."""
    # Monitor task execution
    result = add.delay(10, 20)
    monitor_task(result, "Addition")

    first, *statuses, last = said()
    assert first == f"Monitoring Addition (ID: {result.id})"
    assert statuses[0] == " Status: PENDING"
    # Two seconds of work, a look each second: it may end between `ready` and `state`.
    assert set(statuses) <= {" Status: PENDING", " Status: SUCCESS", " Info: 30"}
    assert last == " ✓ Completed: 30"

    monitor_task(divide.delay(1, 0), "Division")
    lines = said()
    assert " ✗ Failed: Cannot divide by zero" in lines
    assert " Traceback: Traceback (most recent call last):" in lines


def test_working_with_task_metadata(page: Any, said: Said) -> None:
    """The polling loop over state and info."""
    task_with_progress = page.task_with_progress

    # Execute and monitor progress
    result = task_with_progress.delay(10)

    while not result.ready():
        if result.state == "PROGRESS":
            meta = result.info
            if "current" not in meta:  # it ended between the two looks
                break
            progress = (meta["current"] / meta["total"]) * 100
            print(f"Progress: {progress:.1f}% ({meta['current']}/{meta['total']})")
        time.sleep(0.5)

    print(f"Final result: {result.get()}")

    *seen, last = said()
    assert seen
    assert all(line.startswith("Progress: ") and line.endswith("/10)") for line in seen)
    assert last == "Final result: {'status': 'Complete', 'processed': 10}"


def test_handling_task_dependencies(add: Any, said: Said) -> None:
    """A chain's result, and the walk up to its parents."""
    # Create dependent tasks
    workflow = chain(
        add.s(2, 3),  # First task: 2 + 3 = 5
        add.s(10),  # Second task: 5 + 10 = 15
        add.s(5),  # Third task: 15 + 5 = 20
    )
    result = workflow.apply_async()

    # The result represents the final task in the chain
    print(f"Final result: {result.get()}")  # 20

    # Access parent results if needed
    if hasattr(result, "parent") and result.parent:
        print(f"Parent result: {result.parent.get()}")  # 15

        if hasattr(result.parent, "parent") and result.parent.parent:
            print(f"Grandparent result: {result.parent.parent.get()}")  # 5

    assert said() == ["Final result: 20", "Parent result: 15", "Grandparent result: 5"]


# The API.

_GET = ["timeout", "propagate", "interval", "callback", "no_ack"]
_REVOKE = ["connection", "terminate", "signal"]

METHODS: dict[str, dict[str, list[str]]] = {
    "AsyncResult": {
        "__init__": ["id", "backend", "task_name", "app", "parent"],
        "get": [
            *("timeout", "propagate", "interval", "no_ack", "follow_parents", "callback"),
            *("on_message", "on_interval", "disable_sync_subtasks"),
            *("EXCEPTION_STATES", "PROPAGATE_STATES"),
        ],
        "ready": [],
        "successful": [],
        "failed": [],
        "retry": [],
        "revoke": [*_REVOKE, "wait", "timeout"],
        "forget": [],
        "build_graph": ["intermediate", "formatter"],
    },
    "GroupResult": {
        "__init__": ["id", "results"],
        "get": _GET,
        "ready": [],
        "successful": [],
        "failed": [],
        "waiting": [],
        "revoke": _REVOKE,
        "forget": [],
        "iterate": ["timeout", "propagate", "interval"],
    },
    "ResultSet": {
        "__init__": ["results"],
        "get": _GET,
        "ready": [],
        "successful": [],
        "failed": [],
        "revoke": _REVOKE,
        "iterate": ["timeout", "propagate", "interval"],
        "add": ["result"],
        "remove": ["result"],
    },
}

PROPERTIES = [
    *("result", "return_value", "state", "status", "info", "traceback", "id", "task_id"),
    *("name", "args", "kwargs", "backend", "children"),
]


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_of_the_page_takes_what_the_page_says(page: Any, kind: str) -> None:
    """Every name is there, with the page's parameters in the page's order."""
    for name, wanted in METHODS[kind].items():
        _, *found = inspect.signature(getattr(getattr(page.app, kind), name)).parameters
        assert found[: len(wanted)] == wanted, f"{kind}.{name}"


def test_every_property_of_the_page_is_there(page: Any) -> None:
    """Of a result those listed; of groups and sets `results`, of groups `children` too."""
    result = page.app.AsyncResult("a-task-of-nobody")
    for name in PROPERTIES:
        getattr(result, name)
    assert page.app.ResultSet([result]).results == [result]
    assert page.app.GroupResult("g", [result]).children == [result]


def test_every_state_of_the_page_is_there() -> None:
    """Constants, sets and the order of states; Celery's own, as the backend stores them."""
    for name in ("PENDING", "RECEIVED", "STARTED", "SUCCESS", "FAILURE", "REVOKED", "RETRY"):
        assert getattr(celery.states, name) == name
    assert celery.states.IGNORED == "IGNORED"
    assert {"SUCCESS", "FAILURE", "REVOKED"} == celery.states.READY_STATES
    assert {"RETRY", "FAILURE", "REVOKED"} == celery.states.EXCEPTION_STATES
    assert {"FAILURE", "REVOKED"} == celery.states.PROPAGATE_STATES
    page_says = {"PENDING", "RECEIVED", "STARTED", "RETRY"}
    assert page_says | {"REJECTED"} == celery.states.UNREADY_STATES
    assert celery.states.state("PENDING") < celery.states.state("SUCCESS")
    assert celery.states.state("SUCCESS") > celery.states.state("PENDING")


def test_where_celery_differs_from_the_page(page: Any, divide: Any) -> None:
    """Each entry of DIFFERENCES is true of the installed Celery."""
    app = page.app
    with pytest.raises(ValueError, match="too many values"):
        result_from_tuple(("id", "SUCCESS", 1, None, []), app)
    assert result_from_tuple((("id", None), None), app) == app.AsyncResult("id")

    waiting = app.AsyncResult("a-task-of-nobody")
    assert (waiting.successful(), waiting.failed()) == (False, False)

    done = divide.delay(6, 3)
    assert done.get(timeout=10) == 2
    assert isinstance(done.build_graph(), DependencyGraph)
    assert inspect.signature(done.revoke).parameters["signal"].default is None
    assert done.name == "tests.support.celery_seed_page.divide"
    assert (done.args, done.kwargs) == (None, None)
    with pytest.raises(TypeError, match="results"):
        ResultSet()
