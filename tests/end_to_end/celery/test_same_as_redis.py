"""The same programs on Celery's Redis backend and on resultd come to the same.

Each runs on a worker of either backend, one task at a time. Compared are values, states,
exceptions with their messages, tracebacks' last lines, and who is whose parent and child;
ids are replaced by the order in which they are met.

What differs by design and is tested elsewhere in this directory: `then` calls back by itself,
timeouts are exact and builtin TimeoutErrors too, an empty set yields nothing instead of
raising, and name, worker and queue are known without `result_extended`.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import chain, chord, group
from celery.result import ResultSet

from tests.support import celery_tasks
from tests.support.celery_worker import CeleryWorker
from tests.support.redis_server import RedisServer

TIMEOUT_S = 15.0
#: For a program that is known to hang on one of the two.
HANGS_S = 0.3
REDIS_DATABASE = 2

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "value": lambda t: t.add.delay(1, 2),
    "values of all kinds": lambda t: t.identity.delay([None, 0, "", 1.5, {"a": [True]}, "ü"]),
    "error": lambda t: t.fail.delay("one", 2, None),
    "error of its own class": lambda t: t.fail_custom.delay({"a": 1}),
    "error with an odd constructor": lambda t: t.fail_oddly.delay(),
    "error of an unknown module": lambda t: t.fail_strangely.delay("a", 1),
    "error of a local class": lambda t: t.fail_locally.delay("a", 1),
    "error with an argument that cannot be written": lambda t: t.fail_with_unserializable.delay(),
    "error with a cause": lambda t: t.fail_with_cause.delay(),
    "value that cannot be written": lambda t: t.unserializable.delay(),
    "retries": lambda t: t.retry_until.delay(2),
    "retries in vain": lambda t: t.retry_in_vain.delay(),
    "unknown task's id": lambda t: t.add.AsyncResult("nobody-has-this"),
    "expired before it ran": lambda t: t.add.apply_async((1, 2), expires=-1),
    "callback": lambda t: t.add.apply_async((1, 2), link=t.mul.s(2)),
    "callbacks": lambda t: t.add.apply_async((1, 2), link=[t.mul.s(2), t.add.s(5)]),
    "children": lambda t: t.spawn.delay(3),
    "group returned by a task": lambda t: t.spawn_group.delay(2),
    "chain": lambda t: chain(t.add.s(1, 2), t.mul.s(3), t.add.s(4))(),
    "chain that breaks": lambda t: chain(t.add.s(1, 2), t.fail.s("no"), t.add.s(4))(),
    "group": lambda t: group(t.add.s(n, n) for n in range(3))(),
    "group with errors": lambda t: group(t.identity.s(1), t.fail.s("a"), t.fail_custom.s("b"))(),
    "group in a chain": lambda t: chain(t.add.s(1, 2), group(t.add.s(1), t.mul.s(2)))(),
    "empty group": lambda _: group([]).apply_async(),
    "chord": lambda t: chord([t.add.s(1, 2), t.add.s(3, 4)], t.xsum.s())(),
    "chord of one": lambda t: chord([t.add.s(1, 2)], t.xsum.s())(),
    "chord without header": lambda t: chord([], t.xsum.s(), app=t.xsum.app)(),
    "chord of ignored tasks": lambda t: chord([t.ignored.s(1), t.ignored.s(2)], t.xsum.s())(),
    "chord with an error": lambda t: chord([t.identity.s(1), t.fail.s("no")], t.xsum.s())(),
    "chord with an error first": lambda t: chord([t.fail.s("no"), t.identity.s(1)], t.xsum.s())(),
    "chord with two errors": lambda t: chord([t.fail.s("a"), t.fail.s("b")], t.xsum.s())(),
    "chord whose body fails": lambda t: chord([t.identity.s(1), t.identity.s(2)], t.fail.s())(),
    "chord in a chain": lambda t: chain(
        t.identity.s(1), chord([t.add.s(1), t.add.s(2)], t.xsum.s()), t.mul.s(10)
    )(),
    "chord with an error in a chain": lambda t: chain(
        chord([t.identity.s(1), t.fail.s("no")], t.xsum.s()), t.mul.s(10)
    )(),
    "chord in a chord": lambda t: chord(
        [t.identity.s(1), chord([t.identity.s(2), t.identity.s(3)], t.xsum.s())], t.identity.s()
    )(),
    "chord in a chord, with an error": lambda t: chord(
        [t.identity.s(1), chord([t.fail.s("no"), t.identity.s(3)], t.xsum.s())], t.identity.s()
    )(),
    "chain in a chord": lambda t: chord(
        [chain(t.add.s(n, n), t.mul.s(2)) for n in range(2)], t.identity.s()
    )(),
    "chain in a chord, with an error": lambda t: chord(
        [chain(t.fail.s("no"), t.identity.s()), t.identity.s(2)], t.xsum.s()
    )(),
    "group in a chord": lambda t: chord(
        [t.identity.s(1), group(t.identity.s(2), t.identity.s(3))], t.identity.s()
    )(),
    "group as a chord's body": lambda t: chord(
        [t.identity.s(1), t.identity.s(2)], group(t.xsum.s(), t.identity.s())
    )(),
    "group after group": lambda t: chain(
        group(t.identity.s(1), t.identity.s(2)), group(t.xsum.s(), t.identity.s())
    )(),
    "replace": lambda t: t.replace_with.delay(chain(t.add.s(1, 2), t.mul.s(2))),
    "replace in a chord": lambda t: chord(
        [t.replace_keeping.s(1, "identity"), t.identity.s(2)], t.identity.s()
    )(),
    "replace with an error": lambda t: t.replace_with.delay(t.fail.s("no")),
    "added to its chord": lambda t: chord([t.add_one_more.s(1), t.identity.s(2)], t.xsum.s())(),
    "chunks": lambda t: t.add.chunks([(n, n) for n in range(5)], 2).group()(),
    "starmap": lambda t: t.add.starmap([(1, 2), (3, 4)]).delay(),
}

#: Programs that come to something else, and why that is meant.
DIFFERENT: dict[str, str] = {
    "chord in a chord, with an error": "a failed inner body counts in the outer chord: it fails, "
    "on Redis it never ends",
}


#: Programs in which something is never ready, on either: not waited for as long.
QUIET = {"unknown task's id", "chord of ignored tasks"}


def parameters() -> Iterator[Any]:
    """The programs to compare."""
    return (name for name in PROGRAMS if name not in DIFFERENT)


class Account:
    """What became of a program, in words that two backends can be compared by."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._labels: dict[str, str] = {}
        self._told: set[str] = set()

    def of(self, node: Any) -> Any:
        """All about a result, its parents and its children."""
        if node is None:
            return None
        label = self._label(node.id)
        if node.id in self._told:
            return label
        self._told.add(node.id)
        if isinstance(node, ResultSet):
            about = {
                "members": [self.of(member) for member in node.results],
                "counts": (node.completed_count(), node.ready(), node.successful()),
            }
        else:
            about = self._of_task(node)
        return {"id": label, "kind": type(node).__name__, "parent": self.of(node.parent), **about}

    def _of_task(self, node: Any) -> dict[str, Any]:
        try:
            node.get(timeout=self._timeout_s, propagate=False)
        except celery.exceptions.TimeoutError:
            return {"state": f"{node.state} for ever"}
        children = node.children
        return {
            "state": node.state,
            "value": self.plain(node.result),
            "raised": self._raised(node),
            "traceback": self.plain((node.traceback or "").rstrip().rpartition("\n")[2]),
            "done": node.date_done is not None,
            "children": None if children is None else [self.of(child) for child in children],
        }

    def _raised(self, node: Any) -> Any:
        try:
            node.get(timeout=self._timeout_s, follow_parents=False)
        except Exception as error:  # noqa: BLE001  whatever it is, it is what is compared
            return self.plain(error)
        return None

    def plain(self, value: Any) -> Any:
        """A value without ids, and exceptions as what they consist of."""
        if isinstance(value, str):
            return _UUID.sub(lambda found: self._label(found[0]), value)
        if isinstance(value, BaseException):
            kind = type(value)
            return (
                kind.__module__,
                kind.__name__,
                self.plain(list(value.args)),
                self.plain(str(value)),
            )
        if isinstance(value, dict):
            return {self.plain(key): self.plain(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.plain(each) for each in value]
        return value

    def _label(self, task_id: str) -> str:
        return self._labels.setdefault(task_id, f"#{len(self._labels)}")


# Where all tests run on Redis there is nothing to compare with.
pytestmark = pytest.mark.usefixtures("differs_from_redis")


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
    broker_url: str,
    backend_url: str,
) -> Iterator[tuple[Any, Any]]:
    """The tasks of an app on Redis and of one on resultd, each with a worker."""
    directory: Path = tmp_path_factory.mktemp("celery")
    urls = {"redis": redis_server.database(REDIS_DATABASE), "resultd": backend_url}
    workers, apps = [], {}
    for name, url in urls.items():
        settings = {"task_default_queue": f"same-{name}"}
        # solo: one task at a time, so that the last of a chord is the same one on both.
        worker = CeleryWorker(
            directory, broker=broker_url, backend=url, pool="solo", settings=settings, name=name
        )
        workers.append(worker.start())
        apps[name] = celery_tasks.create_app(broker_url, url, **settings)
    yield celery_tasks.named(apps["redis"]), celery_tasks.named(apps["resultd"])
    for worker in workers:
        worker.kill()  # idle: nothing is lost
    celery_tasks.close_redis_app(apps["redis"])
    apps["resultd"].close()


