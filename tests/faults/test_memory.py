"""What callers have the server hold is bounded: requests half sent, or kept, and answers not taken.

gRPC keeps what has come of a message until it is whole, a request while its call goes on, and an
answer until it is taken, and tells nobody how much that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from resultd.v1 import group_service_pb2 as group_pb
from resultd.v1 import result_service_pb2 as pb
from resultd_server import heap
from tests.support import http2
from tests.support.attacks import bombs
from tests.support.in_process import serving, until
from tests.support.memory import ALLOCATOR, MIB, Peak, anonymous_bytes
from tests.support.refusals import taken_apart
from tests.support.reports import success
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

CALLS = 20
APART = [("grpc.use_local_subchannel_pool", 1)]
REQUEST = success("never", b"x" * (12 * MIB)).SerializeToString()
UNKNOWN = b"\xc2\x3e\x80\x80\x80\x06" + b"x" * (12 * MIB)
"""A field of number 1,000 that has so many bytes."""
COMES = len(REQUEST) * 3 // 4
MOST = 128 * MIB
SETTLE_S = 20.0

pytestmark = pytest.mark.skipif(heap.find_trim() is None, reason="another C library than glibc")


@contextlib.asynccontextmanager
async def swallowing(address: str) -> AsyncIterator[tuple[list[Any], Callable[[], bool]]]:
    """Channels of which three quarters of a request reach the server, and all that it answers.

    Besides, whether so much has come of each. What is more is taken and dropped: a gRPC client
    that cannot write hears of nothing.
    """
    host, _, port = address.rpartition(":")
    left = [COMES] * CALLS
    tasks: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def up(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            left[number] -= len(data)
            if left[number] > 0:
                writer.write(data)
                await writer.drain()

    async def down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(host, int(port))
        writers.extend((writer, there[1]))
        tasks.append(asyncio.create_task(up(len(tasks) // 2, reader, there[1])))
        tasks.append(asyncio.create_task(down(there[0], writer)))

    async with (
        await asyncio.start_server(accept, "127.0.0.1", 0) as proxy,
        contextlib.AsyncExitStack() as stack,
    ):
        near = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        channels = [_apart(near) for _ in range(CALLS)]
        for channel in channels:
            await stack.enter_async_context(channel)
        try:
            yield channels, lambda: max(left) <= 0
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for each in writers:
                each.transport.abort()


def _apart(address: str) -> grpc.aio.Channel:
    """A channel with a connection of its own."""
    return grpc.aio.insecure_channel(address, options=APART)


async def unary(channel: Any, path: str) -> str:
    """Why the call ended."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(path)(REQUEST)
    return _why(caught.value)


