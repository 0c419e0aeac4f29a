"""The watcher: the hub with its lock and its background operation."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from resultd import errors
from resultd._effects import Op
from resultd._watcher import Callback, Owner, Wait, Watcher
from resultd.client import Client
from resultd.v1 import state_pb2, task_pb2


class Box(list[Any]):
    """A mailbox that is a list."""

    put = list.append


class IdlePort:
    """A shell that runs nothing by itself."""

    def __init__(self) -> None:
        self.spawned: list[Op[None]] = []

    def new_mailbox(self) -> Box:
        """Return a list."""
        return Box()

    def spawn(self, op: Op[None]) -> None:
        """Keep the operation."""
        self.spawned.append(op)

    def forbid_waiting(self) -> None:
        """Allow it."""


@pytest.fixture
def port() -> IdlePort:
    """A shell that runs nothing."""
    return IdlePort()


@pytest.fixture
def watcher(port: IdlePort) -> Watcher:
    """A watcher on it."""
    return Watcher(port, 20.0)


DONE = task_pb2.TaskMeta(task_id="a", state=state_pb2.STATE_SUCCESS, terminal=True)


def test_the_first_wait_starts_the_operation(port: IdlePort, watcher: Watcher) -> None:
    """The next ones use it."""
    waits = [Wait(watcher, ["a"], False), Wait(watcher, ["b"], False)]
    assert len(port.spawned) == 1
    for wait in waits:
        wait.close()
    assert not watcher._hub.wanted


def test_leaving_never_waits_for_the_lock(watcher: Watcher) -> None:
    """As a finaliser may run in the very thread that holds it; the work is done afterwards."""
    wait = Wait(watcher, ["a"], False)
    with watcher._locked():
        wait.close()  # would hang here for ever if it waited
        assert watcher._hub.wanted
    assert not watcher._hub.wanted


def test_leaving_while_another_thread_holds_the_lock_is_not_lost(watcher: Watcher) -> None:
    """Its holder does it when it lets go."""
    wait = Wait(watcher, ["a"], False)
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with watcher._locked():
            held.set()
            go.wait(5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(5)
    wait.close()
    go.set()
    thread.join(5)
    assert not watcher._hub.wanted


def test_a_suspended_watcher_starts_nothing_until_it_resumes(
    port: IdlePort, watcher: Watcher
) -> None:
    """As over a fork."""
    watcher.suspend()
    wait = Wait(watcher, ["a"], False)
    assert port.spawned == []
    watcher.resume()
    assert len(port.spawned) == 1
    wait.close()


def test_in_a_child_a_wait_joins_again_by_itself(port: IdlePort, watcher: Watcher) -> None:
    """And what the parent's other threads waited for is forgotten."""
    wait, other = Wait(watcher, ["a", "b"], False), Wait(watcher, ["c"], False)
    wait.deliver([DONE])
    watcher.forget_all()
    assert not watcher._hub.wanted
    wait.join()
    assert set(watcher._hub._waiters) == {"b"}
    assert len(port.spawned) == 2
    other.close()
    wait.close()


def test_callbacks_are_called_for_each_record_and_for_refusals(watcher: Watcher) -> None:
    """By whoever delivers."""
    heard: list[Any] = []
    callback = Callback(watcher, ["a"], heard.append, heard.append)
    callback.deliver([DONE])
    error = errors.make("PERMISSION_DENIED", "no")
    callback.fail(error)
    callback.close()
    assert heard == [DONE, error]


def test_closing_tells_everybody(watcher: Watcher) -> None:
    """With an error in their mailbox."""
    wait = Wait(watcher, ["a"], False)
    error = errors.UnavailableError("closed")
    watcher.fail_all(error)
    assert list(wait.mailbox) == [error]  # type: ignore[call-overload]  # a list here


def test_closing_one_of_several_tells_its_waits(watcher: Watcher) -> None:
    """The others', and nobody's, go on; one that begins too late is refused."""
    mine, theirs = Owner(), Owner()
    waits = [Wait(watcher, ["a"], False, owner) for owner in (mine, theirs, None)]
    told: list[errors.ResultdError] = []
    Callback(watcher, ["b"], lambda _: None, told.append, mine)
    mine.closed = True
    error = errors.ClientClosedError()
    watcher.fail_of(mine, error)
    assert [list(wait.mailbox) for wait in waits] == [[error], [], []]  # type: ignore[call-overload]  # a list here
    assert told == [error]
    assert watcher._hub.waiters == waits[1:]
    with pytest.raises(errors.ClientClosedError):
        Wait(watcher, ["c"], False, mine)
    assert set(watcher._hub._waiters) == {"a"}


def test_a_callback_that_wants_to_exit_takes_nobody_along(
    client: Client, new_id: Callable[[], str]
) -> None:
    """The thread that brings results is everybody's: SystemExit there goes to the log."""
    first, second = client.AsyncResult(new_id()), client.AsyncResult(new_id())
    told = threading.Event()

    def leave(_: object) -> None:
        told.set()
        sys.exit("bye")

    first.then(leave)
    client.store_result(first.id, 1)
    assert told.wait(5)
    threading.Timer(0.2, client.store_result, (second.id, 2)).start()
    assert second.get(timeout=5) == 2


def test_one_that_exits_when_told_of_an_error_takes_nobody_along(watcher: Watcher) -> None:
    """The others are told of the refusal too."""
    callback = Callback(watcher, ["a"], lambda _: None, lambda _: sys.exit("bye"))
    wait = Wait(watcher, ["b"], False)
    error = errors.UnavailableError("closed")
    watcher.fail_all(error)
    assert list(wait.mailbox) == [error]  # type: ignore[call-overload]  # a list here
    callback.close()


def test_an_operation_that_breaks_down_says_so_and_can_start_again(
    port: IdlePort, watcher: Watcher
) -> None:
    """Whoever waits gets the error instead of waiting for ever; the next wait starts it anew."""
    wait = Wait(watcher, ["a"], False)
    operation = port.spawned.pop()
    next(operation)
    with pytest.raises(OSError, match="no such certificate"):
        operation.throw(OSError("no such certificate"))
    assert isinstance(wait.mailbox, Box)
    assert [type(item) for item in wait.mailbox] == [errors.UnavailableError]
    Wait(watcher, ["b"], False)
    assert len(port.spawned) == 1
