"""Peers that mean harm: the campaign, that it bites, and the bounds of connections.

`python -m tests.campaigns.hostile` runs large ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd_server import app, listening
from tests.campaigns import hostile
from tests.support import plants
from tests.support.attacks import ATTACKS, START, half_call
from tests.support.http2 import GOAWAY, PING, frame
from tests.support.in_process import serving
from tests.support.memory import MIB
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

SEED = 7
CLOSED_S = 20.0


@pytest.mark.slow
def test_the_server_outlives_every_attack_and_lets_go() -> None:
    """Every kind of attack, ten connections each: clients are served, memory comes back."""
    plan = hostile.Plan(
        connections=len(ATTACKS) * 10,
        at_a_time=100,
        hold_s=(0.1, 0.5),
        slack_bytes=24 * MIB,
        rest_s=0.5,
    )
    tally = hostile.run(plan, SEED)
    assert tally.faults == []
    assert tally.counts["connections"] == len(ATTACKS) * 10
    assert tally.counts["ended by the server"] > 0


@pytest.mark.slow
def test_the_campaign_bites() -> None:
    """A server that keeps some of every report is found out."""
    plan = hostile.Plan(
        connections=100,
        at_a_time=30,
        hold_s=(0.1, 0.1),
        program=plants.program("leak-much"),
        names=("unread answers",),
        settle_s=2.0,
        rest_s=0.5,
    )
    faults = hostile.run(plan, SEED).faults
    assert any("memory" in fault for fault in faults), faults


@contextlib.asynccontextmanager
async def connected(address: str, first: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """A raw connection that said something."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(first)
        yield reader
    finally:
        writer.transport.abort()


async def until_closed(reader: asyncio.StreamReader) -> None:
    """Reads to the end; a reset is one too."""

    async def rest() -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(65_536):
                continue

    await asyncio.wait_for(rest(), CLOSED_S)


def with_options(monkeypatch: pytest.MonkeyPatch, **milliseconds: int) -> None:
    """The server's options, some of them shorter; each has to be there already."""
    changed = {f"grpc.{name}_ms": value for name, value in milliseconds.items()}
    assert changed.keys() <= dict(app.OPTIONS).keys()
    monkeypatch.setattr(app, "OPTIONS", tuple({**dict(app.OPTIONS), **changed}.items()))


async def test_one_connection_too_many_is_closed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """L connections are served, the next is closed, and there is room again when one leaves."""
    monkeypatch.setattr(listening, "connections_max", lambda: 4)
    async with serving() as served, contextlib.AsyncExitStack() as stack:
        await served.results.GetServerInfo(pb.GetServerInfoRequest())
        for _ in range(2):
            reader = await stack.enter_async_context(connected(served.address, START))
            assert await asyncio.wait_for(reader.read(9), CLOSED_S)
        async with connected(served.address, START) as fourth:
            assert await asyncio.wait_for(fourth.read(9), CLOSED_S)
            async with connected(served.address, START) as fifth:
                await until_closed(fifth)
            # Who was there before is served meanwhile.
            await served.results.GetServerInfo(pb.GetServerInfoRequest())
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(served.address, options=options) as channel:
            stub = Stubs(channel)
            request = pb.GetServerInfoRequest()
            await stub.results.GetServerInfo(request, wait_for_ready=True, timeout=CLOSED_S)


@pytest.mark.parametrize("first", [b"", START[:10], b"GET / HTTP/1.1\r\n"])
async def test_who_does_not_speak_http2_is_closed_soon(
    monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    """A connection that says nothing, or nothing whole, ends with the handshake's time."""
    with_options(monkeypatch, server_handshake_timeout=300)
    async with serving() as served, connected(served.address, first) as reader:
        await until_closed(reader)


async def test_a_connection_without_calls_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that begins and then does nothing is idle, and has its end."""
    with_options(monkeypatch, max_connection_idle=500)
    async with serving() as served, connected(served.address, START) as reader:
        await until_closed(reader)


async def test_a_call_that_never_ends_ends_with_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half a message and then nothing: connections have an age, and calls no more than that."""
    with_options(monkeypatch, max_connection_age=500, max_connection_age_grace=300)
    half = half_call(1)
    async with serving() as served, connected(served.address, START + half) as reader:
        await until_closed(reader)
        await served.results.GetServerInfo(pb.GetServerInfoRequest(), wait_for_ready=True)


async def test_what_a_peer_says_does_not_stand_in_the_log(tmp_path: Path) -> None:
    """A farewell with a line of its own: every line of the log is still ours, and is JSON."""
    farewell = struct.pack(">II", 0, 1) + b'bye\n{"event": "forged"}\n\xff'
    with ServerProcess(tmp_path) as server:
        said = START + frame(GOAWAY, 0, 0, farewell) + frame(PING, 0, 0, b"12345678")
        async with connected(server.address, said) as reader:
            # Answered in its turn: the farewell has been read then.
            await asyncio.wait_for(reader.readuntil(b"12345678"), CLOSED_S)
        server.stop()
        events = [line["event"] for line in server.log_lines()]
    assert "serving" in events
    assert "forged" not in events
