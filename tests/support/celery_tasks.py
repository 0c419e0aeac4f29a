"""The tasks that Celery workers run for the tests, and the app they are on.

app = create_app(broker, backend)
tasks = named(app)
tasks.add.delay(1, 2)

Tasks and tests talk through lists in the broker's Redis: `say` appends, `hear` waits for
what was said, so nobody sleeps for luck.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import celery

#: A task that waits for a test ends by itself after this: a failed test blocks no worker.
HEAR_S = 20.0

_tasks: list[tuple[Callable[..., Any], dict[str, Any]]] = []

# Nothing may wait for ever, for a broker that is gone least of all.
_SETTINGS = {
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": 3,
    "broker_connection_timeout": 5,
    "worker_hijack_root_logger": True,
    "worker_prefetch_multiplier": 1,
    # After a child's death, how long its last words are waited for; 10 s unless told.
    "worker_lost_wait": 0.2,
}


def create_app(broker: str, backend: str, **settings: Any) -> Any:
    """An app with all the tasks; it does not become the current one."""
    app = celery.Celery("tests", broker=broker, backend=backend, set_as_current=False)
    app.conf.update(**_SETTINGS)
    app.conf.update(**settings)
    for function, options in _tasks:
        # Not shared: every app has its own.
        app.task(name=function.__name__, shared=False, **options)(function)
    app.finalize()
    return app


def named(app: Any) -> Any:
    """The tasks as attributes: `named(app).add`."""
    return SimpleNamespace(**{fun.__name__: app.tasks[fun.__name__] for fun, _ in _tasks})


def close_redis_app(app: Any) -> None:
    """Closes an app on Celery's Redis backend, before its Redis ends.

    Its results unsubscribe when they are collected. That may be later, for those in the
    traceback of a failed test, and raises where there is no Redis any more.
    """
    app.backend.remove_pending_result = lambda _: None
    app.close()


@functools.cache
def connection(url: str, pid: int) -> Any:
    """A client of the broker's Redis; one a process, a forked child makes its own."""
    import redis  # here: tests of other things are collected where it is not installed

    del pid
    # No limit of its own: `hear` waits as long as it says.
    return redis.Redis.from_url(url, decode_responses=True, socket_timeout=None)


def say(app: Any, key: str, value: str) -> None:
    """Appends a word to a list."""
    connection(app.conf.broker_url, os.getpid()).rpush(key, value)


def hear(app: Any, key: str, timeout_s: float = HEAR_S) -> str | None:
    """Waits for the next word of a list and takes it; None if none came."""
    heard = connection(app.conf.broker_url, os.getpid()).blpop([key], timeout=timeout_s)
    return None if heard is None else str(heard[1])