def accounts(pair: tuple[Any, Any], name: str, *timeouts_s: float) -> tuple[Any, Any]:
    """What a program comes to on either, each waited for as long."""
    first, second = (
        Account(timeout_s).of(PROGRAMS[name](tasks))
        for tasks, timeout_s in zip(pair, timeouts_s, strict=True)
    )
    return first, second


@pytest.mark.parametrize("name", list(parameters()))
def test_a_program_comes_to_the_same(pair: tuple[Any, Any], name: str) -> None:
    """Values, states, errors and relatives are what they are on Celery's Redis backend."""
    timeout_s = HANGS_S if name in QUIET else TIMEOUT_S
    on_redis, on_resultd = accounts(pair, name, timeout_s, timeout_s)
    assert on_resultd == on_redis


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_does_differ(pair: tuple[Any, Any], name: str) -> None:
    """An entry in the table of differences is true."""
    on_redis, on_resultd = accounts(pair, name, HANGS_S, TIMEOUT_S)  # here it ends
    assert on_resultd != on_redis, f"take it out: {DIFFERENT[name]}"
    assert "for ever" not in on_resultd["state"]


def test_which_part_failed_is_said_wherever_it_stands(pair: tuple[Any, Any]) -> None:
    """A ChordError names a part in a group at a chain's end, and on Redis only its error."""
    texts = []
    for tasks in pair:
        inner = group(tasks.identity.s(), tasks.fail.s("no"))
        result = chord([tasks.identity.s(1), chain(tasks.identity.s(2), inner)], tasks.xsum.s())()
        error = result.get(timeout=TIMEOUT_S, propagate=False)
        assert type(error) is celery.exceptions.ChordError
        texts.append(_UUID.sub("ID", str(error)))
    assert texts == [
        "Join error: ValueError(2, 'no')",
        "Dependency ID raised ValueError(2, 'no')",
    ]


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's, with a new redis-py
def test_what_failed_stays_so_until_it_succeeds(pair: tuple[Any, Any]) -> None:
    """A state of an app's own, when an id is used again, is shown on Redis."""
    states = []
    for tasks in pair:
        result, backend = tasks.fail.delay("no"), tasks.fail.app.backend
        result.get(timeout=TIMEOUT_S, propagate=False)
        backend.store_result(result.id, {}, "CALIBRATING")
        states.append(backend.get_state(result.id))
        backend.store_result(result.id, 1, "SUCCESS")
        states.append(backend.get_state(result.id))
    assert states == ["CALIBRATING", "SUCCESS", "FAILURE", "SUCCESS"]


