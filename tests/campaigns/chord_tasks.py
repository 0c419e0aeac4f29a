"""What the chord campaign's workers run: parts, bodies, and a record of every publication.

Every process writes into the broker's Redis what it is about to do before it does it, so that
a process killed at any point has left word. All of it is what an application may do, by
Celery's own signals: the backend knows nothing of it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import celery
from celery.signals import after_task_publish, before_task_publish

from tests.support.celery_tasks import connection
from tests.support.celery_worker import CeleryWorker

APP = "tests.campaigns.chord_app"
#: What `APP` is to be, as JSON.
ENVIRONMENT = "TESTS_CHORD_APP"

BODY = "campaign.body"
PART = "campaign.part"
HELD = "campaign.held"

#: Lists in the broker's Redis.
EXECUTED = "campaign:executed"
PUBLISHED = "campaign:published"
#: A word in one of these kills whoever publishes a body next, before or after it does.
DIE_BEFORE = "campaign:die-before"
DIE_AFTER = "campaign:die-after"
DIED = "campaign:died"
#: A header of what the campaign publishes in place of a message that the broker has lost.
AGAIN = "campaign-again"

#: A part that waits for a file ends by itself after this.
HELD_S = 30.0

_SETTINGS = {
    "broker_connection_retry_on_startup": True,
    "worker_hijack_root_logger": True,
    "worker_prefetch_multiplier": 1,
    "worker_lost_wait": 0.2,
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
}


def create_app(broker: str, backend: str, name: str = "campaign", **settings: Any) -> Any:
    """An app with both tasks; it does not become the current one."""
    app = celery.Celery(name, broker=broker, backend=backend, set_as_current=False)
    app.conf.update(**_SETTINGS)
    app.conf.update(**settings)
    app.task(name=PART, shared=False)(part)
    app.task(name=HELD, shared=False)(held)
    app.task(name=BODY, shared=False, bind=True)(body)
    app.finalize()
    return app


def create_worker(
    directory: Path,
    broker: str,
    backend: str,
    settings: Mapping[str, Any],
    *,
    name: str = "worker",
    app_name: str = "campaign",
    concurrency: int = 2,
    queues: str = "celery",
) -> CeleryWorker:
    """A worker of such an app, to be started."""
    said = {"broker": broker, "backend": backend, "name": app_name, "settings": dict(settings)}
    return CeleryWorker(
        directory,
        broker=broker,
        backend=backend,
        app=APP,
        concurrency=concurrency,
        options=("-Q", queues),
        environment={ENVIRONMENT: json.dumps(said)},
        name=name,
    )


def redis_of(broker: str) -> Any:
    """This process's client of the broker's Redis."""
    return connection(broker, os.getpid())


def record_publications(broker: str) -> None:
    """Has every publication of a body written down before and after it, and dies if told to."""

    def note(phase: str, headers: dict[str, Any], message: Any) -> None:
        if AGAIN in headers:
            return
        said = {
            "chord": message[1]["chord"],
            "body": headers["id"],
            "pid": os.getpid(),
            "at": time.time(),
            "phase": phase,
        }
        redis_of(broker).rpush(PUBLISHED, json.dumps(said))

    def before(headers: Any = None, body: Any = None, **_: Any) -> None:
        note("before", headers, body)
        _die_if_told(broker, DIE_BEFORE)

    def after(headers: Any = None, body: Any = None, **_: Any) -> None:
        note("after", headers, body)
        _die_if_told(broker, DIE_AFTER)

    before_task_publish.connect(before, sender=BODY, weak=False, dispatch_uid="campaign-before")
    after_task_publish.connect(after, sender=BODY, weak=False, dispatch_uid="campaign-after")


def _die_if_told(broker: str, key: str) -> None:
    client = redis_of(broker)
    if client.lpop(key) is not None:
        client.rpush(DIED, json.dumps({"pid": os.getpid(), "at": time.time()}))
        os.kill(os.getpid(), signal.SIGKILL)


def part(chord: int, index: int, work_s: float = 0.0) -> list[int]:
    """Some work, and whose part of what it is."""
    if work_s:
        time.sleep(random.uniform(0, 2 * work_s))
    return [chord, index]


def held(chord: int, index: int, path: str) -> list[int]:
    """A part that ends when there is a file: no broker is needed to tell it so."""
    Path(f"{path}.begun").touch()
    end = time.monotonic() + HELD_S
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.02)
    return [chord, index]


def body(self: Any, received: list[list[int]], chord: int) -> dict[str, Any]:
    """Writes down that it ran and with what."""
    run = uuid.uuid4().hex
    said = {"chord": chord, "run": run, "pid": os.getpid(), "at": time.time(), "got": received}
    redis_of(self.app.conf.broker_url).rpush(EXECUTED, json.dumps(said))
    return {"chord": chord, "run": run, "parts": len(received)}