async def unary_stream(channel: Any, path: str) -> str:
    """The same of one that is answered with a stream."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_stream(path)(REQUEST).read()
    return _why(caught.value)


async def stream_stream(channel: Any, path: str) -> str:
    """The same of a stream of requests, on which nothing else is sent: its connection is closed."""
    stream = channel.stream_stream(path)()
    writing = asyncio.ensure_future(stream.write(REQUEST))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _read(stream)
    await asyncio.gather(writing, return_exceptions=True)
    return str(caught.value.code().name)


async def _read(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        continue


def _why(error: grpc.aio.AioRpcError) -> str:
    refusal = taken_apart(error)
    assert refusal.code == "UNAVAILABLE"
    assert refusal.retry_delay_s == (1 if refusal.reason else 0)
    return refusal.reason


RESULTS = "/resultd.v1.ResultService/"
KINDS = {
    RESULTS + "StoreResult": (unary, "OVERLOADED"),
    RESULTS + "WaitFor": (unary_stream, "OVERLOADED"),
    RESULTS + "Watch": (stream_stream, "UNAVAILABLE"),
    "/grpc.health.v1.Health/Check": (unary, "OVERLOADED"),
}


async def _memory(server: ServerProcess, condition: Any) -> int:
    """What the server holds, once that is so, or after a while."""
    deadline = asyncio.get_running_loop().time() + SETTLE_S
    while not condition(held := anonymous_bytes(server.process.pid)):
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.05)
    return held


async def _stored(stubs: Stubs) -> None:
    """Stores, and again while the server says that it has no room: at its next look it has."""
    deadline = asyncio.get_running_loop().time() + SETTLE_S
    said = ""
    while asyncio.get_running_loop().time() < deadline:
        try:
            await stubs.results.StoreResult(success("t"), wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            said = _why(error)
        else:
            return
    raise AssertionError(said)


@pytest.mark.parametrize("path", KINDS)
async def test_what_half_sent_requests_hold_is_bounded(tmp_path: Path, path: str) -> None:
    """Twenty of 12 MiB, three quarters of it there: so many are ended as hold too much, and others
    are served, while the connection is still open.
    """
    call, expected = KINDS[path]
    flags = ("--memory-max-bytes", str(MOST))
    with ServerProcess(tmp_path, *flags, environ=ALLOCATOR) as server:
        async with (
            swallowing(server.address) as (channels, _),
            grpc.aio.insecure_channel(server.address) as another,
        ):
            calls = [asyncio.ensure_future(call(channel, path)) for channel in channels]
            await until(lambda: any(each.done() for each in calls))
            held = await _memory(server, lambda held: held <= MOST)
            ended = [await each for each in calls if each.done()]
            # Where an ended call is not free a quarter of a second later, a connection is closed.
            assert expected in ended
            assert set(ended) <= {expected, ""}
            assert held <= MOST
            await _stored(Stubs(another))
            for each in calls:
                each.cancel()
            await asyncio.wait(calls)
        assert "memory is short" in [line["event"] for line in server.log_lines()]


async def test_what_kept_requests_hold_is_bounded(tmp_path: Path) -> None:
    """Twenty streams, each begun with 12 MiB of fields that nobody knows: gRPC keeps them until
    their connections are closed. Streams for which there is room go on.
    """
    request = pb.WaitForRequest(task_ids=["t"]).SerializeToString() + UNKNOWN
    with ServerProcess(tmp_path, "--memory-max-bytes", str(MOST), environ=ALLOCATOR) as server:
        async with contextlib.AsyncExitStack() as stack:
            ends = []
            for _ in range(CALLS):
                channel: Any = await stack.enter_async_context(_apart(server.address))
                stream = channel.unary_stream(RESULTS + "WaitFor")(request)
                ends.append(asyncio.ensure_future(_read(stream)))
            await until(lambda: any(each.done() for each in ends))
            held = await _memory(server, lambda held: held <= MOST)
            assert held <= MOST
            await _stored(Stubs(await stack.enter_async_context(_apart(server.address))))
            said = await asyncio.gather(*ends, return_exceptions=True)
        assert "memory is enough again" in [line["event"] for line in server.log_lines()]
    errors = [each for each in said if isinstance(each, grpc.aio.AioRpcError)]
    assert said.count(None) + len(errors) == CALLS
    assert {each.code() for each in errors} == {grpc.StatusCode.UNAVAILABLE}


async def test_what_answers_that_nobody_takes_hold_is_bounded(tmp_path: Path) -> None:
    """Two hundred reads of a record of 2 MiB, from a peer whose window is 0: it is closed."""
    with ServerProcess(tmp_path, "--memory-max-bytes", str(MOST), environ=ALLOCATOR) as server:
        async with _apart(server.address) as channel:
            await Stubs(channel).results.StoreResult(success("large", b"x" * (2 * MIB)))
            host, _, port = server.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            closed = struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, 0)
            writer.write(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, closed))
            headers = http2.header_block(http2.call_headers(RESULTS + "GetResult"))
            get = http2.message(pb.GetResultRequest(task_id="large").SerializeToString())
            for stream in range(1, 401, 2):
                writer.write(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, headers))
                writer.write(http2.frame(http2.DATA, http2.END_STREAM, stream, get))
            await asyncio.wait_for(_to_the_end(reader), SETTLE_S)
            writer.transport.abort()
            assert await _memory(server, lambda held: held <= MOST) <= MOST
            await _stored(Stubs(channel))


@pytest.mark.parametrize("path", [path for path in KINDS if not path.endswith("/Watch")])
async def test_small_messages_do_not_become_large_ones(tmp_path: Path, path: str) -> None:
    """Forty-five calls without a credential, 750 kB on the line, which unpacked are 720 MiB: they
    are refused packed, and the server never has any of it. Of Watch nothing is read before its
    credential is known.
    """
    (tmp_path / "auth.toml").touch()
    flags = ("--memory-max-bytes", str(MOST), "--auth-file", str(tmp_path / "auth.toml"))
    with ServerProcess(tmp_path, *flags, environ=ALLOCATOR) as server:
        peak = Peak(server)
        said = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + bombs(path, 3)
        peers = [asyncio.ensure_future(_ended(server.address, said, 3)) for _ in range(15)]
        while not all(each.done() for each in peers):
            peak.look()
            await asyncio.sleep(0.005)
        assert peak.server_bytes < MOST
        assert await asyncio.gather(*peers) == [3] * 15
        assert "memory is short" not in [line["event"] for line in server.log_lines()]


async def _ended(address: str, said: bytes, streams: int) -> int:
    """How many streams of a connection that says this were ended, once all were or it was."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(said)
    ended: set[int] = set()
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while len(ended) < streams:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            if kind == http2.HEADERS and flags & http2.END_STREAM:
                ended.add(stream)
    writer.transport.abort()
    return len(ended)


