"""Limits of connections, where they are: metadata, requests, streams, connections, pings.

By a peer that writes HTTP/2 itself: a gRPC client keeps back what it knows will be refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd_server import app, limits, listening
from resultd_server.ledger import wire
from tests.support import http2
from tests.support.attacks import SERVICE, START, in_frames
from tests.support.http2 import END_HEADERS, END_STREAM, frame, header_block, message
from tests.support.in_process import serving

ANSWER_S = 20.0
ACK = 1
STATUS = b"grpc-status"
OK, EXHAUSTED = 0, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
REFUSED_STREAM = 7


class Frame(NamedTuple):
    """One that came."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def status(self) -> int | None:
        """The call's status, in its last headers."""
        if self.kind != http2.HEADERS or STATUS not in self.payload:
            return None
        # Not compressed: gRPC writes it as a literal.
        at = self.payload.index(STATUS) + len(STATUS)
        return int(self.payload[at + 1 : at + 1 + self.payload[at]])


class Raw:
    """A connection that has acknowledged the server's settings."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def read(self) -> Frame:
        """The next frame. Raises IncompleteReadError at the end."""
        head = await asyncio.wait_for(self.reader.readexactly(9), ANSWER_S)
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        size = int.from_bytes(head[:3], "big")
        return Frame(kind, flags, stream, await self.reader.readexactly(size))

    async def until(self, kind: int, flags: int = 0) -> Frame:
        """The next frame of a kind with these flags."""
        while True:
            found = await self.read()
            if found.kind == kind and found.flags & flags == flags:
                return found

    async def status(self, stream: int) -> int:
        """How a call ends."""
        while True:
            found = await self.read()
            if found.stream == stream and found.status is not None:
                return found.status

    def call(self, method: str, body: bytes, stream: int = 1) -> None:
        """Sends one."""
        block = header_block(http2.call_headers(SERVICE + method))
        self.writer.write(frame(http2.HEADERS, END_HEADERS, stream, block))
        self.writer.write(frame(http2.DATA, END_STREAM, stream, message(body)))


@contextlib.asynccontextmanager
async def raw(address: str, *, acknowledges: bool = True) -> AsyncIterator[Raw]:
    """A connection, its settings read and acknowledged, or not."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        found = Raw(reader, writer)
        writer.write(START)
        if acknowledges:
            await found.until(http2.SETTINGS)
            writer.write(frame(http2.SETTINGS, ACK, 0))
        yield found
    finally:
        writer.transport.abort()


def four(limit: int) -> tuple[int, int, int, int]:
    """One less, the limit, one more, ten times as much."""
    return limit - 1, limit, limit + 1, 10 * limit


