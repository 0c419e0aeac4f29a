"""Health over a socket: what it answers, and how much of it there may be."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from resultd_server import limits
from resultd_server.service import health
from tests.support import http2
from tests.support.in_process import Served, serving, until
from tests.support.raw_calls import DEADLINE_S
from tests.support.refusals import Refusal, taken_apart

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
OWN = "resultd.v1.ResultService"
REQUEST_BYTES = limits.HEALTH_REQUEST_BYTES_MAX
FRESH = (("grpc.use_local_subchannel_pool", 1),)
"""A channel with a connection of its own: each has so many streams."""


def stub(channel: grpc.aio.Channel) -> Any:
    """Its types know sync channels only."""
    made: Any = health_pb2_grpc.HealthStub
    return made(channel)


def asking_for(service: str = "") -> health_pb2.HealthCheckRequest:
    """A request of either kind."""
    return health_pb2.HealthCheckRequest(service=service)


async def watching(channel: grpc.aio.Channel, service: str = "") -> tuple[Any, int]:
    """A stream, and the status it says first."""
    call = stub(channel).Watch(asking_for(service), timeout=DEADLINE_S)
    return call, (await call.read()).status


async def refused(channel: grpc.aio.Channel, service: str = "") -> Refusal:
    """What a stream ends with that says nothing."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watching(channel, service)
    return taken_apart(caught.value)


def watches(served: Served) -> int:
    """How many streams the server has."""
    return len(served.app._health._watches)


# What it answers.


@pytest.mark.parametrize("service", ["", OWN])
async def test_check_tells_what_is_served(served: Served, service: str) -> None:
    """Of the server and of each service; NOT_SERVING as well."""
    check = stub(served.channel).Check
    assert (await check(asking_for(service), timeout=DEADLINE_S)).status == SERVING
    served.app._health.set(service, NOT_SERVING)
    assert (await check(asking_for(service), timeout=DEADLINE_S)).status == NOT_SERVING


@pytest.mark.skipif(
    not hasattr(health_pb2, "HealthListResponse"), reason="the library is older than List"
)
async def test_list_tells_of_every_service(served: Served) -> None:
    """The server itself has the empty name; what has changed is told as it is now."""
    served.app._health.set(OWN, NOT_SERVING)
    request = health_pb2.HealthListRequest()  # type: ignore[attr-defined]  # as the response
    told = await stub(served.channel).List(request, timeout=DEADLINE_S)
    assert {name: each.status for name, each in told.statuses.items()} == {
        "": SERVING,
        OWN: NOT_SERVING,
        "resultd.v1.GroupService": SERVING,
        "resultd.v1.WorkerService": SERVING,
    }


@pytest.mark.parametrize("service", ["", OWN])
async def test_who_watches_hears_of_a_drain(served: Served, service: str) -> None:
    """It says what is so at once, and NOT_SERVING when the server is about to go."""
    call, first = await watching(served.channel, service)
    assert first == SERVING
    draining = asyncio.create_task(served.app.drain())
    assert (await call.read()).status == NOT_SERVING
    await draining


WATCH = "/grpc.health.v1.Health/Watch"


@contextlib.asynccontextmanager
async def taking_nothing(served: Served) -> AsyncIterator[asyncio.StreamReader]:
    """A watch that may not be sent a byte: its window is 0."""
    host, _, port = served.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    closed = struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, 0)
    headers = http2.header_block(http2.call_headers(WATCH))
    writer.write(
        http2.PREFACE
        + http2.frame(http2.SETTINGS, 0, 0, closed)
        + http2.frame(http2.HEADERS, http2.END_HEADERS, http2.STREAM, headers)
        + http2.frame(http2.DATA, http2.END_STREAM, http2.STREAM, http2.message(b""))
    )
    try:
        await until(lambda: watches(served) == 1)
        yield reader
    finally:
        writer.transport.abort()


async def test_who_takes_nothing_keeps_nobody_waiting(served: Served) -> None:
    """Others who watch hear of everything, and the server drains."""
    async with taking_nothing(served):
        call, first = await watching(served.channel, "")
        assert first == SERVING
        draining = asyncio.create_task(served.app.drain())
        assert (await call.read()).status == NOT_SERVING
        await asyncio.wait_for(draining, DEADLINE_S)


async def test_who_takes_nothing_is_not_kept(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that does not move ends its stream, as it does others'."""
    monkeypatch.setattr(limits, "STALLED_WRITE_S", 0.2)
    async with taking_nothing(served):
        await until(lambda: watches(served) == 0)


# Its bounds.


def named(size_bytes: int) -> str:
    """A name that makes a request of so many bytes."""
    name = "x" * (size_bytes - 3)
    assert asking_for(name).ByteSize() == size_bytes
    return name


@pytest.mark.parametrize("size_bytes", [REQUEST_BYTES - 1, REQUEST_BYTES])
async def test_a_request_may_be_so_large(served: Served, size_bytes: int) -> None:
    """Nobody has such a service: Check says NOT_FOUND, Watch waits for it."""
    name = named(size_bytes)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(served.channel).Check(asking_for(name), timeout=DEADLINE_S)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    call, first = await watching(served.channel, name)
    assert first == SERVICE_UNKNOWN
    served.app._health.set(name, SERVING)
    assert (await call.read()).status == SERVING
    call.cancel()


@pytest.mark.parametrize("size_bytes", [REQUEST_BYTES + 1, 10 * REQUEST_BYTES])
async def test_a_request_is_bounded(served: Served, size_bytes: int) -> None:
    """One that is larger is refused by Check and by Watch, and nothing is kept of it."""
    name = named(size_bytes)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(served.channel).Check(asking_for(name), timeout=DEADLINE_S)
    for refusal in (taken_apart(caught.value), await refused(served.channel, name)):
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
        assert refusal.facts["field"] == "request"
        assert str(REQUEST_BYTES) in refusal.sentence
    assert watches(served) == 0


@pytest.mark.parametrize(("maximum", "beyond"), [(limits.HEALTH_WATCHES_MAX, 1), (4, 36)])
async def test_watches_beyond_the_bound_are_refused(
    monkeypatch: pytest.MonkeyPatch, maximum: int, beyond: int
) -> None:
    """L-1 watch, and L; up to 10 L are OVERLOADED, and there is room again after one."""
    if maximum != limits.HEALTH_WATCHES_MAX:  # else the server says nothing
        monkeypatch.setattr(health, "Health", partial(health.Health, watches_max=maximum))
    async with (
        serving() as served,
        grpc.aio.insecure_channel(served.address, options=FRESH) as other,
    ):
        kept = [await watching(served.channel) for _ in range(maximum)]
        assert {first for _, first in kept} == {SERVING}
        assert watches(served) == maximum
        for _ in range(beyond):
            refusal = await refused(other)
            assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "OVERLOADED")
            assert f"{maximum} streams watch health" in refusal.sentence
            assert refusal.retry_delay_s > 0
        assert watches(served) == maximum
        answer = await stub(other).Check(asking_for(), timeout=DEADLINE_S)
        assert answer.status == SERVING
        kept[0][0].cancel()
        await until(lambda: watches(served) == maximum - 1)
        again, first = await watching(other)
        assert first == SERVING
        assert (await refused(other)).reason == "OVERLOADED"
        again.cancel()
        for call, _ in kept:
            call.cancel()
        await until(lambda: watches(served) == 0)
