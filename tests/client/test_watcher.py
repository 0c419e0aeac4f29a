"""The watcher: the hub with its lock and its background operation."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from resultd import errors
from resultd._effects import Op, Open, Receive
from resultd._watcher import Callback, Owner, Wait, Watcher
from resultd.client import Client
from resultd.v1 import state_pb2, task_pb2
from tests.support.results import later, until


class Box(list[Any]):
    """A mailbox that is a list."""

    put = list.append


class IdlePort:
    """A shell that runs nothing by itself."""

    def __init__(self) -> None:
        self.spawned: list[Op[None]] = []
        self.failed: list[Callable[[BaseException], None]] = []

    def new_mailbox(self) -> Box:
        """Return a list."""
        return Box()

    def spawn(self, op: Op[None], failed: Callable[[BaseException], None]) -> None:
        """Keep the operation."""
        self.spawned.append(op)
        self.failed.append(failed)

    def forbid_waiting(self) -> None:
        """Allow it."""


def wait_for(watcher: Watcher, *ids: str) -> Wait:
    """A wait that has begun."""
    wait = Wait(watcher, ids, False)
    wait.join()
    return wait


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
    waits = [wait_for(watcher, "a"), wait_for(watcher, "b")]
    assert len(port.spawned) == 1
    operation = port.spawned[0]
    next(operation)
    for wait in waits:
        wait.close()
    with pytest.raises(StopIteration):
        operation.throw(errors.UnavailableError("cut"))
    assert not watcher._hub.wanted


def test_leaving_waits_for_no_lock(watcher: Watcher) -> None:
    """As a finaliser may run in the very thread that holds it; the next who takes it does it."""
    wait = wait_for(watcher, "a")
    with watcher._lock:
        wait.close()  # would hang here for ever if it waited
        assert watcher._hub.wanted
    wait_for(watcher, "b").close()
    assert list(watcher._hub._waiters) == ["b"]


def test_leaving_wakes_the_operation_which_lets_go(
    client: Client, new_id: Callable[[], str]
) -> None:
    """The stream is closed although nobody calls again."""
    with pytest.raises(errors.TimeoutError):
        client.AsyncResult(new_id()).get(timeout=0.3)
    watcher = client._open().watcher
    until(lambda: not watcher._hub.wanted and not watcher.streaming)


def test_leaving_does_not_cut_the_pause_before_the_next_try(
    port: IdlePort, watcher: Watcher
) -> None:
    """Else threads that come and go would try as often while there is no server."""
    waits = [wait_for(watcher, "a"), wait_for(watcher, "b")]
    operation = port.spawned[0]
    assert isinstance(next(operation), Open)
    watcher._hub._breaks = 60
    pause = operation.throw(errors.UnavailableError("cut"))
    while not isinstance(pause, Receive):
        pause = operation.throw(errors.UnavailableError("cut"))  # chance gave no pause at all
    waits[0].close()
    assert isinstance(operation.send([None]), Receive)
    assert list(watcher._hub._waiters) == ["b"]
    waits[1].close()
    with pytest.raises(StopIteration):
        operation.send([None])


def test_a_wait_that_nobody_holds_is_over(watcher: Watcher) -> None:
    """Whoever would have closed it was interrupted."""
    wait = wait_for(watcher, "a")
    del wait
    other = wait_for(watcher, "b")
    assert list(watcher._hub._waiters) == ["b"]
    other.close()


def test_a_wait_that_was_told_of_all_has_nothing_to_leave(watcher: Watcher) -> None:
    """Nobody is woken for it."""
    wait = wait_for(watcher, "a")
    wait._place.deliver([DONE])
    wait.close()
    assert not watcher.leaving


def test_of_two_operations_one_runs(port: IdlePort, watcher: Watcher) -> None:
    """Asked for twice, where who asked first was interrupted: the second ends at once."""
    wait = wait_for(watcher, "a")
    watcher._asked = None
    other = wait_for(watcher, "b")
    first, second = port.spawned
    assert isinstance(next(second), Open)
    with pytest.raises(StopIteration):
        next(first)
    first_again = wait_for(watcher, "c")
    assert len(port.spawned) == 2
    for each in (wait, other, first_again):
        each.close()


def test_a_suspended_watcher_starts_nothing_until_it_resumes(
    port: IdlePort, watcher: Watcher
) -> None:
    """As over a fork."""
    watcher.suspend()
    wait = wait_for(watcher, "a")
    assert port.spawned == []
    watcher.resume()
    assert len(port.spawned) == 1
    wait.close()


def test_in_a_child_a_wait_joins_again_by_itself(port: IdlePort, watcher: Watcher) -> None:
    """And what the parent's other threads waited for is forgotten."""
    wait, other = wait_for(watcher, "a", "b"), wait_for(watcher, "c")
    wait._place.deliver([DONE])
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


