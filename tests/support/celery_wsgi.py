"""A web application that calls tasks: for gunicorn, which may import it before it forks.

Where `TESTS_WSGI_USE` is set, importing it uses the backend and leaves a channel and a `Watch`
stream open, for every worker to be forked off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from tests.support.celery_app import app
from tests.support.celery_pools import until
from tests.support.celery_tasks import named

IMPORTED_BY = os.getpid()
GET_S = 10.0

_waited = app.AsyncResult(f"never-{IMPORTED_BY}")
if os.environ.get("TESTS_WSGI_USE"):
    app.backend.store_result(f"imported-{IMPORTED_BY}", 1, "SUCCESS")
    assert app.AsyncResult(f"imported-{IMPORTED_BY}").get(timeout=GET_S) == 1
    _waited.then(print)
    until(lambda: app.backend.client.watcher().streaming)


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    """Answers with what a task said, and with who asked for it."""
    value = named(app).add.delay(20, 3).get(timeout=GET_S)
    body = {"pid": os.getpid(), "imported_by": IMPORTED_BY, "value": value}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]
