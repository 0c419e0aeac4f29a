"""Who waits: how long exactly, in which thread, in which process, or not at all."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import celery
import pytest
from celery import group

from tests.support import celery_tasks
from tests.support.celery_worker import ROOT
from tests.support.timing import check_takes

TIMEOUT_S = 20.0
THREADS = 50


def check_times_out(least: float, most: float, wait: Callable[[], object]) -> None:
    """The wait ends in a timeout of both kinds, after so many seconds."""

    def action() -> None:
        with pytest.raises(celery.exceptions.TimeoutError) as caught:
            wait()
        assert isinstance(caught.value, builtins.TimeoutError)

    check_takes(least, most, action)


@pytest.fixture
def pending(app: Any) -> Any:
    """A result that never comes."""
    return app.AsyncResult(str(uuid.uuid4()))


@pytest.mark.usefixtures("differs_from_redis")
def test_a_timeout_is_exact(pending: Any) -> None:
    """`get(timeout=0.2)` raises after 0.2 s: Celery's TimeoutError and the builtin one."""
    check_times_out(0.2, 0.35, lambda: pending.get(timeout=0.2))


@pytest.mark.usefixtures("differs_from_redis")
def test_a_timeout_of_0_asks_once(pending: Any, tasks: Any) -> None:
    """`get(timeout=0)` returns what is there and raises at once if nothing is."""
    check_times_out(0, 0.15, lambda: pending.get(timeout=0))
    done = tasks.add.delay(1, 1)
    done.get(timeout=TIMEOUT_S)
    assert tasks.add.AsyncResult(done.id).get(timeout=0) == 2


@pytest.mark.usefixtures("differs_from_redis")
def test_timeouts_of_sets_are_exact(app: Any, tasks: Any, pending: Any) -> None:
    """Sets and groups raise on time in every way of waiting for them, though some is there."""
    done = tasks.add.delay(1, 1)
    done.get(timeout=TIMEOUT_S)
    for made in (app.ResultSet([pending, done]), app.GroupResult("g", [done, pending])):
        for wait in (made.get, made.join, made.join_native):
            check_times_out(0.2, 0.35, partial(wait, timeout=0.2))
        check_times_out(0.2, 0.35, partial(exhaust, made, 0.2))


def exhaust(results: Any, timeout: float) -> None:
    """Takes all that a set yields."""
    for _ in results.iter_native(timeout=timeout):
        pass


@pytest.mark.usefixtures("differs_from_redis")
def test_a_timeout_while_others_wait_longer(app: Any, tasks: Any, key: str) -> None:
    """A short wait ends on time beside a long one."""
    long = tasks.wait_for.delay(key, "value")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(long.get, timeout=TIMEOUT_S)
        other = app.AsyncResult(str(uuid.uuid4()))
        check_times_out(0.2, 0.35, lambda: other.get(timeout=0.2))
        celery_tasks.say(app, key, "go")
        assert waiting.result(TIMEOUT_S) == "value"