@pytest.mark.parametrize("path", KINDS)
async def test_who_compresses_is_told_so(path: str) -> None:
    """gRPC's own clients, too: UNIMPLEMENTED, which nobody repeats, with the algorithm's name."""
    async with serving() as served:
        call: Any = served.channel.unary_unary(path)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", compression=grpc.Compression.Gzip)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert "'gzip' is disabled" in str(caught.value.details())


async def _to_the_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(65_536):
            continue


async def test_without_a_bound_it_is_held(tmp_path: Path) -> None:
    """Half sent calls where there is memory enough: it lies there, and the calls go on."""
    path = RESULTS + "StoreResult"
    with ServerProcess(tmp_path, environ=ALLOCATOR) as server:
        async with (
            swallowing(server.address) as (channels, there),
        ):
            calls = [asyncio.ensure_future(each.unary_unary(path)(REQUEST)) for each in channels]
            await until(there)
            assert await _memory(server, lambda held: held > MOST) > MOST
            assert not any(each.done() for each in calls)
            for each in calls:
                each.cancel()
            await asyncio.wait(calls)


async def test_what_small_calls_are_answered_is_bounded(tmp_path: Path) -> None:
    """Three hundred calls of a few bytes, each answered with a group's 2 MiB, many in a commit:
    no more is held than a few of them, and all are answered.
    """
    with ServerProcess(tmp_path, environ=ALLOCATOR) as server:
        async with _apart(server.address) as channel:
            stubs, peak = Stubs(channel), Peak(server)
            group = group_pb.CreateGroupRequest(group_id="g")
            group.continuation.data = b"x" * (2 * MIB)
            await stubs.groups.CreateGroup(group)
            before = anonymous_bytes(server.process.pid)

            async def ask(number: int) -> int:
                request = group_pb.AddToTotalRequest(group_id="g", delta=1, request_id=str(number))
                return (await stubs.groups.AddToTotal(request)).ByteSize()

            calls = [asyncio.ensure_future(ask(number)) for number in range(300)]
            while not all(each.done() for each in calls):
                peak.look()
                await asyncio.sleep(0.005)
            assert min(await asyncio.gather(*calls)) > 2 * MIB
            assert peak.server_bytes - before < 100 * MIB
