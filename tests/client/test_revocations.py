"""Hearing of tasks that are to stop: what is resumed, what is told once."""

from __future__ import annotations

import queue
from collections.abc import Callable

import pytest
from google.protobuf.message import Message

from resultd import _backoff
from resultd._effects import Effect, Open, Receive
from resultd._revocations import Revocation, Revocations
from resultd._stream import QueueMailbox
from resultd.client import Client
from resultd.errors import UnavailableError
from resultd.testing import Server
from resultd.v1 import stream_pb2, worker_service_pb2
from tests.support.tcp_proxy import TcpProxy


class StreamDouble:
    """A stream that only knows whether it was cancelled."""

    generation = 0

    def __init__(self) -> None:
        self.mailbox = QueueMailbox()
        self.cancelled = False

    def send(self, request: Message) -> None:
        """Send nothing."""

    def taken(self) -> None:
        """Do nothing."""

    def cancel(self) -> None:
        """Note it."""
        self.cancelled = True


def test_a_watch_resumes_and_repeats_nothing(
    server: Server, client: Client, new_id: Callable[[], str]
) -> None:
    """After a cut the server tells again what is asked for; the worker hears it once."""
    ids = [new_id() for _ in range(3)]
    client.store_results([(i, None, "STARTED") for i in ids])
    with TcpProxy(server.port) as proxy, Client(f"resultd://127.0.0.1:{proxy.port}") as behind:
        watch = behind.watch_revocations(ids)
        heard = iter(watch)
        for task_id in ids:
            client.revoke(task_id)
            assert next(heard).task_id == task_id
            proxy.cut()
        watch.close()
        assert list(heard) == []


def test_a_silent_watch_resumes(server: Server, client: Client, new_id: Callable[[], str]) -> None:
    """2.5 heartbeats later, on a new connection."""
    task_id = new_id()
    client.store_result(task_id, None, "STARTED")
    with (
        TcpProxy(server.port) as proxy,
        Client(f"resultd://127.0.0.1:{proxy.port}?heartbeat=1") as behind,
    ):
        behind.server_info()
        proxy.blackhole()
        proxy.heal()
        client.revoke(task_id)
        assert next(iter(behind.watch_revocations([task_id]))).task_id == task_id


def test_a_callback_that_raises_does_not_deafen_the_worker(
    client: Client, new_id: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    """It goes to the log; the next revocation is told as ever."""
    ids = [new_id() for _ in range(2)]
    client.store_results([(i, None, "STARTED") for i in ids])
    heard: queue.SimpleQueue[str] = queue.SimpleQueue()

    def callback(revocation: Revocation) -> None:
        heard.put(revocation.task_id)
        raise KeyError(revocation.task_id)

    with client.watch_revocations(ids, callback):
        for task_id in ids:
            client.revoke(task_id)
            assert heard.get(timeout=5) == task_id
    assert "revocation" in caplog.text


def test_a_watch_closed_while_it_opens_ends() -> None:
    """However early: the stream that was on its way is cancelled, not kept for ever."""
    watch = Revocations(["a"], 20.0, QueueMailbox())
    op = watch.listen()
    assert isinstance(next(op), Open)
    watch.close()
    stream = StreamDouble()
    op.send(stream)
    assert stream.cancelled


def ended(reason: stream_pb2.EndReason.ValueType) -> worker_service_pb2.WatchRevocationsResponse:
    """A frame that ends a stream, with a delay of 0.4 s."""
    frame = worker_service_pb2.WatchRevocationsResponse()
    frame.control.kind, frame.control.end_reason = stream_pb2.CONTROL_KIND_END, reason
    frame.control.retry_delay.nanos = 400_000_000
    return frame


def pauses(reason: stream_pb2.EndReason.ValueType, streams: int) -> list[float]:
    """How long a watch waits after each of some streams that end so, before the next."""
    bell, found = QueueMailbox(), list[float]()
    op = Revocations(["a"], 20.0, bell).listen()
    effect: Effect = next(op)
    while len(found) < streams:
        if isinstance(effect, Open):
            found.append(0.0)
            effect = op.send(StreamDouble())
            continue
        assert isinstance(effect, Receive)
        if effect.mailbox is bell:
            assert effect.timeout is not None
            found[-1] = effect.timeout
            effect = op.send([])
        else:
            effect = op.send([ended(reason)])
    op.close()
    return found[:-1]


def test_a_watch_that_is_drained_waits_as_long_as_it_is_told_and_by_chance() -> None:
    """All that were drained do not come back in the same moment; of old age it is at once."""
    drained = pauses(stream_pb2.END_REASON_DRAINING, 10)
    assert min(drained) >= 0.4
    assert max(drained) <= 0.6
    assert len(set(drained)) == len(drained)
    assert set(pauses(stream_pb2.END_REASON_MAX_AGE, 3)) == {0.0}


def test_a_stream_that_did_its_work_ends_a_row_of_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many broke over the time of a watch, the next break is a first one."""
    rows: list[int] = []

    def spied(tries: int, _: float | None = None) -> float:
        rows.append(tries)
        return 0.0

    monkeypatch.setattr(_backoff, "full_jitter", spied)
    synced = worker_service_pb2.WatchRevocationsResponse()
    synced.control.kind = stream_pb2.CONTROL_KIND_SYNCED
    told = worker_service_pb2.WatchRevocationsResponse()
    told.revocations.add(task_id="of another")
    cut = UnavailableError("cut")
    op = Revocations(["a"], 20.0, QueueMailbox()).listen()
    next(op)
    for frames in ([cut], [cut], [synced, cut], [cut], [told, cut], [cut], [cut]):
        effect = op.send(StreamDouble())
        assert isinstance(effect, Receive)
        while isinstance(effect, Receive):
            effect = op.send(frames)
    op.close()
    assert rows == [0, 1, 0, 1, 0, 1, 2]


def test_a_client_closed_right_after_its_watch_is_no_error(server: Server) -> None:
    """The thread that calls back ends quietly, wherever it stood."""
    for _ in range(20):
        with Client(server.url) as own, own.watch_revocations(["never"], print):
            own.server_info()
