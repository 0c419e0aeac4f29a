"""The app of a worker whose main process uses the backend too, before and while it forks.

It stores and reads before the pool is started and keeps a `Watch` stream open ever after.
"""

from __future__ import annotations

import os
from typing import Any

from celery import signals
from celery.result import allow_join_result

from tests.support.celery_app import app
from tests.support.celery_pools import SAID
from tests.support.celery_tasks import say

__all__ = ["app"]

_kept: list[Any] = []


def use(when: str) -> None:
    """Stores and reads; the pid goes with it, so that children show that they are others."""
    task_id = f"{when}-{os.getpid()}"
    app.backend.store_result(task_id, when, "SUCCESS")
    with allow_join_result():  # the pool's start forbids it to the main process as well
        found = app.AsyncResult(task_id).get(timeout=10)
    say(app, SAID, f"{found} {os.getpid()}")


@signals.worker_init.connect  # type: ignore[untyped-decorator]  # Celery has no types
def before_the_pool(**_: Any) -> None:
    """Nothing was forked yet."""
    use("init")
    waited = app.AsyncResult(f"never-{os.getpid()}")
    waited.then(_kept.append)  # keeps the stream open
    _kept.append(waited)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]  # Celery has no types
def with_the_pool(**_: Any) -> None:
    """The first children run."""
    use("ready")


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]  # Celery has no types
def at_the_end(**_: Any) -> None:
    """The pool is gone."""
    use("end")
