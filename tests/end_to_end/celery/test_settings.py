"""Workers that are configured otherwise: serializers, compression, extended results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from kombu.exceptions import ContentDisallowed, DecodeError

from tests.support import celery_tasks
from tests.support.celery_tasks import PECULIAR, CustomError
from tests.support.celery_worker import CeleryWorker

TIMEOUT_S = 20.0
EXTENDED = {"result_extended": True, "task_track_started": True}
VALUE = {"list": [1, None, True, 0.5], "text": "größer"}


class Place:
    """A worker with settings of its own on a queue of its own, and an app with the same."""

    def __init__(self, worker: CeleryWorker, app: Any) -> None:
        self.worker = worker
        self.app = app
        self.tasks = celery_tasks.named(app)


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, broker_url: str, backend_url: str, on_resultd: bool
) -> Iterator[Callable[..., Place]]:
    """Starts a worker with settings, the first time it is asked for."""
    made: dict[str, Place] = {}
    directory: Path = tmp_path_factory.mktemp("celery")

    def place(name: str, **settings: Any) -> Place:
        if name not in made:
            settings = {"task_default_queue": name, **settings}
            # solo: one process, which is up and down sooner.
            worker = CeleryWorker(
                directory,
                broker=broker_url,
                backend=backend_url,
                pool="solo",
                settings=settings,
                name=name,
                environment={"C_FORCE_ROOT": "1"},  # else no pickles where root runs the tests
            )
            made[name] = Place(
                worker.start(), celery_tasks.create_app(broker_url, backend_url, **settings)
            )
        return made[name]

    yield place
    for each in made.values():
        each.worker.kill()  # idle: nothing is lost, and a second each is saved
        if on_resultd:
            each.app.close()
        else:
            celery_tasks.close_redis_app(each.app)


def with_serializer(places: Callable[..., Place], name: str) -> Place:
    """A worker that writes results with a serializer; tasks are JSON, which canvas is."""
    accepted = sorted({"json", name})
    return places(name, result_serializer=name, result_accept_content=accepted)


@pytest.fixture(params=PECULIAR)
def written(
    request: pytest.FixtureRequest, places: Callable[..., Place], worker: CeleryWorker, app: Any
) -> tuple[str, Place]:
    """A serializer, and a worker that writes results with it."""
    name: str = request.param
    return name, Place(worker, app) if name == "json" else with_serializer(places, name)


def test_values_by_serializer(written: tuple[str, Place]) -> None:
    """Each serializer brings back what it can write, also what others could not."""
    name, place = written
    assert place.tasks.peculiar.delay(name).get(timeout=TIMEOUT_S) == PECULIAR[name]
    for value in (VALUE, None, "x" * 100_000):
        assert place.tasks.identity.delay(value).get(timeout=TIMEOUT_S) == value


def test_errors_by_serializer(written: tuple[str, Place]) -> None:
    """Each serializer brings back an exception's class and arguments."""
    name, place = written
    error = place.tasks.fail_custom.delay("a", [1]).get(timeout=TIMEOUT_S, propagate=False)
    assert (type(error), error.args) == (CustomError, ("a", [1])), name


def test_canvas_by_serializer(written: tuple[str, Place]) -> None:
    """Chords, their errors, saved groups and states work with each serializer."""
    tasks = written[1].tasks
    result = chord([tasks.identity.s(VALUE), tasks.ignored.s(1)], tasks.identity.s())()
    assert result.get(timeout=TIMEOUT_S) == [VALUE, 1]
    broken = chord([tasks.fail.s("no"), tasks.identity.s(1)], tasks.identity.s())()
    assert type(broken.get(timeout=TIMEOUT_S, propagate=False)) is ChordError
    last = chain(tasks.add.s(1, 1), group(tasks.add.s(1), tasks.add.s(2)))()
    assert last.get(timeout=TIMEOUT_S) == [3, 4]
    assert tasks.spawn.delay(1).get(timeout=TIMEOUT_S) == 1


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # on Redis
def test_groups_are_saved_by_serializer(written: tuple[str, Place]) -> None:
    """A saved group is restored with each serializer."""
    _, place = written
    result = group(place.tasks.identity.s(n) for n in range(2))().save()
    found = place.app.GroupResult.restore(result.id, app=place.app)
    assert found == result
    assert found.get(timeout=TIMEOUT_S) == [0, 1]


