"""A worker dies while it finishes a chord: others finish it, in a time that can be said.

Parts run on worker A, bodies on worker B, each from a queue of its own. A's child kills itself
before or after it publishes, by the application's own signal handlers, and A is killed with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import celery
import pytest

from resultd import testing
from resultd.v1 import group_pb2
from tests.campaigns import chord_tasks
from tests.support.celery_worker import CeleryWorker
from tests.support.redis_server import RedisServer, why_no_redis

pytestmark = [
    pytest.mark.skipif(why_no_redis() is not None, reason="no redis-server here"),
    pytest.mark.slow,
]

LEASE_S = 2.0
GRACE_S = 5.0
SLACK_S = 8.0  # of a machine that does much else
PARTS = 3


class Stage:
    """The broker, the server, and an app that sends parts to A and bodies to B."""

    def __init__(
        self, stack: ExitStack, directory: Path, redis_server: RedisServer, server: testing.Server
    ) -> None:
        self._stack = stack
        self._directory = directory
        self.redis_server, self.server = redis_server, server
        self.redis = stack.enter_context(redis_server.client())
        self.redis.flushall()
        self.app = chord_tasks.create_app(self.redis_server.url, self.server.url)
        stack.callback(self.app.close)
        self.part = self.app.tasks[chord_tasks.PART]
        self.body = self.app.tasks[chord_tasks.BODY]

    def start(self, queues: str, lease_s: float, **more: Any) -> CeleryWorker:
        """A worker of one child."""
        worker = chord_tasks.create_worker(
            self._directory,
            self.redis_server.url,
            self.server.url,
            {"result_backend_transport_options": {"chord_lease": lease_s}},
            name=f"worker-{queues}",
            concurrency=1,
            queues=queues,
            **more,
        )
        self._stack.callback(worker.kill)
        return worker.start()

    def left_unfinished(self, word: str) -> Any:
        """A chord whose claimant died, with its whole worker, when the word said so."""
        self.redis.rpush(word, "now")
        worker = self.start("a", LEASE_S)
        parts = [self.part.s(1, index).set(queue="a") for index in range(PARTS)]
        result = celery.chord(parts, app=self.app)(self.body.s(chord=1).set(queue="b"))
        assert self.redis.blpop([chord_tasks.DIED], timeout=20) is not None
        worker.kill()
        return result

    def publications(self) -> list[dict[str, Any]]:
        """What was said before each publication of the body."""
        said = [json.loads(text) for text in self.redis.lrange(chord_tasks.PUBLISHED, 0, -1)]
        return [each for each in said if each["phase"] == "before"]

    def runs(self) -> list[Any]:
        """What the body was called with, each time."""
        return [json.loads(t)["got"] for t in self.redis.lrange(chord_tasks.EXECUTED, 0, -1)]

    def group(self, result: Any) -> group_pb2.GroupMeta:
        """What the server knows of the chord."""
        client = self.app.backend.client
        group: group_pb2.GroupMeta = client.run(client.operations.group(result.parent.id))
        return group

    def until_done(self, result: Any, within_s: float) -> None:
        """Waits until somebody has said that the chord is finished."""
        end = time.monotonic() + within_s
        while self.group(result).claim.state != group_pb2.CLAIM_STATE_DONE:
            assert time.monotonic() < end, f"not finished after {within_s:g} s"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[RedisServer, testing.Server]]:
    """A broker and a result server that only these tests use."""
    with RedisServer() as redis_server, testing.Server() as server:
        yield redis_server, server


@pytest.fixture
def stage(tmp_path: Path, servers: tuple[RedisServer, testing.Server]) -> Iterator[Stage]:
    """One for each test: nobody else's workers may take its chords over."""
    with ExitStack() as stack:
        yield Stage(stack, tmp_path, *servers)


ALL = [[1, index] for index in range(PARTS)]


def test_an_idle_worker_takes_over_what_was_claimed_and_not_published(stage: Stage) -> None:
    """Nothing else runs: the body comes within the lease and one question (half a lease)."""
    stage.start("b", LEASE_S)
    result = stage.left_unfinished(chord_tasks.DIE_BEFORE)
    began = time.monotonic()
    assert result.get(timeout=LEASE_S * 1.5 + SLACK_S)["parts"] == PARTS
    took = time.monotonic() - began
    print(f"idle, never published: {took:.1f} s after the death")
    stage.until_done(result, SLACK_S)
    assert stage.runs() == [ALL]
    assert len(stage.publications()) == 2  # one of them by who died before it could


def test_a_busy_worker_takes_over_told_by_its_store_replies(stage: Stage) -> None:
    """A worker that never asks hears of the chord when it stores results of its own."""
    stage.start("b", 3600)
    result = stage.left_unfinished(chord_tasks.DIE_BEFORE)
    began = time.monotonic()
    end = began + LEASE_S + GRACE_S + SLACK_S
    while not result.ready():
        assert time.monotonic() < end
        stage.part.s(2, 0).set(queue="b").delay().get(timeout=20)
    print(f"busy, never published: {time.monotonic() - began:.1f} s after the death")
    stage.until_done(result, SLACK_S)
    assert stage.runs() == [ALL]
    assert len(stage.publications()) == 2


def test_what_was_published_and_run_is_not_published_again(stage: Stage) -> None:
    """A claimant that died between publishing and saying so leaves one publication."""
    stage.start("b", LEASE_S)
    result = stage.left_unfinished(chord_tasks.DIE_AFTER)
    began = time.monotonic()
    assert result.get(timeout=SLACK_S)["parts"] == PARTS
    stage.until_done(result, LEASE_S * 1.5 + SLACK_S)
    print(f"idle, published: finished {time.monotonic() - began:.1f} s after the death")
    assert stage.runs() == [ALL]
    assert len(stage.publications()) == 1


def test_what_was_published_and_not_run_yet_is_published_again_under_its_id(stage: Stage) -> None:
    """Nobody can know that the body is with the broker: it runs twice and is stored once."""
    stage.start("elsewhere", LEASE_S)
    result = stage.left_unfinished(chord_tasks.DIE_AFTER)
    stage.until_done(result, LEASE_S * 1.5 + SLACK_S)
    assert {each["body"] for each in stage.publications()} == {result.id}
    assert len(stage.publications()) == 2
    stage.start("b", 3600)
    first = result.get(timeout=SLACK_S)
    end = time.monotonic() + SLACK_S
    while len(stage.runs()) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert stage.runs() == [ALL, ALL]
    assert stage.app.AsyncResult(result.id).result == first