def test_children_are_tuples(pair: tuple[Any, Any]) -> None:
    """And what JSON makes of tuples, on Redis; a result is made of either."""
    for tasks, kind in zip(pair, (list, tuple), strict=True):
        result = tasks.spawn.delay(1)
        result.get(timeout=TIMEOUT_S)
        (child,) = tasks.spawn.app.backend.get_children(result.id)
        (_, parent), members = child
        assert (type(child), type(child[0]), parent, members) == (kind, kind, None, None)
        (found,) = result.children
        assert celery.result.result_from_tuple(child, app=tasks.spawn.app) == found


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # Celery's, with a new redis-py
@pytest.mark.parametrize("size", [None, 2])
def test_on_message_is_told_the_same(pair: tuple[Any, Any], size: int | None) -> None:
    """Of a wait for one result or a set: every state that is stored, by its task's id."""
    on_redis, on_resultd = (messages(tasks.add.app, size) for tasks in pair)
    # There one is told of whatever else this process has ever asked for as well.
    on_redis = [(which, state) for which, state in on_redis if which is not None]
    assert on_resultd == on_redis
    assert len(on_redis) == 2 * (size or 1)


def messages(app: Any, size: int | None) -> list[tuple[int | None, str]]:
    """What a wait for results is told while their tasks report: which of them, which state.

    None: another task's.
    """
    results = [app.AsyncResult(str(uuid.uuid4())) for _ in range(size or 1)]
    ids = [result.id for result in results]
    places = {task_id: place for place, task_id in enumerate(ids)}
    told: list[tuple[int | None, str]] = []

    def work() -> None:
        time.sleep(0.5)  # Redis tells who has subscribed, and does not say who has
        for task_id in ids:
            app.backend.store_result(task_id, {"done": 1}, "PROGRESS")
            time.sleep(0.1)  # a state that is overwritten at once is not told for certain
            app.backend.store_result(task_id, 7, "SUCCESS")

    working = threading.Thread(target=work)
    working.start()
    waited = results[0] if size is None else app.ResultSet(results)
    waited.get(
        timeout=TIMEOUT_S,
        on_message=lambda meta: told.append((places.get(meta["task_id"]), meta["status"])),
    )
    working.join()
    return told
