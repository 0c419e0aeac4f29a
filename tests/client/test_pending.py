"""Waiting for results: read first, then be told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resultd._deadline import Deadline
from resultd._effects import Call, Effect, Receive, Sleep, run
from resultd._pending import READ_AT_LEAST, Pending
from resultd.client import Client
from resultd.errors import TimeoutError as WaitTimeout
from resultd.errors import UnavailableError, make
from resultd.v1 import result_service_pb2, task_pb2


@pytest.fixture
def client() -> Iterator[Client]:
    """A client whose server is played by the test."""
    with Client("resultd://127.0.0.1:9?timeout=5") as made:
        yield made


def refuse(effect: Effect) -> Any:
    """A server that is never there."""
    if isinstance(effect, Sleep):
        return None
    assert isinstance(effect, Call)
    raise make("UNAVAILABLE", "gone")


def test_a_result_that_is_known_asks_nobody(client: Client) -> None:
    """It is ready at once, and once however often it was given."""
    result = client.AsyncResult("a")
    result._settle({"status": "SUCCESS", "result": 1})
    pending = Pending(client, [result, result])
    assert run(pending.next(Deadline(0)), refuse) == [result]
    assert not pending


def test_more_than_was_given_is_not_waited_for(client: Client) -> None:
    """Who asks when all have been given is told: asking again would never end."""
    result = client.AsyncResult("a")
    result._settle({"status": "SUCCESS", "result": 1})
    pending = Pending(client, [result])
    run(pending.next(Deadline(None)), refuse)
    for given in (pending, Pending(client, [])):
        with pytest.raises(RuntimeError, match="none to wait for"):
            run(given.next(Deadline(None)), refuse)


def test_a_wait_shorter_than_a_calls_patience_times_out(client: Client) -> None:
    """What was wrong stands as the cause."""
    pending = Pending(client, [client.AsyncResult("a")])
    with pytest.raises(WaitTimeout, match="no server answered") as caught:
        run(pending.next(Deadline(0.01)), refuse)
    assert isinstance(caught.value.__cause__, UnavailableError)


def test_a_wait_without_end_is_told_that_nobody_answers(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the address's timeout: a wrong address is not a wait for ever."""
    monkeypatch.setattr(type(client.url), "timeout", 0.01)
    object.__setattr__(client.url, "timeout", 0.01)
    with pytest.raises(UnavailableError):
        run(Pending(client, [client.AsyncResult("a")]).next(Deadline(None)), refuse)


def test_a_read_has_time_to_find_what_is_there(client: Client) -> None:
    """Even where nothing is to be waited for."""
    timeouts: list[float] = []

    def handle(effect: Effect) -> Any:
        assert isinstance(effect, Call)
        timeouts.append(effect.timeout)
        raise make("INVALID_ARGUMENT", "no")

    with pytest.raises(ValueError, match="no"):
        run(Pending(client, [client.AsyncResult("a")]).next(Deadline(0)), handle)
    assert timeouts[0] == pytest.approx(READ_AT_LEAST, abs=0.01)


def test_a_refusal_of_the_stream_is_raised(client: Client, new_id: Callable[[], str]) -> None:
    """By everybody who waits on it."""

    def handle(effect: Effect) -> Any:
        if isinstance(effect, Call):
            return result_service_pb2.GetResultResponse(meta=task_pb2.TaskMeta(task_id="a"))
        assert isinstance(effect, Receive)
        return [make("PERMISSION_DENIED", "no")]

    client._open().spawn = lambda op, failed: op.close()  # type: ignore[method-assign]  # seen, not run
    pending = Pending(client, [client.AsyncResult("a")])
    with pytest.raises(Exception, match="no"):
        run(pending.next(Deadline(5)), handle)
    pending.close()
