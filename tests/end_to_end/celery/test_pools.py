"""Every kind of worker pool, with a real worker; gevent on the client's side too; gunicorn."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import kombu.utils.compat
import pytest
from celery.exceptions import ImproperlyConfigured

import resultd
from tests.support import celery_tasks, gunicorn_process
from tests.support.celery_pools import (
    SAID,
    STOP_S,
    TIMEOUT_S,
    exercise,
    noise,
    stop_quietly,
    until,
    wait_within,
)
from tests.support.celery_worker import ROOT, CeleryWorker
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.usefixtures("differs_from_redis")

MAIN_APP = "tests.support.celery_main_app"
SPAWN_APP = "tests.support.celery_spawn_app"
# Databases of the broker that no other test uses.
_databases = itertools.count(50)


@pytest.fixture(scope="module")
def url(backend_url: str) -> str:
    """A namespace of its own: these workers finish no other test's chords."""
    return f"{backend_url}/pools"


@pytest.fixture
def broker(redis_server: RedisServer) -> str:
    """A broker that only one test's workers listen to."""
    return redis_server.database(next(_databases))


@pytest.fixture
def own_app(broker: str, url: str) -> Iterator[Any]:
    """The app of who calls tasks there."""
    app = celery_tasks.create_app(broker, url)
    yield app
    app.close()


Start = Callable[..., CeleryWorker]


@pytest.fixture
def start(broker: str, url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts a worker: `start(pool="threads")`."""
    started: list[CeleryWorker] = []

    def worker(**options: Any) -> CeleryWorker:
        options = {"name": f"worker{len(started)}", **options}
        made = CeleryWorker(tmp_path, broker=broker, backend=url, **options)
        started.append(made)
        return made.start()

    yield worker
    for made in started:
        made.stop()


def said_by_main(app: Any, when: str) -> int:
    """Waits until a worker's main process has used the backend; gives its pid."""
    word = celery_tasks.hear(app, SAID, TIMEOUT_S)
    assert word is not None
    what, pid = word.split()
    assert what == when
    return int(pid)


@pytest.fixture(scope="module")
def threads_worker(
    redis_server: RedisServer, url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A worker for clients of several kinds; its broker's address."""
    broker = redis_server.database(next(_databases))
    directory = tmp_path_factory.mktemp("threads")
    with CeleryWorker(directory, broker=broker, backend=url, pool="threads", concurrency=4):
        yield broker


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "concurrency"), [("prefork", 2), ("threads", 4), ("solo", 1), ("gevent", 4)]
)
def test_a_worker_whose_main_process_uses_the_backend(
    pool: str, concurrency: int, start: Start, own_app: Any
) -> None:
    """Whatever the pool: main process and tasks store and read, and SIGTERM ends it quietly."""
    worker = start(pool=pool, concurrency=concurrency, app=MAIN_APP)
    pid = worker.pid
    assert said_by_main(own_app, "init") == pid
    assert said_by_main(own_app, "ready") == pid
    exercise(own_app)
    if concurrency > 1:
        wait_within(own_app)
    in_main = celery_tasks.named(own_app).who.delay().get(timeout=TIMEOUT_S)["pid"] == pid
    assert in_main == (pool != "prefork")
    stop_quietly(worker)
    assert said_by_main(own_app, "end") == pid


@pytest.mark.slow
def test_children_that_autoscaling_forks(start: Start, own_app: Any) -> None:
    """Children forked later, off a main process with an open stream, are as good as the first."""
    worker = start(concurrency=4, app=MAIN_APP, options=("--autoscale=4,1",))
    tasks = celery_tasks.named(own_app)
    key = f"test:{uuid.uuid4()}"
    results = [tasks.wait_for.delay(key, n) for n in range(4)]
    for _ in results:  # all of them run at a time
        assert celery_tasks.hear(own_app, f"{key}:begun", TIMEOUT_S) is not None
    assert len({result.info["pid"] for result in results} - {worker.pid}) == 4
    for _ in results:
        celery_tasks.say(own_app, key, "go")
    assert [result.get(timeout=TIMEOUT_S) for result in results] == [0, 1, 2, 3]
    exercise(own_app)
    wait_within(own_app)
    stop_quietly(worker)