def test_waiting_again_after_a_timeout(
    tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """A wait that timed out takes nothing from the next one."""
    result = tasks.wait_for.delay(key, "value")
    hear(f"{key}:begun")
    with pytest.raises(celery.exceptions.TimeoutError):
        result.get(timeout=0.05)
    say(key)
    assert result.get(timeout=TIMEOUT_S) == "value"


def test_a_callback_of_get(tasks: Any) -> None:
    """`get(callback=…)` calls it with id and value and returns the value."""
    seen: list[Any] = []
    result = tasks.add.delay(1, 1)
    assert result.get(timeout=TIMEOUT_S, callback=lambda *told: seen.append(told)) == 2
    assert seen == [(result.id, 2)]


def test_a_call_per_interval(
    tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """`get(on_interval=…)` is called while it waits."""
    result = tasks.wait_for.delay(key, "value")
    hear(f"{key}:begun")
    ticks = []

    def tick() -> None:  # once: Celery hands a promise over, and a promise calls once
        ticks.append(1)
        say(key)

    assert result.get(timeout=TIMEOUT_S, interval=0.05, on_interval=tick) == "value"
    assert ticks


@pytest.mark.usefixtures("differs_from_redis")
def test_then_needs_nobody_who_waits(app: Any, tasks: Any) -> None:
    """`then` calls back by itself, also for somebody else's task, also what is done before."""
    called = threading.Event()
    seen: list[Any] = []

    def callback(result: Any) -> None:
        seen.append(result.result)
        if len(seen) == 3:
            called.set()

    done = tasks.add.delay(0, 0)
    done.get(timeout=TIMEOUT_S)
    app.AsyncResult(done.id).then(callback)
    task_id = str(uuid.uuid4())
    app.AsyncResult(task_id).then(callback)  # nobody else holds this result
    mine = tasks.add.delay(1, 1)
    mine.then(callback)
    tasks.add.apply_async((2, 2), task_id=task_id)
    assert called.wait(TIMEOUT_S)
    assert sorted(seen) == [0, 2, 4]


@pytest.mark.usefixtures("differs_from_redis")
def test_then_is_called_once_and_may_wait(app: Any, tasks: Any) -> None:
    """A callback is called once, and may itself call tasks and wait for them."""
    told: list[Any] = []
    called = threading.Event()

    def callback(result: Any) -> None:
        told.append(tasks.add.delay(result.result, 1).get(timeout=TIMEOUT_S))
        called.set()

    result = tasks.add.delay(1, 1)
    result.then(callback)
    assert called.wait(TIMEOUT_S)
    assert result.get(timeout=TIMEOUT_S) == 2
    assert result.state == "SUCCESS"
    assert told == [3]


@pytest.mark.usefixtures("differs_from_redis")
def test_then_of_a_failure_is_told(tasks: Any) -> None:
    """`then` is told of failures too: its callback gets the result, whatever it is."""
    called = threading.Event()
    seen: list[Any] = []
    result = tasks.fail.delay("no")

    def callback(told: Any) -> None:
        seen.append(told.state)
        called.set()

    result.then(callback)
    assert called.wait(TIMEOUT_S)
    assert seen == ["FAILURE"]


def test_then_of_a_group_is_called_when_it_is_waited_for(app: Any, tasks: Any) -> None:
    """`then` of a group or set is called, once, by the time that `get` returns."""
    seen: list[Any] = []
    made = group(tasks.identity.s(n) for n in range(5))()
    for results in (made, app.ResultSet([tasks.identity.delay(n) for n in range(5)])):
        results.then(lambda done: seen.append(len(done)))
        assert results.get(timeout=TIMEOUT_S) == [0, 1, 2, 3, 4]
    assert seen == [5, 5]


@pytest.mark.usefixtures("differs_from_redis")
def test_one_backend_serves_all_threads(app: Any) -> None:
    """Every thread of a process uses the same backend, hence the same connection."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: app.backend).result(TIMEOUT_S) is app.backend


def test_two_threads_wait_for_one_task(
    app: Any, tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """Every thread that waits for a task is told, by the same object or by its own."""
    result = tasks.wait_for.delay(key, "value")
    hear(f"{key}:begun")
    results = [result, result, app.AsyncResult(result.id)]
    with ThreadPoolExecutor(len(results)) as pool:
        waiting = [pool.submit(each.get, timeout=TIMEOUT_S) for each in results]
        say(key)
        assert [future.result(TIMEOUT_S) for future in waiting] == ["value"] * 3


@pytest.mark.usefixtures("differs_from_redis")
def test_50_threads_wait_at_once(app: Any, tasks: Any) -> None:
    """Fifty threads that call and wait at once each get their own value."""
    together = threading.Barrier(THREADS)

    def call(number: int) -> Any:
        together.wait(TIMEOUT_S)
        result = tasks.add.delay(number, number)
        return result.get(timeout=TIMEOUT_S), app.AsyncResult(result.id).result

    with ThreadPoolExecutor(THREADS) as pool:
        values = list(pool.map(call, range(THREADS)))
    assert values == [(2 * n, 2 * n) for n in range(THREADS)]


ASKING = """
import json, sys
from tests.support.celery_tasks import create_app

broker, backend, task_id = sys.argv[1:]
result = create_app(broker, backend).AsyncResult(task_id)
print("asking", flush=True)
value = result.get(timeout=20)
print(json.dumps([value, result.state]), flush=True)
"""


def test_another_process_is_told(
    tasks: Any,
    broker_url: str,
    backend_url: str,
    key: str,
    hear: Callable[[str], str],
    say: Callable[[str], None],
) -> None:
    """A process that knows only the id waits for the result and gets it."""
    result = tasks.wait_for.delay(key, "value")
    hear(f"{key}:begun")
    command = [sys.executable, "-c", ASKING, broker_url, backend_url, result.id]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "asking\n"
        say(key)
        told = json.loads(process.stdout.readline())
    assert told == ["value", "SUCCESS"]
    assert process.returncode == 0


@pytest.mark.usefixtures("differs_from_redis")
def test_a_process_ends_with_results_not_waited_for(
    tasks: Any, broker_url: str, backend_url: str
) -> None:
    """A program that calls tasks and leaves ends at once and quietly."""
    leaving = (
        "import sys\n"
        "from tests.support.celery_tasks import create_app, named\n"
        "tasks = named(create_app(*sys.argv[1:]))\n"
        "results = [tasks.add.delay(n, n) for n in range(20)]\n"
        "results[0].get(timeout=20)\n"
        "results[1].then(lambda _: None)\n"
    )
    command = [sys.executable, "-c", leaving, broker_url, backend_url]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert tasks.add.delay(1, 1).get(timeout=TIMEOUT_S) == 2
