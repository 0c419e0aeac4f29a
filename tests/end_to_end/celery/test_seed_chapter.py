"""The chapter on result backends: its two programs run, its extracts of Celery hold.

The programs are the chapter's, lines and all, but for the addresses: here the results are in
resultd. They run as programs, the worker by the chapter's own command.

What it says that is otherwise here or in Celery itself:

- `get` does not ask again and again: the server tells.
- `failed()` is true of FAILURE alone; a REVOKED task has not failed.
- The backend keeps typed records, so it is no BaseKeyValueStoreBackend.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, states
from celery.app import backends

from resultd.celery import ResultdBackend
from tests.support.celery_worker import CeleryWorker
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.usefixtures("differs_from_redis")

BROKER_DATABASE = 42
RUN_S = 40.0

CELERY_APP = """\
# celery_app.py
from celery import Celery

# Configure BOTH broker and result backend
app = Celery('tasks',
             broker='redis://localhost:6379/0',
             backend='redis://localhost:6379/1') # <-- Result Backend URL

# You could also use app.config_from_object('celeryconfig')
# if result_backend = 'redis://localhost:6379/1' is in celeryconfig.py
# ... your task definitions (@app.task) would go here or be imported ...

@app.task
def add(x, y):
    import time
    time.sleep(3) # Simulate work
    return x + y

@app.task
def fail_sometimes(x):
    import random
    if random.random() < 0.5:
        raise ValueError("Something went wrong!")
    return f"Processed {x}"
"""

RUN_TASKS = """\
# run_tasks.py
from celery_app import add, fail_sometimes

# Send the add task
result_add = add.delay(10, 20)
print(f"Sent task add(10, 20). Task ID: {result_add.id}")

# Send the task that might fail
result_fail = fail_sometimes.delay("my data")
print(f"Sent task fail_sometimes('my data'). Task ID: {result_fail.id}")

# continue in run_tasks.py or a new Python session
from celery_app import app # Need app for AsyncResult if creating from ID

# Use the AsyncResult objects we got earlier
# Or, if you only have the ID, you can recreate the AsyncResult:
# result_add = app.AsyncResult('the-task-id-you-saved-earlier')

print(f"\\nChecking results for add task ({result_add.id})...")

# Check if the task is finished (returns True/False immediately)
print(f"Is add ready? {result_add.ready()}")

# Check the state (returns 'PENDING', 'STARTED', 'SUCCESS', 'FAILURE', etc.)
print(f"State of add: {result_add.state}")

# Get the result. IMPORTANT: This call will BLOCK until the task is finished!
# If the task failed, this will raise the exception that occurred in the worker.
try:
    # Set a timeout (in seconds) to avoid waiting forever
    final_result = result_add.get(timeout=10)
    print(f"Result of add: {final_result}")
    print(f"Did add succeed? {result_add.successful()}")
    print(f"Final state of add: {result_add.state}")
except Exception as e:
    print(f"Could not get result for add: {type(e).__name__} - {e}")
    print(f"Final state of add: {result_add.state}")
    print(f"Did add fail? {result_add.failed()}")
    # Get the traceback if it failed
    print(f"Traceback: {result_add.traceback}")

print(f"\\nChecking results for fail_sometimes task ({result_fail.id})...")
try:
    # Wait up to 10 seconds for this task
    fail_result = result_fail.get(timeout=10)
    print(f"Result of fail_sometimes: {fail_result}")
    print(f"Did fail_sometimes succeed? {result_fail.successful()}")
    print(f"Final state of fail_sometimes: {result_fail.state}")
except Exception as e:
    print(f"Could not get result for fail_sometimes: {type(e).__name__} - {e}")
    print(f"Final state of fail_sometimes: {result_fail.state}")
    print(f"Did fail_sometimes fail? {result_fail.failed()}")
    print(f"Traceback:\\n{result_fail.traceback}")
"""

SUCCEEDED = [
    "Result of fail_sometimes: Processed my data",
    "Did fail_sometimes succeed? True",
    "Final state of fail_sometimes: SUCCESS",
]
FAILED = [
    "Could not get result for fail_sometimes: ValueError - Something went wrong!",
    "Final state of fail_sometimes: FAILURE",
    "Did fail_sometimes fail? True",
    "Traceback:",
    "Traceback (most recent call last):",
]


@pytest.fixture(scope="module")
def programs(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, backend_url: str
) -> Path:
    """The directory with the chapter's two files."""
    directory = tmp_path_factory.mktemp("chapter")
    text = CELERY_APP
    text = text.replace("redis://localhost:6379/0", redis_server.database(BROKER_DATABASE))
    text = text.replace("redis://localhost:6379/1", backend_url)
    (directory / "celery_app.py").write_text(text)
    (directory / "run_tasks.py").write_text(RUN_TASKS)
    return directory


