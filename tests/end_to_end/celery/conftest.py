"""One broker, one server and one worker for all tests of this directory.

`TESTS_CELERY_BACKEND=redis` runs the same laws against Celery's own Redis backend.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from resultd import testing
from tests.support import celery_tasks
from tests.support.celery_worker import CeleryWorker, add_log_sections
from tests.support.redis_server import RedisServer, why_no_redis

BROKER_DATABASE = 0
BACKEND_DATABASE = 1
WAIT_S = 20.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """A failure shows what the workers logged during the test."""
    report = yield
    add_log_sections(report)
    return report


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The broker."""
    missing = why_no_redis()
    if missing is not None:
        pytest.skip(missing)
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def broker_url(redis_server: RedisServer) -> str:
    """Where tasks are sent."""
    return redis_server.database(BROKER_DATABASE)


@pytest.fixture(scope="session")
def on_resultd() -> bool:
    """False when the laws are tried on Celery's own Redis backend."""
    return os.environ.get("TESTS_CELERY_BACKEND", "resultd") != "redis"


@pytest.fixture(scope="session")
def backend_url(redis_server: RedisServer, on_resultd: bool) -> Iterator[str]:
    """Where results are stored."""
    if not on_resultd:
        yield redis_server.database(BACKEND_DATABASE)
        return
    pytest.importorskip("resultd.celery")
    with testing.Server() as server:
        yield server.url


@pytest.fixture(scope="session")
def worker(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str, backend_url: str
) -> Iterator[CeleryWorker]:
    """A prefork worker with two children."""
    directory: Path = tmp_path_factory.mktemp("celery")
    with CeleryWorker(directory, broker=broker_url, backend=backend_url) as running:
        yield running


@pytest.fixture(autouse=True)
def worker_alive(worker: CeleryWorker) -> None:
    """One worker that died fails the tests after it at once, not each by its timeout."""
    assert worker.alive, "the worker has died"


@pytest.fixture(scope="session")
def app(worker: CeleryWorker, broker_url: str, backend_url: str, on_resultd: bool) -> Iterator[Any]:
    """The app of who calls tasks and waits."""
    made = celery_tasks.create_app(broker_url, backend_url)
    yield made
    close_app(made, on_resultd)


@pytest.fixture
def other_app(broker_url: str, backend_url: str, on_resultd: bool) -> Iterator[Any]:
    """The app of somebody else, who shares nothing with the first but the servers."""
    made = celery_tasks.create_app(broker_url, backend_url)
    yield made
    close_app(made, on_resultd)


def close_app(app: Any, on_resultd: bool) -> None:
    """Closes an app."""
    if on_resultd:
        app.close()
    else:
        celery_tasks.close_redis_app(app)


@pytest.fixture(scope="session")
def tasks(app: Any) -> Any:
    """The tasks, as attributes."""
    return celery_tasks.named(app)


@pytest.fixture
def key() -> str:
    """A list in the broker's Redis that only this test uses."""
    return f"test:{uuid.uuid4()}"


@pytest.fixture
def say(app: Any) -> Callable[[str], None]:
    """Says a word to a task that waits for one in a list: `say(key)`."""
    return lambda where: celery_tasks.say(app, where, "go")


@pytest.fixture
def hear(app: Any) -> Callable[[str], str]:
    """Waits for what a task says in a list: `hear(key)`."""

    def wait(where: str) -> str:
        heard = celery_tasks.hear(app, where, WAIT_S)
        assert heard is not None, f"nothing was said in {where} for {WAIT_S:g} s"
        return heard

    return wait


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits for something that gives no sign of its own: `until(lambda: result.ready())`."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end, f"not so after {WAIT_S:g} s"
            time.sleep(0.01)

    return wait


@pytest.fixture
def differs_from_redis(on_resultd: bool) -> None:
    """For laws that Celery's Redis backend does not keep."""
    if not on_resultd:
        pytest.skip("Celery's Redis backend does not do this")
