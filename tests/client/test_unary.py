"""Unary calls that may be broken off: what becomes of gRPC's lock, and of errors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc
import pytest

from resultd import _unary
from resultd.client import Client
from resultd.errors import InternalError


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    """One that leads nowhere."""
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        yield channel


def is_free(lock: threading.Condition) -> bool:
    """Whether another thread gets it at once."""
    got: list[bool] = []

    def take() -> None:
        got.append(lock.acquire(blocking=False))
        if got[0]:
            lock.release()

    other = threading.Thread(target=take)
    other.start()
    other.join()
    return got[0]


def test_grpc_has_the_lock_that_is_looked_for(channel: grpc.Channel) -> None:
    """A later gRPC may not; calls of the main thread go by a deputy then."""
    lock = _unary.lock_of(channel)
    assert lock is not None
    assert is_free(lock)


def test_what_is_no_channel_of_grpcs_has_none() -> None:
    """None is found, and nothing fails."""
    assert _unary.lock_of(object()) is None  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("times", [0, 1, 3])
def test_a_lock_is_given_back_however_often_it_is_held(channel: grpc.Channel, times: int) -> None:
    """And only by the thread that has it."""
    lock = _unary.lock_of(channel)
    assert lock is not None
    for _ in range(times):
        lock.acquire()
    other = threading.Thread(target=_unary.give_back, args=[lock])
    other.start()
    other.join()
    assert is_free(lock) == (times == 0)
    _unary.give_back(lock)
    assert is_free(lock)


def test_what_interrupts_the_making_of_bytes_stays_what_it_is(channel: grpc.Channel) -> None:
    """gRPC would say that a message cannot be serialized."""

    class TimeLimit(Exception):
        """What a signal's handler raises."""

    def interrupted(_: object) -> bytes:
        raise TimeLimit

    call = _unary.OfBytes(channel).unary_unary("/s/M", interrupted, bytes)
    with pytest.raises(TimeLimit):
        call(object(), timeout=1.0)


def test_an_answer_that_is_no_message_is_an_internal_error(
    client: Client, new_id: Callable[[], str]
) -> None:
    """As gRPC says it of what it cannot read; the method is named."""
    endpoint = client._open()
    assert client.AsyncResult(new_id()).state == "PENDING"
    method = endpoint._methods["GetResult"]
    with pytest.raises(InternalError, match=r"/resultd\.v1\.ResultService/GetResult"):
        method.read(b"\xff\xff")
