"""Exceptions out of nowhere: wherever a signal's handler raises, the client goes on.

Ctrl-C and Celery's soft time limit raise in the main thread, wherever it is: in a call, as a
wait begins or ends, as a stream is opened. Other threads are not to notice, and nothing is to
be left behind.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc._channel
import pytest

from resultd import _hub, _watcher
from resultd._effects import Receive
from resultd._watcher import Wait, Watcher
from resultd.client import Client
from resultd.errors import TimeoutError as WaitTimeout
from tests.client.test_watcher import Box, IdlePort
from tests.support.interrupts import Interrupt, Interrupts, each_place
from tests.support.results import until

PLACES_MAX = 2_000
OURS = (
    "_channel _deputies _effects _hub _iterate _operations _pending _reporter _result _stream "
    "_unary _watcher client"
)
# gRPC's own Python code is among them: the main thread makes unary calls in it.
MODULES = (
    *(importlib.import_module(f"resultd.{name}") for name in OURS.split()),
    grpc._channel,
    threading,
)


def places(work: Callable[[], object]) -> Iterator[int]:
    """Do something once for each place where it may be interrupted, and was."""
    for place in range(PLACES_MAX):
        interrupts = Interrupts(place, *MODULES)
        try:
            with interrupts:
                work()
        except Interrupt:
            pass  # and is forgotten, with what its traceback holds, before anybody looks
        else:
            assert not interrupts.raised, "an interrupt was swallowed"
            return
        yield place
    raise AssertionError("the work does not end")


def by_another_thread(work: Callable[[], Any]) -> Any:
    """What another thread gets, in less time than anything here waits for."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(work()), daemon=True)
    thread.start()
    thread.join(10)
    assert answers, "another thread hangs"
    return answers[0]


@pytest.fixture
def stored(client: Client, new_id: Callable[[], str]) -> str:
    """A result that is there."""
    task_id = new_id()
    client.store_result(task_id, 1)
    return task_id


@each_place
@pytest.mark.parametrize("what", ["read", "store"])
def test_an_interrupted_call_leaves_the_connection_whole(
    client: Client, stored: str, what: str
) -> None:
    """The user's own exception comes out, and other threads go on calling."""

    def call() -> object:
        if what == "read":
            return client.AsyncResult(stored).state
        return client.store_result(stored, 1)

    count = 0
    for _ in places(call):
        count += 1
        assert by_another_thread(call)
    assert count > 10


@each_place
def test_an_interrupted_wait_leaves_the_others_waiting(
    client: Client, new_id: Callable[[], str]
) -> None:
    """For the same result, too; afterwards nobody is waited for."""
    ids = iter(new_id() for _ in range(PLACES_MAX))
    task_id = next(ids)

    def wait() -> None:
        with pytest.raises(WaitTimeout):
            client.AsyncResult(task_id).get(timeout=0.02)

    count = 0
    watcher = client._open().watcher
    for _ in places(wait):
        count += 1
        values: list[Any] = []
        other = threading.Thread(
            target=lambda awaited, into: into.append(client.AsyncResult(awaited).get(timeout=10)),
            args=(task_id, values),
        )
        other.start()
        until(lambda: watcher._hub.wanted)
        client.store_result(task_id, 42)
        other.join(10)
        assert values == [42]
        task_id = next(ids)
    assert count > 30
    until(lambda: not watcher._hub.wanted and not watcher.streaming)


@each_place
def test_an_interrupted_iteration_leaves_no_stream(
    client: Client, new_id: Callable[[], str]
) -> None:
    """Wherever it was: opened and not yet known, being read, being ended."""
    ids = [new_id() for _ in range(3)]
    client.store_results([(task_id, 1) for task_id in ids])
    group = client.group(new_id()).create(ids)
    count = 0
    for _ in places(lambda: list(group.iterate(timeout=10))):
        count += 1
        until(lambda: not client._open()._streams)
    assert count > 20
    assert by_another_thread(lambda: list(group.iterate(timeout=10))) == [1, 1, 1]


class Told:
    """An open stream, and what the server knows by what was sent on it."""

    generation = 0

    def __init__(self) -> None:
        self.mailbox = Box()
        self.ids: set[str] = set()
        self.sequence = 0

    def send(self, request: Any) -> None:
        """Take it as the server does."""
        assert request.sequence > self.sequence
        assert request.HasField("heartbeat") == (self.sequence == 0)
        self.sequence = request.sequence
        self.ids -= set(request.remove_task_ids)
        self.ids |= set(request.add_task_ids)

    def taken(self) -> None:
        """Nothing is waited for."""

    def cancel(self) -> None:
        """Nothing is open."""


@each_place
def test_what_was_begun_for_one_is_there_for_another() -> None:
    """Who waits for the same id relies on what the interrupted one has told the server."""

    def run(interrupts: Interrupts) -> bool:
        port, stream = IdlePort(), Told()
        watcher = Watcher(port, 20.0)
        kept = Wait(watcher, ["kept"], False)
        kept.join()
        gone = Wait(watcher, ["gone"], False)
        gone.join()
        operation = port.spawned[0]
        next(operation)
        assert isinstance(operation.send(stream), Receive)
        gone.close()
        interrupted = Wait(watcher, ["a", "b", "kept"], False)
        broken_off = False
        try:
            with interrupts:
                interrupted.join()
                interrupted.close()
        except Interrupt:
            broken_off = True
        other = Wait(watcher, ["b"], False)
        other.join()
        del interrupted
        operation.send([None])
        assert stream.ids == {"kept", "b"}
        assert set(watcher._hub._waiters) == {"kept", "b"}
        assert set(watcher._hub._ids) == {kept._place, other._place}
        return broken_off

    count = 0
    while run(Interrupts(count, _watcher, _hub)):
        count += 1
    assert count > 20