def _task(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        _tasks.append((function, options))
        return function

    return keep


# Values.


@_task()
def add(x: Any, y: Any) -> Any:
    """x + y."""
    return x + y


@_task()
def mul(x: Any, y: Any) -> Any:
    """x × y."""
    return x * y


@_task()
def xsum(numbers: Iterable[Any]) -> Any:
    """The sum of numbers, of lists of them too."""
    return sum(xsum(number) if isinstance(number, list) else number for number in numbers)


@_task()
def identity(value: Any) -> Any:
    """The value itself."""
    return value


#: What each serializer takes beyond what JSON does, and gives back as it was.
PECULIAR: dict[str, Any] = {
    "json": uuid.UUID(int=7),
    "msgpack": b"\x00\xff",
    "pickle": {decimal.Decimal("1.5"), (1, 2)},
    "yaml": datetime.date(2026, 1, 2),
}


@_task()
def peculiar(serializer: str) -> Any:
    """A value that not every serializer takes."""
    return PECULIAR[serializer]


@_task()
def unserializable() -> Any:
    """A value that no serializer takes."""
    return object


@_task()
def collect(*args: Any, **kwargs: Any) -> Any:
    """All it is called with."""
    return [list(args), kwargs]


@_task(ignore_result=True)
def ignored(value: Any) -> Any:
    """A value that nobody is told."""
    return value


@_task(bind=True, ignore_result=True)
def ignored_word(self: Any, key: str, value: str) -> None:
    """A word, and no result."""
    say(self.app, key, value)


@_task(bind=True)
def twice(self: Any, x: Any) -> Any:
    """The value twice over, and which task made it."""
    return [x, x, self.request.id]


# Errors.


class CustomError(Exception):
    """An error whose constructor takes what `args` holds."""


class OddError(Exception):
    """An error whose constructor takes something else than `args` holds."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


@_task()
def fail(*args: Any) -> None:
    """A builtin error."""
    raise ValueError(*args)


@_task()
def fail_custom(*args: Any) -> None:
    """An error of a class that both sides have."""
    raise CustomError(*args)


@_task()
def fail_oddly() -> None:
    """An error that cannot be made from its `args`."""
    raise OddError(7, "odd")


@_task()
def fail_strangely(*args: Any) -> None:
    """An error of a module that the other side has not loaded."""
    from tests.support.celery_stranger import StrangeError  # here: only where this runs

    raise StrangeError(*args)


@_task()
def fail_locally(*args: Any) -> None:
    """An error of a class that cannot be pickled, so that Celery wraps it."""

    class LocalError(Exception):
        """A class that is found nowhere."""

    raise LocalError(*args)


@_task()
def fail_with_unserializable() -> None:
    """An error that holds something no serializer takes."""
    raise ValueError("holds", object)


@_task()
def fail_with_cause() -> None:
    """An error with a cause."""
    try:
        raise KeyError("the cause")
    except KeyError as cause:
        raise RuntimeError("the effect") from cause


@_task(bind=True)
def fail_when_told(self: Any, key: str) -> None:
    """Says `<key>:begun`, waits for a word in `<key>`, fails."""
    say(self.app, f"{key}:begun", self.request.id)
    hear(self.app, key)
    raise CustomError("as told")


@_task(bind=True, max_retries=5)
def retry_until(self: Any, times: int, countdown_s: float = 0.01) -> int:
    """Retries so often, then tells how often it did."""
    if self.request.retries < times:
        raise self.retry(countdown=countdown_s, exc=RuntimeError("not yet"))
    return int(self.request.retries)


@_task(bind=True, max_retries=1)
def retry_in_vain(self: Any) -> None:
    """Fails with the error of its last try."""
    raise self.retry(countdown=0.01, exc=CustomError("every time"))


@_task(bind=True, autoretry_for=(CustomError,), retry_backoff=False, default_retry_delay=0.01)
def retry_by_itself(self: Any, times: int) -> int:
    """Is retried for its kind of error."""
    if self.request.retries < times:
        raise CustomError("again")
    return int(self.request.retries)


@_task(bind=True)
def retry_later(self: Any) -> None:
    """Retries far from now: nobody waits for that."""
    raise self.retry(countdown=3600, exc=RuntimeError("later"))


@_task(bind=True)
def ignore_after_state(self: Any) -> None:
    """Says a state, and leaves it at that."""
    self.update_state(state="LEFT", meta={"by": "itself"})
    raise celery.exceptions.Ignore


# States.


@_task(bind=True, track_started=True)
def wait_for(self: Any, key: str, value: Any = None) -> Any:
    """Says `<key>:begun`, waits for a word in `<key>`, returns the value."""
    say(self.app, f"{key}:begun", self.request.id)
    if hear(self.app, key) is None:
        raise TimeoutError("nobody spoke")
    return value


@_task(bind=True)
def wait_untracked(self: Any, key: str) -> None:
    """The same, and STARTED only where every task is."""
    wait_for(self, key)


@_task(bind=True)
def progress(self: Any, key: str, steps: int) -> str:
    """Says PROGRESS for every word it hears."""
    say(self.app, f"{key}:begun", self.request.id)
    for step in range(1, steps + 1):
        hear(self.app, key)
        self.update_state(state="PROGRESS", meta={"current": step, "total": steps})
        say(self.app, f"{key}:step", str(step))
    hear(self.app, key)
    return "done"


@_task(bind=True)
def custom_state(self: Any, key: str, state: str, meta: Any) -> str:
    """A state of its own until it hears a word."""
    self.update_state(state=state, meta=meta)
    say(self.app, f"{key}:begun", self.request.id)
    hear(self.app, key)
    return "done"


@_task()
def sleep(seconds: float) -> str:
    """Time that passes."""
    time.sleep(seconds)
    return "slept"


@_task(bind=True)
def sleep_softly(self: Any, key: str, seconds: float) -> str:
    """Notices its soft time limit and ends well."""
    say(self.app, f"{key}:begun", self.request.id)
    try:
        time.sleep(seconds)
    except celery.exceptions.SoftTimeLimitExceeded:
        return "cut short"
    return "slept"


@_task(bind=True, acks_late=True, reject_on_worker_lost=True)
def die_once(self: Any, key: str) -> str:
    """Kills its own process the first time, and is delivered again."""
    if connection(self.app.conf.broker_url, os.getpid()).incr(key) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "second time"


@_task()
def die() -> None:
    """Kills its own process; not delivered again."""
    os.kill(os.getpid(), signal.SIGKILL)


# Canvas from within.


@_task(bind=True)
def replace_with(self: Any, *signatures: Any) -> Any:
    """Is replaced by a signature, or by a group of several; what came before is dropped."""
    made = [self.app.signature(signature) for signature in signatures if signature is not None]
    return self.replace(made[0] if len(made) == 1 else celery.group(made, app=self.app))


@_task(bind=True)
def replace_keeping(self: Any, value: Any, name: str) -> Any:
    """Is replaced by another task of the same value."""
    return self.replace(self.app.tasks[name].s(value))


@_task(bind=True)
def add_one_more(self: Any, value: Any) -> Any:
    """Adds a task to the chord it is in."""
    self.add_to_chord(self.app.tasks["identity"].s(value * 10))
    return value


@_task(bind=True)
def spawn(self: Any, count: int) -> int:
    """Calls so many tasks: they become its children."""
    for number in range(count):
        self.app.tasks["add"].delay(number, number)
    return count


@_task(bind=True)
def spawn_group(self: Any, count: int) -> Any:
    """Calls a group and returns it: the result is a result."""
    add_task = self.app.tasks["add"]
    return celery.group(add_task.s(number, number) for number in range(count))()


@_task(bind=True)
def who(self: Any) -> dict[str, Any]:
    """What a task knows of where it is."""
    fields = ("id", "parent_id", "root_id", "group", "group_index", "retries")
    return {"pid": os.getpid(), **{field: getattr(self.request, field) for field in fields}}


@_task(bind=True)
def who_after(self: Any, value: Any) -> dict[str, Any]:
    """The same, after another task."""
    return {"value": value, **who(self)}


@_task(bind=True)
def wait_within(self: Any, value: Any) -> Any:
    """Waits for another task, which Celery forbids."""
    return self.app.tasks["identity"].delay(value).get(timeout=5)


@_task(bind=True)
def wait_within_all_the_same(self: Any, value: Any) -> Any:
    """Waits for another task although it should not."""
    with celery.result.allow_join_result():
        return self.app.tasks["identity"].delay(value).get(timeout=5)


# Callbacks.


@_task(bind=True)
def told(self: Any, value: Any, key: str) -> None:
    """Says the value it is called with."""
    say(self.app, key, str(value))


@_task()
def told_error(request: Any, error: Any, traceback: Any, key: str) -> None:
    """Says which task failed and of what: an errback of the new kind, which is not bound."""
    say(celery.current_app, key, f"{request.id} {type(error).__name__}: {error}")


@_task(bind=True)
def told_id(self: Any, task_id: str) -> None:
    """Says that a task failed: an errback of the old kind, which takes only an id."""
    say(self.app, f"failed:{task_id}", task_id)