def items(wait: Wait) -> list[Any]:
    """What a wait was told."""
    assert isinstance(wait.mailbox, Box)
    return wait.mailbox


def test_closing_tells_everybody(watcher: Watcher) -> None:
    """With an error in their mailbox, each its own: tracebacks grow where they are raised."""
    waits = [wait_for(watcher, "a"), wait_for(watcher, "a")]
    error = errors.UnavailableError("closed")
    error.__cause__ = OSError("why")
    watcher.fail_all(error)
    (one,), (other,) = map(items, waits)
    assert str(one) == str(other) == "closed"
    assert one.__cause__ is other.__cause__ is error.__cause__
    assert len({id(error), id(one), id(other)}) == 3


def test_who_is_told_of_a_refusal_may_wait_again_at_once(port: IdlePort, watcher: Watcher) -> None:
    """The lock was given back before; a new operation serves the new wait."""
    again: list[Wait] = []
    callback = Callback(
        watcher, ["a"], lambda _: None, lambda _: again.append(wait_for(watcher, "b"))
    )
    first = port.spawned[0]
    next(first)
    with pytest.raises(StopIteration):
        first.throw(errors.make("PERMISSION_DENIED", "no"))
    assert list(watcher._hub._waiters) == ["b"]
    assert isinstance(next(port.spawned[1]), Open)
    callback.close()


def test_closing_one_of_several_tells_its_waits(watcher: Watcher) -> None:
    """The others', and nobody's, go on; one that begins too late is refused."""
    mine, theirs = Owner(), Owner()
    waits = [Wait(watcher, ["a"], False, owner) for owner in (mine, theirs, None)]
    for wait in waits:
        wait.join()
    told: list[errors.ResultdError] = []
    Callback(watcher, ["b"], lambda _: None, told.append, mine)
    mine.closed = True
    error = errors.ClientClosedError()
    watcher.fail_of(mine, error)
    assert [[type(item) for item in items(wait)] for wait in waits] == [[type(error)], [], []]
    assert [type(each) for each in told] == [type(error)]
    assert watcher._hub.waiters == [wait._place for wait in waits[1:]]
    with pytest.raises(errors.ClientClosedError):
        Wait(watcher, ["c"], False, mine).join()
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
    later(0.2, lambda: client.store_result(second.id, 2))
    assert second.get(timeout=5) == 2


def test_one_that_exits_when_told_of_an_error_takes_nobody_along(watcher: Watcher) -> None:
    """The others are told of the refusal too."""
    callback = Callback(watcher, ["a"], lambda _: None, lambda _: sys.exit("bye"))
    wait = wait_for(watcher, "b")
    watcher.fail_all(errors.UnavailableError("closed"))
    assert [str(item) for item in items(wait)] == ["closed"]
    callback.close()


def test_an_operation_that_breaks_down_says_so_and_can_start_again(
    port: IdlePort, watcher: Watcher
) -> None:
    """Whoever waits gets the error instead of waiting for ever; the next wait starts it anew."""
    wait = wait_for(watcher, "a")
    operation = port.spawned.pop()
    next(operation)
    with pytest.raises(OSError, match="no such certificate"):
        operation.throw(OSError("no such certificate"))
    assert [type(item) for item in items(wait)] == [errors.UnavailableError]
    wait_for(watcher, "b")
    assert len(port.spawned) == 1


def test_an_operation_that_cannot_be_begun_says_so(port: IdlePort, watcher: Watcher) -> None:
    """As where no thread is to be had; the next wait tries again."""
    wait = wait_for(watcher, "a")
    port.failed[0](RuntimeError("no thread"))
    assert [str(item) for item in items(wait)] == ["waiting broke down: RuntimeError('no thread')"]
    other = wait_for(watcher, "b")
    next(port.spawned[1])
    port.failed[0](RuntimeError("late"))  # of one that was not needed any more
    assert items(other) == []


def test_a_break_down_that_is_said_again_changes_nothing(port: IdlePort, watcher: Watcher) -> None:
    """Not for a wait that began meanwhile."""
    first = wait_for(watcher, "a")
    port.failed[0](RuntimeError("cancelled"))
    assert len(items(first)) == 1
    second = wait_for(watcher, "a")
    port.failed[0](RuntimeError("cancelled"))
    assert (items(second), len(port.spawned)) == ([], 2)
    assert watcher._hub.wanted
