"""The app whose result backends are compared: what the workers run and the clients call."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task

#: A queue that no worker takes from: tasks sent there stay pending.
NOBODY = "nobody"
#: A worker's environment says where it belongs.
BROKER, RESULTS = "BENCHMARK_BROKER", "BENCHMARK_RESULTS"


def create_app(broker: str, backend: str) -> Any:
    """An app with the tasks below, of Celery's own defaults."""
    made = Celery("benchmark", broker=broker, backend=backend, set_as_current=False)
    made.conf.broker_connection_retry_on_startup = True
    for task in (add, now):
        made.task(name=task.__name__, shared=False)(task)
    made.task(name=latest.__name__, shared=False, bind=True, base=Stamped)(latest)
    made.finalize()
    return made


def add(x: int, y: int) -> int:
    """x + y."""
    return x + y


def now() -> float:
    """A part of a chord: when it ran."""
    return time.time()


class Stamped(Task):  # type: ignore[misc]  # Celery has no types
    """A task whose message says when its publishing began."""

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """As Celery's, and the time goes along."""
        headers = {**(options.pop("headers", None) or {}), "handed_s": time.time()}
        return super().apply_async(*args, headers=headers, **options)


def latest(self: Any, times: list[float]) -> list[float]:
    """A chord's body: when the last part ran, when it was published, and when this runs."""
    return [max(times), self.request.handed_s, time.time()]


if BROKER in os.environ:  # a worker's
    app = create_app(os.environ[BROKER], os.environ[RESULTS])
    app.set_current()
    app.set_default()