def option(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    """The server's options, one of them changed; it has to be there."""
    assert name in dict(app.OPTIONS)
    changed = {**dict(app.OPTIONS), name: value}
    monkeypatch.setattr(app, "OPTIONS", tuple(changed.items()))


def _headers_of(size_bytes: int) -> bytes:
    """Headers of a call that count so much: names, values, and 32 bytes for each."""
    headers = http2.call_headers(SERVICE + "GetServerInfo")
    room = size_bytes - sum(len(name) + len(value) + 32 for name, value in headers)
    while room:
        value_bytes = min(room - 35, 100)
        if 0 < room - 35 - value_bytes <= 35:  # the last one needs room too
            value_bytes -= 36
        headers.append(("x-a", "v" * value_bytes))
        room -= 35 + value_bytes
    assert sum(len(name) + len(value) + 32 for name, value in headers) == size_bytes
    return in_frames(header_block(headers))


async def test_metadata_has_a_limit_and_no_range_of_chance() -> None:
    """L-1 and L bytes of metadata pass, always; L+1 and 10 L are refused, always."""
    async with serving() as served:

        async def status(size: int) -> int:
            async with raw(served.address) as peer:
                peer.writer.write(_headers_of(size))
                peer.writer.write(frame(http2.DATA, END_STREAM, 1, message(b"")))
                return await peer.status(1)

        said = [
            # At a time: gRPC takes a while over each that it refuses.
            set(await asyncio.gather(*(status(size) for _ in range(20))))
            for size in four(limits.METADATA_BYTES_MAX)
        ]
    assert said == [{OK}, {OK}, {EXHAUSTED}, {EXHAUSTED}]


async def test_who_does_not_acknowledge_the_limits_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gRPC holds a peer to the settings it has acknowledged: one that does not has little time."""
    option(monkeypatch, "grpc.http2.settings_timeout", 300)
    async with serving() as served, raw(served.address, acknowledges=False) as peer:
        farewell = await peer.until(http2.GOAWAY)
        assert b"settings_timeout" in farewell.payload
        with pytest.raises(asyncio.IncompleteReadError):
            await peer.read()
        async with raw(served.address) as another:
            another.call("GetServerInfo", b"")
            assert await another.status(1) == OK


def _request_of(size_bytes: int) -> bytes:
    """A request of so many bytes; most of them a field that nobody knows."""
    found = wire.message_field(1_000, b"x" * (size_bytes - 6))
    assert len(found) == size_bytes
    return found


async def test_a_request_has_a_limit() -> None:
    """L-1 and L bytes of a request pass, L+1 are refused, and 10 L before they have come."""
    *near, far = four(limits.REQUEST_BYTES_MAX)
    said = []
    async with serving() as served:
        method = "/resultd.v1.ResultService/GetServerInfo"
        channel: Any = served.channel  # of raw bytes, whatever its types say
        for size in near:
            call = channel.unary_unary(method)(_request_of(size), timeout=ANSWER_S)
            said.append((await call.code()).value[0])
        async with raw(served.address) as peer:
            block = header_block(http2.call_headers(SERVICE + "GetServerInfo"))
            peer.writer.write(frame(http2.HEADERS, END_HEADERS, 1, block))
            beginning = b"\0" + struct.pack(">I", far) + b"x" * 1_000
            peer.writer.write(frame(http2.DATA, 0, 1, beginning))
            said.append(await peer.status(1))
    assert said == [OK, OK, EXHAUSTED, EXHAUSTED]


@pytest.mark.parametrize("attempted", four(10))
async def test_a_connection_has_so_many_streams(
    monkeypatch: pytest.MonkeyPatch, attempted: int
) -> None:
    """Of L-1 and L streams each is served; of L+1 and 10 L the first L are, the others refused."""
    option(monkeypatch, "grpc.max_concurrent_streams", 10)
    wait = pb.WaitForRequest(task_ids=["never"]).SerializeToString()
    async with serving() as served, raw(served.address) as peer:
        streams = range(1, 2 * attempted, 2)
        for stream in streams:
            peer.call("WaitFor", wait, stream)
        begun: set[int] = set()
        refused: set[int] = set()
        while len(begun) + len(refused) < attempted:
            found = await peer.read()
            if found.kind == http2.DATA:
                begun.add(found.stream)
            elif found.kind == http2.RST_STREAM:
                assert found.payload == struct.pack(">I", REFUSED_STREAM)
                refused.add(found.stream)
        assert begun == set(streams[:10])
        assert refused == set(streams[10:])
        # One that ends leaves room for another.
        peer.writer.write(frame(http2.RST_STREAM, 0, 1, struct.pack(">I", 8)))
        peer.call("GetServerInfo", b"", 1_001)
        assert await peer.status(1_001) == OK


@pytest.mark.parametrize("attempted", four(4))
async def test_a_server_has_so_many_connections(
    monkeypatch: pytest.MonkeyPatch, attempted: int
) -> None:
    """Of L-1 and L connections each is served; of L+1 and 10 L the first L are."""
    monkeypatch.setattr(listening, "connections_max", lambda: 4)
    async with serving() as served, contextlib.AsyncExitStack() as stack:
        let_in = 0
        for _ in range(attempted):
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                peer = await stack.enter_async_context(raw(served.address))
                peer.call("GetServerInfo", b"")
                assert await peer.status(1) == OK
                let_in += 1
        assert let_in == min(attempted, 4)


async def test_who_pings_often_stays_and_is_served() -> None:
    """A flood of pings is answered ping by ping, and calls beside it are."""
    async with serving() as served, raw(served.address) as peer:
        for number in range(100):
            peer.writer.write(frame(http2.PING, 0, 0, struct.pack(">Q", number)))
        for number in range(100):
            assert (await peer.until(http2.PING, ACK)).payload == struct.pack(">Q", number)
        peer.call("GetServerInfo", b"")
        assert await peer.status(1) == OK


async def test_by_grpcs_own_rule_pings_end_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """With strikes counted, the ping after the last that is forgiven is one too many."""
    option(monkeypatch, "grpc.http2.max_ping_strikes", 2)
    answered = 0
    async with serving() as served, raw(served.address) as peer:
        while answered < 10:
            peer.writer.write(frame(http2.PING, 0, 0, b"12345678"))
            found = await peer.read()
            while found.kind not in (http2.PING, http2.GOAWAY):
                found = await peer.read()
            if found.kind == http2.GOAWAY:
                assert b"too_many_pings" in found.payload
                break
            answered += 1
    assert 2 <= answered < 10