@pytest.mark.slow
def test_children_of_one_task_each(start: Start, own_app: Any) -> None:
    """31 tasks in 31 children; the main process holds a stream and asks about idle chords.

    A chord that was left unfinished is found by the main process's question and done.
    """
    worker = start(
        concurrency=10,
        app=MAIN_APP,
        options=("--max-tasks-per-child=1",),
        settings={"result_backend_transport_options": {"chord_lease": 1}},
    )
    tasks = celery_tasks.named(own_app)
    # All parts are there, and whoever was to publish the body is gone.
    group_id, body = str(uuid.uuid4()), tasks.who_after.s()
    body.freeze()
    own_app.backend.apply_chord((group_id, []), body)
    own_app.backend.set_chord_size(group_id, 2)
    with resultd.Client(own_app.conf.result_backend) as client:
        for index in range(2):
            client.store_result(str(uuid.uuid4()), 10, group_id=group_id, index=index)
    found = [result.get(timeout=TIMEOUT_S) for result in [tasks.who.delay() for _ in range(20)]]
    taken_over = own_app.AsyncResult(body.id).get(timeout=TIMEOUT_S)
    assert taken_over["value"] == [10, 10]
    until(lambda: "was left unfinished by another: done here" in worker.log())
    group = celery.group([tasks.who.s() for n in range(10)], app=own_app)()
    used = {each["pid"] for each in [*found, taken_over, *group.get(timeout=TIMEOUT_S)]}
    assert len(used) == 31
    # A child that has done its task and is not heard any more, since the worker stops, waits
    # for that up to 30 s: billiard's way, whatever the backend.
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in used))
    stop_quietly(worker)


@pytest.mark.slow
def test_spawned_children(start: Start, own_app: Any) -> None:
    """`worker_pool_start_method="spawn"`, new in Celery 5.7: an app that `include`s its tasks."""
    worker = start(app=SPAWN_APP, settings={"worker_pool_start_method": "spawn"})
    exercise(own_app)
    wait_within(own_app)
    assert celery_tasks.named(own_app).who.delay().get(timeout=TIMEOUT_S)["pid"] != worker.pid
    assert "SpawnPoolWorker" in worker.log()
    stop_quietly(worker)


@pytest.mark.slow
def test_a_client_under_gevent(threads_worker: str, url: str) -> None:
    """A monkey-patched program waits in 100 greenlets at a time, and none stops the others."""
    command = [sys.executable, "-m", "tests.support.celery_gevent_client", threads_worker, url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["single"], found["chord"], found["then"]) == (3, 90, True)
    assert found["hundred"] == [2 * n for n in range(100)]
    assert found["together"] == ["told"] * 100
    assert found["group"] == [2 * n for n in range(10)]
    assert found["slept"] == "slept"
    assert found["timed_out_after_s"] >= 0.3
    # The task that sleeps takes 0.5 s: a get() that blocked would show.
    assert found["longest_pause_s"] < 0.45


def test_eventlet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that runs eventlet is told in one sentence that it cannot, and what can."""
    monkeypatch.setattr(kombu.utils.compat, "_environment", "eventlet")
    app = celery.Celery("eventlet", backend="resultd://127.0.0.1:1", set_as_current=False)
    with pytest.raises(ImproperlyConfigured) as refused:
        _ = app.backend
    assert str(refused.value) == (
        "The resultd backend cannot run under eventlet, which gRPC does not support: start "
        "the worker with -P prefork, -P threads, -P gevent or -P solo."
    )


def pids(answers: list[dict[str, Any]]) -> set[int]:
    """Who gave them."""
    return {answer["pid"] for answer in answers}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--preload",),
        ("--preload", "-k", "gthread", "--threads", "4"),
        ("--preload", "-k", "gevent"),
    ],
    ids=["sync", "gthread", "gevent"],
)
def test_gunicorn(options: tuple[str, ...], threads_worker: str, url: str, tmp_path: Path) -> None:
    """Every web worker calls tasks and waits, though the application used the backend before
    they were forked; SIGTERM ends it quietly.
    """
    environment = {"TESTS_CELERY_BROKER": threads_worker, "TESTS_CELERY_RESULTS": url}
    environment["TESTS_WSGI_USE"] = "1"
    with gunicorn_process.Gunicorn(
        tmp_path, "--workers", "2", *options, environment=environment
    ) as gunicorn:
        answers: list[dict[str, Any]] = []

        def both() -> bool:
            answers.append(gunicorn.get())
            return len(pids(answers)) == 2

        until(both)
        assert {answer["value"] for answer in answers} == {23}
        assert len({answer["imported_by"] for answer in answers} - pids(answers)) == 1
        began = time.monotonic()
        assert gunicorn.stop() == 0
        assert time.monotonic() - began < STOP_S
        assert noise(gunicorn.log()) == []
