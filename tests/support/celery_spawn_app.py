"""An app as people write it, for workers whose children are spawned, not forked.

A spawned child imports what `include` names and nothing else: without it, it knows no task.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import celery
from celery.result import allow_join_result

app = celery.Celery(
    "tests",
    broker=os.environ["TESTS_CELERY_BROKER"],
    backend=os.environ["TESTS_CELERY_RESULTS"],
    include=["tests.support.celery_spawn_app"],
)
app.conf.update(json.loads(os.environ.get("TESTS_CELERY_SETTINGS") or "{}"))
# The decorator has no types.
task: Callable[..., Callable[[Callable[..., Any]], Any]] = app.task


@task(name="add")
def add(x: Any, y: Any) -> Any:
    """x + y."""
    return x + y


@task(name="xsum")
def xsum(numbers: list[Any]) -> Any:
    """The sum of numbers."""
    return sum(numbers)


@task(name="who", bind=True)
def who(self: Any) -> dict[str, Any]:
    """Which process it is in."""
    return {"pid": os.getpid(), "id": self.request.id}


@task(name="wait_within_all_the_same")
def wait_within_all_the_same(value: Any) -> Any:
    """Waits for another task although it should not."""
    with allow_join_result():
        return add.delay(value, 0).get(timeout=5)
