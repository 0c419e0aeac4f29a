"""What every kind of worker has to do, whatever its pool: used by the tests of pools and forks."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import celery

from tests.support.celery_tasks import named
from tests.support.celery_worker import CeleryWorker

TIMEOUT_S = 20.0
#: Seconds after SIGTERM in which a worker is gone. Celery itself needs 1 to 5, on any backend.
STOP_S = 9.0
#: A list in the broker's Redis: what a main process found each time it used the backend.
SAID = "test:main"

#: What no log may hold. Celery logs a task's failure as an error too: none fails here.
NOISE = re.compile(
    r"Exception ignored|Traceback|ERROR|CRITICAL|Fatal|fork\(\) handlers|Segmentation|\bfork_posix"
)


def exercise(app: Any) -> None:
    """A task, a group, a chord, and a wait within a task."""
    tasks = named(app)
    assert tasks.add.delay(1, 2).get(timeout=TIMEOUT_S) == 3
    group = celery.group([tasks.add.s(n, n) for n in range(10)], app=app)()
    assert group.get(timeout=TIMEOUT_S) == [2 * n for n in range(10)]
    chord = celery.chord([tasks.add.s(n, n) for n in range(10)], app=app)(tasks.xsum.s())
    assert chord.get(timeout=TIMEOUT_S) == 90
    then(app)


def then(app: Any) -> None:
    """A callback that fires without anybody waiting."""
    fired = threading.Event()
    result = named(app).add.delay(1, 1)
    result.then(lambda _: fired.set())
    assert fired.wait(TIMEOUT_S)


def wait_within(app: Any) -> None:
    """A task that waits for another; wants a worker that runs two at a time."""
    assert named(app).wait_within_all_the_same.delay(5).get(timeout=TIMEOUT_S) == 5


def stop_quietly(worker: CeleryWorker) -> None:
    """SIGTERM ends the worker in order, soon and without noise."""
    began = time.monotonic()
    code = worker.stop()
    took = time.monotonic() - began
    assert code == 0, f"exit code {code} after {took:.1f} s\n{worker.log()[-4000:]}"
    assert took < STOP_S
    assert noise(worker.log()) == []


def noise(log: str) -> list[str]:
    """The lines of a log that should not be there."""
    return [line for line in log.splitlines() if NOISE.search(line)]


def until(condition: Callable[[], bool], seconds: float = TIMEOUT_S) -> None:
    """Waits for something that gives no sign of its own."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds:g} s"
        time.sleep(0.01)
