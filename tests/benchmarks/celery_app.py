"""The app whose result backends are compared: what the workers run and the clients call."""

from __future__ import annotations

import functools
import json
import os
import time
from typing import Any

import grpc
from celery import Celery, Task, current_app

#: A queue that no worker takes from: tasks sent there stay pending.
NOBODY = "nobody"
#: A worker's environment says where it belongs, and where the bare server is.
BROKER, RESULTS, BARE = "BENCHMARK_BROKER", "BENCHMARK_RESULTS", "BENCHMARK_BARE"


def create_app(broker: str, backend: str) -> Any:
    """An app with the tasks below, of Celery's own defaults."""
    made = Celery("benchmark", broker=broker, backend=backend, set_as_current=False)
    made.conf.broker_connection_retry_on_startup = True
    for task in (add, now, hand, fetch):
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


def hand(count: int) -> str:
    """Publishes the body of a chord of so many as whoever ends it does, without a chord; its id."""
    values = [time.time() for _ in range(count)]
    return str(current_app.tasks["latest"].delay(values).id)


def fetch(count: int) -> str:
    """The same with the values of one bare call, answered once 4 KiB are on disk; the body's id.

    As if the report of the last part brought the values of all: the least of a durable chord.
    """
    values = _values()
    values(b"%d" % count)  # the connection is no part of it, nor is making them
    began_s = time.time()
    times = [*json.loads(values(b"%d" % count)), began_s]
    return str(current_app.tasks["latest"].delay(times).id)


@functools.cache
def _values() -> Any:
    """Of each child of a worker, its own: a connection does not survive a fork."""
    return grpc.insecure_channel(os.environ[BARE]).unary_unary("/Echo/KeptValues")


if BROKER in os.environ:  # a worker's
    app = create_app(os.environ[BROKER], os.environ[RESULTS])
    app.set_current()
    app.set_default()
