"""Quotas of a namespace: streams and waited ids, at the limit, beyond it, and given back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import worker_service_pb2
from resultd_server.engine.hints import Hub, Subscription
from resultd_server.errors import Quota
from resultd_server.ledger.unit import TASK
from resultd_server.service.quotas import Quotas
from tests.support import reports
from tests.support.frames import SYNCED, Frames
from tests.support.in_process import Served, serving, until
from tests.support.raw_calls import Metadata
from tests.support.refusals import taken_apart

HUB = Hub()


def waiting(count: int, namespace: str = "a") -> Subscription:
    """A stream that waits for so many ids."""
    stream = HUB.subscribe(namespace)
    stream.add(TASK, [f"t{n}" for n in range(count)])
    return stream


@pytest.mark.parametrize("limit", [1, 3])
def test_streams_are_let_in_up_to_the_quota(limit: int) -> None:
    """L-1 and L are, L+1 and 10 L are not; other namespaces are; one that leaves makes room."""
    quotas = Quotas(streams=limit)
    streams = [waiting(0) for _ in range(limit)]
    for stream in streams:
        quotas.enter(stream)
    for _ in range(9 * limit):
        late = waiting(0)
        with pytest.raises(Quota, match=f"'a' has {limit} streams open and may have {limit}"):
            quotas.enter(late)
        quotas.leave(late)
    quotas.enter(waiting(0, "b"))
    quotas.leave(streams[0])
    quotas.enter(waiting(0))


def test_ids_are_waited_for_up_to_the_quota() -> None:
    """All streams of a namespace together; the same id on two streams counts twice."""
    quotas = Quotas(waited_ids=10)
    first, second = waiting(9), waiting(1)
    quotas.enter(first)
    quotas.enter(second)
    second.add(TASK, ["more"])
    with pytest.raises(Quota, match="'a' waits for 11 ids and may for 10"):
        quotas.changed(second)
    second.discard(TASK, ["more"])
    quotas.changed(second)
    quotas.enter(waiting(10, "b"))
    for count in (1, 100):
        late = waiting(count)
        with pytest.raises(Quota):
            quotas.enter(late)
        quotas.leave(late)
    quotas.leave(first)
    quotas.enter(waiting(9))


def test_what_has_come_counts_no_longer() -> None:
    """An id that is done makes room, though its stream has not said a word since."""
    quotas = Quotas(waited_ids=10)
    first = waiting(10)
    quotas.enter(first)
    first.discard(TASK, ["t0", "t1"])
    quotas.enter(waiting(2))
    with pytest.raises(Quota):
        quotas.enter(waiting(1))


def test_nothing_is_kept_of_who_has_left() -> None:
    """Namespaces that come and go leave nothing behind."""
    quotas = Quotas(streams=1, waited_ids=1)
    for number in range(100):
        stream = waiting(1, f"n{number}")
        quotas.enter(stream)
        quotas.leave(stream)
        quotas.leave(stream)
    assert (quotas._open, quotas._waited) == ({}, {})


def in_namespace(name: str) -> Metadata:
    """What a call carries."""
    return (("resultd-namespace", name),)


@asynccontextmanager
async def opened(served: Served, ids: Iterable[str], namespace: str = "a") -> AsyncIterator[Frames]:
    """A WaitFor that has been let in."""
    call: Any = served.results.WaitFor(
        pb.WaitForRequest(task_ids=ids), metadata=in_namespace(namespace)
    )
    frames = Frames(call)
    try:
        await frames.until(SYNCED)
        yield frames
    finally:
        call.cancel()


async def refused(served: Served, ids: Iterable[str]) -> str:
    """The reason one more WaitFor is refused with; it says when to try again."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with opened(served, ids):
            raise AssertionError("let in")
    refusal = taken_apart(caught.value)
    assert (refusal.code, refusal.facts["namespace"]) == ("RESOURCE_EXHAUSTED", "a")
    assert refusal.retry_delay_s > 0
    return refusal.reason


async def test_a_stream_too_many_is_refused_with_quota() -> None:
    """Of one namespace; others go on, unary calls too, and a stream that ends makes room."""
    async with serving(streams_per_namespace=2) as served, opened(served, ["t"]):
        async with opened(served, ["t"]), opened(served, ["t"], "b"):
            assert await refused(served, ["t"]) == "QUOTA"
            await served.results.StoreResult(reports.success("x"), metadata=in_namespace("a"))
        await until(lambda: served.app.streams.streams == 1)
        async with opened(served, ["t"]):
            assert served.app.streams.streams == 2


async def test_an_id_too_many_is_refused_with_quota() -> None:
    """Whether a stream begins with it or asks for it later, tasks and revocations alike."""
    async with serving(waited_ids_per_namespace=3) as served:
        async with opened(served, ["a", "b"]):
            assert await refused(served, ["c", "d"]) == "QUOTA"
            requests: dict[Any, list[Any]] = {
                served.results.Watch: [pb.WatchRequest(add_task_ids=[i]) for i in "cd"],
                served.workers.WatchRevocations: [
                    worker_service_pb2.WatchRevocationsRequest(add_task_ids=[i]) for i in "cd"
                ],
            }
            for method, messages in requests.items():
                call = method(metadata=in_namespace("a"))
                for message in messages:
                    await call.write(message)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await Frames(call).next()
                assert taken_apart(caught.value).reason == "QUOTA"
                await until(lambda: served.app.streams.streams == 1)
        await served.idle()