@pytest.fixture(scope="module")
def chapters_worker(programs: Path) -> Iterator[CeleryWorker]:
    """`celery -A celery_app worker --loglevel=info`, where the file lies."""
    with CeleryWorker(
        programs,
        broker="as celery_app.py says",
        backend="as celery_app.py says",
        app="celery_app",
        environment={"PYTHONPATH": f"{programs}:{os.environ.get('PYTHONPATH', '')}"},
        name="chapter",
    ) as running:
        yield running
        running.kill()  # it has nothing left to do: that saves the seconds of its farewell


@pytest.fixture(scope="module")
def app(redis_server: RedisServer, backend_url: str) -> Iterator[Any]:
    """An app that knows the chapter's tasks by name."""
    broker_url = redis_server.database(BROKER_DATABASE)
    made = Celery("tasks", broker=broker_url, backend=backend_url, set_as_current=False)
    yield made
    made.close()


@pytest.mark.usefixtures("chapters_worker")
def test_the_chapters_program_prints_what_the_chapter_shows(programs: Path) -> None:
    """Ids at once, states without blocking, the value or the error with its traceback."""
    command = [sys.executable, "-W", "error", "run_tasks.py"]
    output = subprocess.run(
        command, cwd=programs, check=True, timeout=RUN_S, text=True, stdout=subprocess.PIPE
    ).stdout
    first, second, _, checking, ready, state, *lines = output.splitlines()
    id_of_add = first.removeprefix("Sent task add(10, 20). Task ID: ")
    assert second.startswith("Sent task fail_sometimes('my data'). Task ID: ")
    assert checking == f"Checking results for add task ({id_of_add})..."
    assert (ready, state) == ("Is add ready? False", "State of add: PENDING")
    assert lines[:3] == [
        "Result of add: 30",
        "Did add succeed? True",
        "Final state of add: SUCCESS",
    ]
    end = lines[5:]
    assert end == SUCCEEDED or end[: len(FAILED)] == FAILED


@pytest.mark.usefixtures("chapters_worker")
def test_a_task_that_fails_sometimes_shows_both_ends(app: Any) -> None:
    """The value of one that did not fail; the error and traceback of one that did."""
    seen: dict[str, Any] = {}
    for _ in range(100):
        result = app.send_task("celery_app.fail_sometimes", ("my data",))
        result.get(timeout=20, propagate=False)
        seen[result.state] = result
        if len(seen) == 2:
            break
    assert seen["SUCCESS"].get() == "Processed my data"
    failed = seen["FAILURE"]
    with pytest.raises(ValueError, match="Something went wrong!"):
        failed.get()
    assert failed.failed()
    assert failed.traceback.startswith("Traceback (most recent call last):\n")
    assert "in fail_sometimes" in failed.traceback
    assert failed.traceback.endswith("ValueError: Something went wrong!\n")


def test_the_backend_is_found_by_its_url(app: Any, backend_url: str) -> None:
    """`by_url` and `by_name` map the scheme to the class."""
    assert backends.by_url(backend_url, app.loader) == (ResultdBackend, backend_url)
    assert backends.by_name("resultd", app.loader) is ResultdBackend
    assert isinstance(app.backend, ResultdBackend)


def test_storing_and_waiting_go_by_the_methods_the_chapter_shows(app: Any) -> None:
    """`_store_result` returns the result, `wait_for` the meta of a task that is done."""
    backend = app.backend
    task_id = "a-task-of-the-chapter"
    with pytest.raises(TimeoutError, match=r"The operation timed out\."):
        backend.wait_for(task_id, timeout=0.05, interval=0.01)
    assert backend.get_task_meta(task_id) == {"status": states.PENDING, "result": None}

    assert backend._store_result(task_id, 30, states.SUCCESS, traceback=None, request=None) == 30

    meta = backend.wait_for(task_id, timeout=10)
    assert (meta["status"], meta["result"], meta["task_id"]) == ("SUCCESS", 30, task_id)
    assert meta["status"] in states.READY_STATES
    assert backend.get_task_meta(task_id)["result"] == 30
