"""The result server, or the broker, goes away and comes back: nothing is lost, none told twice.

TESTS_AWAY_S=30 pytest tests/end_to_end/celery/test_outages.py    a longer outage
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import celery
import pytest
from celery.exceptions import TimeoutError as CeleryTimeout

from resultd import testing
from resultd._watcher import Watcher
from resultd.errors import UnavailableError
from tests.campaigns import chord_tasks
from tests.support.redis_server import RedisServer, why_no_redis

pytestmark = [
    pytest.mark.skipif(why_no_redis() is not None, reason="no redis-server here"),
    pytest.mark.slow,
]

AWAY_S = float(os.environ.get("TESTS_AWAY_S", "4"))
WAIT_S = AWAY_S + 40
EXACT_S = 0.5  # of a machine that does much else
TASKS = 60
SETTINGS: dict[str, Any] = {"result_backend_transport_options": {"chord_lease": 3}}


class Stage:
    """A broker that keeps what it has, a server, and an app."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        self.redis_server = stack.enter_context(RedisServer(appendfsync="always"))
        self.server = stack.enter_context(testing.Server())
        self.app = chord_tasks.create_app(self.redis_server.url, self.server.url, **SETTINGS)
        stack.callback(self.app.close)
        self.part = self.app.tasks[chord_tasks.PART]
        self.held = self.app.tasks[chord_tasks.HELD]
        self.body = self.app.tasks[chord_tasks.BODY]

    def start_worker(self, name: str = "worker", **settings: Any) -> None:
        """A worker with two children."""
        worker = chord_tasks.create_worker(
            self._directory,
            self.redis_server.url,
            self.server.url,
            {**SETTINGS, **settings},
            name=name,
        )
        self._stack.callback(worker.kill)
        worker.start()

    def runs(self) -> list[Any]:
        """What the body was called with, each time."""
        with closing(self.redis_server.client()) as redis:
            return [json.loads(t)["got"] for t in redis.lrange(chord_tasks.EXECUTED, 0, -1)]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Servers of one test: they are killed."""
    with ExitStack() as stack:
        yield Stage(stack, tmp_path)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that wait."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


def until(condition: Callable[[], bool], within_s: float = WAIT_S) -> None:
    """Waits for something that gives no sign of its own."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"not so after {within_s:g} s"
        time.sleep(0.02)


@pytest.mark.timeout(WAIT_S + 40)
def test_waits_and_workers_outlive_the_server(stage: Stage, threads: ThreadPoolExecutor) -> None:
    """The server is killed in mid-flight: every wait gets every result once, a chord its body."""
    stage.start_worker("default")
    stage.start_worker("always", result_backend_always_retry=True)
    parts = [stage.part.s(1, index, 0.1) for index in range(TASKS)]
    group = celery.group(parts, app=stage.app)()
    body = celery.chord([stage.part.s(2, n, 0.1) for n in range(10)], app=stage.app)(
        stage.body.s(chord=2)
    )
    told: Counter[str] = Counter()
    for child in group.children:
        stage.app.AsyncResult(child.id).then(lambda ready: told.update([ready.id]))
    waits: dict[str, Future[Any]] = {
        "get": threads.submit(fresh(stage, group).get, timeout=WAIT_S),
        "join": threads.submit(fresh(stage, group).join, timeout=WAIT_S),
        "iter_native": threads.submit(lambda: list(fresh(stage, group).iter_native(WAIT_S))),
        "one": threads.submit(stage.app.AsyncResult(group.children[-1].id).get, timeout=WAIT_S),
        "for ever": threads.submit(stage.app.AsyncResult(group.children[-2].id).get),
        "body": threads.submit(body.get, timeout=WAIT_S),
    }
    begun = len(told)
    until(lambda: len(told) >= begun + 15)  # the waits have been heard of
    stage.server.kill()
    assert len(told) < TASKS, "all was over before the server was killed"
    late = threads.submit(stage.app.AsyncResult(body.id).get, timeout=WAIT_S)
    time.sleep(AWAY_S)  # what an outage is
    stage.server.start()
    values = [[1, index] for index in range(TASKS)]
    assert waits["get"].result() == values
    assert waits["join"].result() == values
    metas = waits["iter_native"].result()
    assert sorted(id_ for id_, _ in metas) == sorted(child.id for child in group.children)
    assert sorted(meta["result"] for _, meta in metas) == values
    assert waits["one"].result() == values[-1]
    assert waits["for ever"].result() == values[-2]
    assert waits["body"].result() == late.result()
    until(lambda: len(told) == TASKS)
    assert set(told.values()) == {1}
    assert stage.runs() == [[[2, index] for index in range(10)]]


