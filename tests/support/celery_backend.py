"""A Celery app on a server, without a worker: the backend is called as Celery would.

What is published goes to kombu's broker in memory, in a queue of the app's own.
"""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import celery
import pytest
from celery.app.task import Context
from kombu.simple import SimpleQueue

from resultd._operations import Operations


def body(results: Any) -> Any:
    """What a chord ends with."""
    return results


def add(x: Any, y: Any) -> Any:
    """x + y."""
    return x + y


def make_app(url: str, **settings: Any) -> Any:
    """An app whose backend is at `url`; it does not become the current one."""
    app = celery.Celery("tests", broker="memory://", backend=url, set_as_current=False)
    app.conf.task_default_queue = f"queue-{uuid.uuid4().hex}"
    app.conf.update(settings)
    for function in (body, add):
        app.task(name=function.__name__, shared=False)(function)
    app.finalize()
    return app


def request_of(task_id: str, **fields: Any) -> Any:
    """A task's request, as the tracer hands it to the backend."""
    return Context({"id": task_id, "task": "add", "errbacks": None, "chain": None, **fields})


def published(app: Any) -> list[tuple[str, str, Any]]:
    """The tasks published since the last look: (name, id, first argument)."""
    found: list[tuple[str, str, Any]] = []
    with app.connection_for_read() as connection:
        queue = SimpleQueue(connection.channel(), app.conf.task_default_queue, no_ack=True)
        while True:
            try:
                message = queue.get(block=False)
            except queue.Empty:
                queue.close()
                return found
            args = message.payload[0]
            found.append(
                (message.headers["task"], message.headers["id"], args[0] if args else None)
            )


def count_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls to servers from now on, by method."""
    calls: Counter[str] = Counter()
    real = Operations.call

    def call(self: Operations, method: str, request: Any, **options: Any) -> Any:
        calls[method] += 1
        return real(self, method, request, **options)

    monkeypatch.setattr(Operations, "call", call)
    return calls
