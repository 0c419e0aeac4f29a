"""A process that forks while it uses the Celery backend in one of several ways.

    python -m tests.support.celery_forker URL STATE SIDE COUNT

STATE is what the parent has done when it forks, SIDE says who goes on afterwards: both store
and get through Celery's API. For each fork there is a parent of its own, itself the child of
this process, which uses nothing: so "never used" is true every time. `in-flight` is another
matter: one parent that forks COUNT times while its other threads call without a pause.

Prints one JSON object.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import celery
import celery.exceptions

from resultd import _fork

#: In the environment: a fault planted, the child does not make anew what its threads had.
UNGUARDED = "TESTS_UNGUARDED"
UNGUARDED_SIDE_S = 3

STATES = ("never-used", "first-use", "channel", "stream", "in-flight")
SIDES = ("parent", "child", "both")
# Seconds that one side has; it needs some 20 ms. One that hangs needs for ever, and dies of
# SIGALRM.
SIDE_S = 20
GET_S = 10.0
# After so many nobody wants to wait for the rest.
HANGS_MAX = 3
THREADS = 3
# About what the first call of a process takes, with what it opens.
FIRST_CALL_S = 0.02


def main() -> None:
    """Does what the command line says."""
    url, state, side, count = sys.argv[1:]
    if UNGUARDED in os.environ:
        _take_the_guard_away()
    app = celery.Celery("forks", broker="memory://", backend=url)
    assert app.backend  # made before any fork, as in a worker's main process
    # kombu's cached properties hold a lock while they are computed, which a child that is
    # forked meanwhile never sees free: not what is tried here.
    assert app.now()
    codes: list[int] = []
    if state == "in-flight":
        codes = in_flight(app, int(count))
    while len(codes) < int(count) and codes.count(-signal.SIGALRM) < HANGS_MAX:
        codes.append(in_child(lambda: round_of(app, state, side)))
    summary = {
        "forks": len(codes),
        "hangs": codes.count(-signal.SIGALRM),
        "failures": sum(code not in (0, -signal.SIGALRM) for code in codes),
        **_more,
    }
    print(json.dumps(summary))


_more: dict[str, Any] = {}


def _take_the_guard_away() -> None:
    global SIDE_S
    SIDE_S = UNGUARDED_SIDE_S
    os.register_at_fork(after_in_child=lambda: setattr(_fork, "gate", _taken()))


def _taken() -> threading.Lock:
    """A lock that nobody gives back: its thread is not here."""
    lock = threading.Lock()
    lock.acquire()
    return lock


def in_child(work: Callable[[], object]) -> int:
    """Forks, lets the child do something, gives its exit code; a signal's number below 0."""
    return exit_code(forked(work))


def forked(work: Callable[[], object]) -> int:
    """Forks, and lets the child do something; its pid."""
    pid = os.fork()
    if pid == 0:
        faulthandler.register(signal.SIGALRM, chain=True)  # shows where it hung
        signal.alarm(SIDE_S)
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is shown)
            print(f"{os.getpid()}: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    """Waits for a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def round_of(app: Any, state: str, side: str) -> None:
    """One parent, one fork."""
    with STATE[state](app):
        pid = forked(lambda: use(app) if side != "parent" else None)
        if side != "child":
            use(app)
        code = exit_code(pid)
        if code:
            os._exit(1) if code > 0 else os.kill(os.getpid(), -code)


@contextlib.contextmanager
def never_used(app: Any) -> Iterator[None]:
    """The backend exists, as in a worker's main process, and has opened nothing."""
    assert app.backend.client._endpoint is None
    yield


@contextlib.contextmanager
def with_channel(app: Any) -> Iterator[None]:
    """A call was made, its channel is open, no stream is."""
    task_id = new_id()
    app.backend.store_result(task_id, 1, "SUCCESS")
    assert app.AsyncResult(task_id).state == "SUCCESS"
    assert not app.backend.client.watcher().streaming
    yield


@contextlib.contextmanager
def with_stream(app: Any) -> Iterator[None]:
    """A thread is inside get(); it gets its value after all."""
    task_id, values = new_id(), []
    waiter = threading.Thread(
        target=lambda: values.append(app.AsyncResult(task_id).get(timeout=GET_S)), daemon=True
    )
    waiter.start()
    until(lambda: app.backend.client.watcher().streaming)
    yield
    app.backend.store_result(task_id, 42, "SUCCESS")
    waiter.join(GET_S)
    assert values == [42], values


@contextlib.contextmanager
def at_first_use(app: Any) -> Iterator[None]:
    """Another thread is somewhere in the process's first call: it opens the channel."""
    task_id = new_id()
    caller = threading.Thread(
        target=lambda: app.backend.store_result(task_id, 1, "SUCCESS"), daemon=True
    )
    caller.start()
    end = time.perf_counter() + random.uniform(0, FIRST_CALL_S)
    while time.perf_counter() < end:
        time.sleep(0)
    yield
    caller.join(GET_S)
    assert app.AsyncResult(task_id).state == "SUCCESS"


STATE = {
    "never-used": never_used,
    "first-use": at_first_use,
    "channel": with_channel,
    "stream": with_stream,
}


def use(app: Any) -> None:
    """Stores and gets, before and after the value is there."""
    early, late = new_id(), new_id()
    app.backend.store_result(early, "early", "SUCCESS")
    assert app.AsyncResult(early).get(timeout=GET_S) == "early"
    values: list[Any] = []
    waiter = threading.Thread(
        target=lambda: values.append(app.AsyncResult(late).get(timeout=GET_S)), daemon=True
    )
    waiter.start()
    app.backend.store_result(late, "late", "SUCCESS")
    waiter.join(GET_S)
    assert values == ["late"], values


def in_flight(app: Any, count: int) -> list[int]:
    """Forks while other threads are inside calls; each call has to succeed all the same."""
    endpoint = app.backend.client._open()
    stop = threading.Event()
    errors: list[str] = []
    stored: list[str] = []
    seen: list[int] = []
    app.backend.store_result(new_id(), 1, "SUCCESS")
    # Registered after the client's own hook, so it runs before it: what it sees is in flight.
    os.register_at_fork(before=lambda: seen.append(len(endpoint._in_flight)))
    parent = os.getpid()

    def work() -> None:
        while not stop.is_set():
            task_id = new_id()
            try:
                app.backend.store_result(task_id, task_id, "SUCCESS")
                if app.AsyncResult(task_id).state != "SUCCESS":
                    raise AssertionError("stored, and not there")
                stored.append(task_id)
            except Exception as error:  # noqa: BLE001 (whatever it is, it is shown)
                errors.append(repr(error))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(count):
        signal.alarm(SIDE_S)  # for the parent; the child sets its own
        until(lambda: bool(endpoint._in_flight))
        codes.append(in_child(lambda: use(app)))
    signal.alarm(0)
    stop.set()
    for thread in threads:
        thread.join(GET_S)
    assert os.getpid() == parent
    lost = sum(app.AsyncResult(task_id).get(timeout=GET_S) != task_id for task_id in stored)
    _more.update(
        calls=len(stored) * 2,
        forks_with_calls_in_flight=sum(number > 0 for number in seen[:count]),
        errors=errors[:5],
        lost=lost + sum(thread.is_alive() for thread in threads),
    )
    return codes


def new_id() -> str:
    """An id of its own, in every process."""
    return str(uuid.uuid4())


def until(condition: Callable[[], bool]) -> None:
    """Waits for something that gives no sign of its own."""
    end = time.monotonic() + GET_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("not so in time")
        time.sleep(0.0002)


if __name__ == "__main__":
    main()