def fresh(stage: Stage, group: Any) -> Any:
    """The group's results, as another process would have them: nothing is known of them."""
    return stage.app.GroupResult(group.id, [stage.app.AsyncResult(c.id) for c in group.children])


def test_timeouts_are_exact_while_the_server_is_away(
    stage: Stage, threads: ThreadPoolExecutor
) -> None:
    """get, join and iter_native raise at their time, also while another waits for ever."""
    stage.app.backend.store_result("there", 1, "SUCCESS")
    stage.server.kill()
    forever = threads.submit(stage.app.AsyncResult("later").get, timeout=30)
    for timeout in (0.0, 0.7):
        for wait in (
            lambda t: stage.app.AsyncResult("a").get(timeout=t),
            lambda t: results(stage).get(timeout=t),
            lambda t: results(stage).join(timeout=t),
            lambda t: list(results(stage).iter_native(timeout=t)),
        ):
            began = time.monotonic()
            with pytest.raises(CeleryTimeout):
                wait(timeout)
            assert timeout <= time.monotonic() - began < timeout + EXACT_S
    stage.server.start()
    stage.app.backend.store_result("later", 2, "SUCCESS")
    assert forever.result() == 2
    assert stage.app.AsyncResult("there").get(timeout=10) == 1


def results(stage: Stage) -> Any:
    """Two results that nobody stores."""
    return stage.app.ResultSet([stage.app.AsyncResult("a"), stage.app.AsyncResult("b")])


def test_a_server_that_never_comes_is_told_of(threads: ThreadPoolExecutor) -> None:
    """Without a timeout a wait ends with an error within the client's, however it waits."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"resultd://127.0.0.1:{free.getsockname()[1]}?timeout=1"
    app = chord_tasks.create_app("memory://", url)
    with_timeout = threads.submit(app.AsyncResult("c").get, timeout=5)
    pair = app.ResultSet([app.AsyncResult("a"), app.AsyncResult("b")])
    for wait in (app.AsyncResult("a").get, pair.get, pair.join, lambda: app.AsyncResult("a").state):
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=r"\S"):
            wait()
        assert time.monotonic() - began < 1 + EXACT_S
    with pytest.raises(CeleryTimeout):
        with_timeout.result()
    app.close()


def test_a_stream_on_its_way_to_no_server_is_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that relies on another's stream asks by itself if that shows no server."""
    monkeypatch.setattr(Watcher, "streaming", True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"resultd://127.0.0.1:{free.getsockname()[1]}?timeout=1"
    app = chord_tasks.create_app("memory://", url)
    began = time.monotonic()
    with pytest.raises(UnavailableError):
        app.AsyncResult("a").get()
    assert time.monotonic() - began < 1.25 + EXACT_S
    app.close()


def test_a_complete_chord_outlives_the_broker(stage: Stage, tmp_path: Path) -> None:
    """The last part returns while Redis is away: the body runs once it is back, once."""
    # A lease that outlasts kombu's tries: who is still trying when it runs out has a rival. There
    # are four, and in each redis-py tries four times, after up to 1, 2 and 4 s, as it draws them.
    stage.start_worker(result_backend_transport_options={"chord_lease": 60})
    gate = tmp_path / "gate"
    parts = [stage.part.s(3, 0), stage.held.s(3, 1, str(gate))]
    result = celery.chord(parts, app=stage.app)(stage.body.s(chord=3))
    until(lambda: Path(f"{gate}.begun").exists())
    first = stage.app.AsyncResult(result.parent.children[0].id)
    assert first.get(timeout=20) == [3, 0]
    stage.redis_server.stop()
    gate.touch()
    assert stage.app.AsyncResult(result.parent.children[1].id).get(timeout=20) == [3, 1]
    until(lambda: claimable(stage), 40)  # published in vain, and given back
    stage.redis_server.start()
    # Kombu 5.7 ends a worker that has something unacknowledged when Redis goes away.
    stage.start_worker("next")
    assert result.get(timeout=40)["parts"] == 2
    assert stage.runs() == [[[3, 0], [3, 1]]]


def claimable(stage: Stage) -> bool:
    """Whether a chord is complete and nobody works on it."""
    return bool(list(stage.app.backend.client.list_groups(claimable=True)))