@pytest.mark.usefixtures("differs_from_redis")
def test_what_is_not_accepted_is_not_read(app: Any, places: Callable[..., Place]) -> None:
    """An app that accepts only JSON refuses a pickle, whoever wrote it."""
    result = with_serializer(places, "pickle").tasks.identity.delay(VALUE)
    assert result.get(timeout=TIMEOUT_S) == VALUE
    with pytest.raises((ContentDisallowed, DecodeError)):
        app.AsyncResult(result.id).get(timeout=TIMEOUT_S)


def test_results_can_be_compressed(places: Callable[..., Place], app: Any) -> None:
    """A compressed result is read by whoever asks, whatever they are configured with."""
    tasks = places("compressed", result_compression="bzip2").tasks
    value = ["the same again"] * 10_000
    result = tasks.identity.delay(value)
    assert result.get(timeout=TIMEOUT_S) == value
    assert app.AsyncResult(result.id).get(timeout=TIMEOUT_S) == value
    assert type(tasks.fail.delay("no").get(timeout=TIMEOUT_S, propagate=False)) is ValueError
    assert chord([tasks.identity.s(value)] * 2, tasks.identity.s())().get(timeout=TIMEOUT_S) == [
        value,
        value,
    ]


def test_extended_results_tell_all(places: Callable[..., Place]) -> None:
    """With `result_extended` the call is told with the result."""
    tasks = places("extended", **EXTENDED).tasks
    result = tasks.collect.delay(1, [2], key="value")
    result.get(timeout=TIMEOUT_S)
    assert (result.name, result.args, result.kwargs) == ("collect", [1, [2]], {"key": "value"})
    assert (result.retries, result.queue, result.worker) == (0, "extended", "extended@localhost")
    retried = tasks.retry_until.delay(2)
    retried.get(timeout=TIMEOUT_S)
    assert retried.retries == 2


def test_every_task_may_be_tracked(
    places: Callable[..., Place], hear: Callable[[str], str], say: Callable[[str], None], key: str
) -> None:
    """With `task_track_started` a task says STARTED without being asked to."""
    tasks = places("extended", **EXTENDED).tasks
    result = tasks.wait_untracked.delay(key)
    hear(f"{key}:begun")
    assert (result.state, result.info["hostname"]) == ("STARTED", "extended@localhost")
    say(key)
    assert result.get(timeout=TIMEOUT_S) is None


def test_results_expire(places: Callable[..., Place], until: Callable[..., None]) -> None:
    """A result is gone after `result_expires`, as if it had never been."""
    place = places("expiring", result_expires=1)
    result = place.tasks.identity.delay(1)
    assert result.get(timeout=TIMEOUT_S) == 1
    until(lambda: place.app.AsyncResult(result.id).state == "PENDING")
    assert not place.app.AsyncResult(result.id).exists()


def test_what_has_expired_may_come_again(
    places: Callable[..., Place], until: Callable[..., None]
) -> None:
    """A task that runs again under its id has a result again, though it comes to the same."""
    place = places("expiring", result_expires=1)

    for _ in range(2):
        result = place.tasks.identity.apply_async((None,), task_id="nightly")
        assert result.get(timeout=TIMEOUT_S) is None
        until(lambda: place.app.AsyncResult("nightly").state == "PENDING")


def test_what_was_forgotten_may_come_again(app: Any, tasks: Any) -> None:
    """Values, errors, and a whole chord: a job that has the same ids each night."""
    ends = []
    for _ in range(2):
        value = tasks.identity.apply_async((None,), task_id="same-value")
        error = tasks.fail.apply_async(("no",), task_id="same-error")
        parts = {"same-part": tasks.identity.s(None), "same-ignored": tasks.ignored.s(1)}
        header = [part.set(task_id=task_id) for task_id, part in parts.items()]
        body = tasks.identity.s().set(task_id="same-body")
        whole = chord(header, body, app=app).apply_async(task_id="same-chord")
        assert value.get(timeout=TIMEOUT_S) is None
        assert type(error.get(timeout=TIMEOUT_S, propagate=False)) is ValueError
        assert whole.get(timeout=TIMEOUT_S) == [None, 1]
        ends.append(value.date_done)
        for result in (value, error, whole, whole.parent[0]):
            result.forget()
    assert ends[0] < ends[1]
