"""Streaming calls for threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from resultd._channel import Endpoint
from resultd._effects import Open
from resultd._stream import AHEAD, QueueMailbox
from resultd.client import Client
from resultd.errors import InvalidArgumentError, ResultdError
from resultd.v1 import result_service_pb2
from tests.support.timing import check_takes


@pytest.fixture
def endpoint(client: Client) -> Endpoint:
    """The client's endpoint."""
    return client._open()


def test_a_mailbox_gives_all_there_is_and_waits_exactly() -> None:
    """[] when nothing came in time."""
    mailbox = QueueMailbox()
    mailbox.put(1)
    mailbox.put(2)
    assert mailbox.receive(None) == [1, 2]

    def wait() -> None:
        assert mailbox.receive(0.05) == []

    check_takes(0.05, 0.1, wait)
    threading.Timer(0.02, mailbox.put, (3,)).start()
    assert mailbox.receive(1e12) == [3]


def test_a_stream_is_never_far_ahead_of_its_reader(
    client: Client, endpoint: Endpoint, new_id: Callable[[], str]
) -> None:
    """Two frames, until some are taken: the rest waits at the server."""
    ids = [new_id() for _ in range(1000)]
    client.store_results([(i, 1) for i in ids])
    request = result_service_pb2.IterateRequest(group_id=client.group(new_id()).create(ids).id)
    stream = endpoint.handle(Open("Iterate", request))
    frames: list[object] = []
    time.sleep(0.2)
    frames += stream.mailbox.receive(0)
    assert len(frames) == AHEAD
    stream.taken()
    frames += stream.mailbox.receive(5)
    assert len(frames) == AHEAD + 1
    stream.cancel()
    stream.cancel()
    stream.join(time.monotonic() + 5)
    assert isinstance(stream.mailbox.receive(5)[-1], ResultdError)
    assert stream not in endpoint._streams


def test_how_a_call_ended_is_the_last_item(endpoint: Endpoint) -> None:
    """As an error of ours, also where it ended in order."""
    refused = endpoint.handle(Open("Iterate", result_service_pb2.IterateRequest()))
    assert isinstance(refused.mailbox.receive(5)[-1], InvalidArgumentError)
    bidirectional = endpoint.handle(Open("Watch", None))
    bidirectional.send(result_service_pb2.WatchRequest(sequence=1))
    (frame,) = bidirectional.mailbox.receive(5)
    assert frame.control.sequence == 1
    bidirectional.cancel()
