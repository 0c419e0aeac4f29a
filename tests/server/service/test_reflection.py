"""Reflection over a socket: that it answers, and how much of it there may be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from resultd_server import limits
from resultd_server.service import reflection
from tests.support.in_process import Served, serving, until
from tests.support.raw_calls import DEADLINE_S
from tests.support.refusals import Refusal, taken_apart

LIST = reflection_pb2.ServerReflectionRequest(list_services="")
SLOW_READER = (("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0))
FILE = reflection_pb2.ServerReflectionRequest(file_containing_symbol="resultd.v1.ResultService")


class Reflections:
    """A server's reflection, and how much of it is under way."""

    def __init__(self, served: Served, made: list[reflection.Reflection]) -> None:
        self.address = served.address
        self._channel = served.channel
        [self._told] = made

    @property
    def streams(self) -> int:
        """Under way on the server."""
        return self._told._streams

    @property
    def bounds(self) -> tuple[int, float]:
        """(streams, seconds)."""
        return self._told._most, self._told._age_s

    def open(self, channel: grpc.aio.Channel | None = None) -> Any:
        """A stream that has asked nothing yet."""
        stub: Any = reflection_pb2_grpc.ServerReflectionStub  # its types know sync channels only
        return stub(channel or self._channel).ServerReflectionInfo(timeout=DEADLINE_S)

    async def answered(self) -> Any:
        """A stream that has had its first answer."""
        call = self.open()
        await ask(call)
        return call


async def ask(call: Any) -> None:
    """One question, which is answered."""
    await call.write(LIST)
    names = {each.name for each in (await call.read()).list_services_response.service}
    assert {"resultd.v1.ResultService", reflection.NAME} < names


async def refusal_of(call: Any) -> Refusal:
    """What a stream ends with that is asked nothing: a write could hide it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    return taken_apart(caught.value)


async def rest(call: Any) -> tuple[int, Refusal]:
    """How many answers were left, and what the stream ended with."""
    count = 0
    try:
        while True:
            await call.read()
            count += 1
    except grpc.aio.AioRpcError as error:
        return count, taken_apart(error)


@asynccontextmanager
async def reflecting(
    monkeypatch: pytest.MonkeyPatch, **bounds: float
) -> AsyncIterator[Reflections]:
    """A server with reflection, with other bounds than its own if any are given."""
    made: list[reflection.Reflection] = []
    kind = partial(reflection.Reflection, **bounds)  # type: ignore[arg-type]  # `most` is an int

    def make(*args: Any) -> reflection.Reflection:
        made.append(kind(*args))
        return made[-1]

    monkeypatch.setattr(reflection, "Reflection", make)
    async with serving(reflection=True) as served:
        yield Reflections(served, made)


@pytest.mark.parametrize("end", ["says no more", "goes away"])
async def test_streams_beyond_the_bound_are_refused(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """L-1 are answered, and L; up to 10 L are OVERLOADED, and there is room again after one."""
    most = limits.REFLECTIONS_MAX
    async with reflecting(monkeypatch) as asked:
        kept = [await asked.answered() for _ in range(most)]
        assert asked.streams == most
        for _ in range(9 * most):
            refusal = await refusal_of(asked.open())
            assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "OVERLOADED")
            assert f"{most} streams ask for reflection" in refusal.sentence
            assert refusal.retry_delay_s > 0
        assert asked.streams == most
        for call in kept:
            await ask(call)
        if end == "says no more":
            await kept[0].done_writing()
        else:
            kept[0].cancel()
        await until(lambda: asked.streams == most - 1)
        kept.append(await asked.answered())
        assert (await refusal_of(asked.open())).reason == "OVERLOADED"
        for call in kept:
            call.cancel()
        await until(lambda: asked.streams == 0)


async def test_a_bound_that_is_given_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream, where one is the most."""
    async with reflecting(monkeypatch, most=1) as asked:
        call = await asked.answered()
        assert (await refusal_of(asked.open())).reason == "OVERLOADED"
        call.cancel()


@pytest.mark.parametrize("asks", [True, False])
async def test_a_stream_that_is_old_ends(monkeypatch: pytest.MonkeyPatch, asks: bool) -> None:
    """It answers until then, and ends OVERLOADED then, even one that was never asked anything."""
    age_s = 1.0
    async with reflecting(monkeypatch, age_s=age_s) as asked:
        clock = asyncio.get_running_loop().time
        began_s = clock()
        call = asked.open()
        if asks:
            await ask(call)
            await ask(call)
            assert asked.streams == 1
        refusal = await refusal_of(call)
        assert age_s * 0.99 < clock() - began_s < DEADLINE_S / 2
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "OVERLOADED")
        assert "lasts 1 s: begin another" in refusal.sentence
        assert asked.streams == 0
        await asked.answered()


async def test_a_stream_that_is_not_read_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that nobody takes do not keep it; who reads at last is told."""
    count = 256
    async with (
        reflecting(monkeypatch, age_s=2.0) as asked,
        grpc.aio.insecure_channel(asked.address, options=SLOW_READER) as channel,
    ):
        call = asked.open(channel)
        for _ in range(count):
            await call.write(FILE)
        await until(lambda: asked.streams == 0)
        answers, refusal = await rest(call)
        assert refusal.reason == "OVERLOADED"
        assert 0 < answers < count


async def test_by_itself_it_has_the_servers_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server says nothing about."""
    async with reflecting(monkeypatch) as asked:
        assert asked.bounds == (limits.REFLECTIONS_MAX, limits.REFLECTION_S)
