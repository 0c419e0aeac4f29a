"""The app whose result backends are compared: what the workers run and the clients call."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, Task

#: A queue that no worker takes from: tasks sent there stay pending.
NOBODY = "nobody"
_stored_s: float | None = None
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


def note_stored() -> None:
    """A chord's part was stored here just now."""
    global _stored_s
    _stored_s = time.time()


def _note_parts(backend: Any) -> None:
    """Celery stores a part, and then has its backend see what that means for the chord."""
    part_returned = backend.on_chord_part_return

    def noting(self: Any, *args: Any, **options: Any) -> None:
        note_stored()
        part_returned(self, *args, **options)

    backend.on_chord_part_return = noting


class Stamped(Task):  # type: ignore[misc]  # Celery has no types
    """A task whose message says when its publishing began, and when a part was stored before."""

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """As Celery's, and the times go along."""
        times = {"stored_s": _stored_s, "handed_s": time.time()}
        headers = {**(options.pop("headers", None) or {}), **times}
        return super().apply_async(*args, headers=headers, **options)


def latest(self: Any, times: list[float]) -> list[float]:
    """A chord's body: when the last part ran and was stored, this was published, and runs."""
    last_s = max(times)
    return [last_s, self.request.stored_s or last_s, self.request.handed_s, time.time()]


if BROKER in os.environ:  # a worker's
    app = create_app(os.environ[BROKER], os.environ[RESULTS])
    _note_parts(type(app.backend))
    app.set_current()
    app.set_default()
