"""Connections that the server closes although gRPC has no word for it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd_server import connections
from resultd_server.connections import close_share
from tests.support.addresses import why_no_ipv6
from tests.support.in_process import Served, serving, until
from tests.support.reports import success
from tests.support.stubs import Stubs

APART = [("grpc.use_local_subchannel_pool", 1)]


@contextlib.asynccontextmanager
async def waiting(served: Served, number: int) -> AsyncIterator[list[asyncio.Future[Any]]]:
    """Connections with a stream each; what their ends are."""
    async with contextlib.AsyncExitStack() as stack:
        ends: list[asyncio.Future[Any]] = []
        for _ in range(number):
            channel = grpc.aio.insecure_channel(served.address, options=APART)
            await stack.enter_async_context(channel)
            stream = Stubs(channel).results.WaitFor(pb.WaitForRequest(task_ids=["t"]))
            ends.append(asyncio.ensure_future(_end(stream)))
        await until(lambda: served.app.streams.streams == number)
        yield ends
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)


async def _end(stream: Any) -> grpc.StatusCode:
    try:
        while await stream.read() is not grpc.aio.EOF:
            continue
    except grpc.aio.AioRpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


async def close(address: str, share: float) -> int:
    """As the server does it."""
    return await asyncio.to_thread(close_share, address, share)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "unix:"])
@pytest.mark.parametrize(("share", "closed"), [(1 / 16, 1), (0.4, 2), (1.0, 5)])
async def test_a_share_of_the_connections_is_closed(
    tmp_path: Path, listen: str, share: float, closed: int
) -> None:
    """Of five, rounded up; their calls are over and UNAVAILABLE, and the others go on."""
    if listen == "[::1]:0" and (missing := why_no_ipv6()):
        pytest.skip(missing)
    # gRPC reads what stands after a per cent sign as it does in URLs.
    listen = f"unix:{tmp_path / 'a%20socket'}" if listen == "unix:" else listen
    async with serving(listen=listen) as served, waiting(served, 5) as ends:
        assert await close(served.address, share) == closed
        await until(lambda: served.app.streams.streams == 5 - closed)
        await until(lambda: sum(end.done() for end in ends) == closed)
        assert {await end for end in ends if end.done()} == {grpc.StatusCode.UNAVAILABLE}
        expected = [await end if end.done() else grpc.StatusCode.OK for end in ends]
        await served.results.StoreResult(success("t"), wait_for_ready=True)
        assert await asyncio.gather(*ends) == expected


async def test_others_connections_are_left_alone(served: Served) -> None:
    """Another server's of the same process, what listens, and the clients' own ends."""
    async with serving() as other, waiting(served, 2) as ends:
        assert await close(other.address, 1.0) == 0
        await other.results.StoreResult(success("t"))
        assert await close(other.address, 1.0) == 1
        assert not any(end.done() for end in ends)
        await served.results.StoreResult(success("t"))
        assert await asyncio.gather(*ends) == [grpc.StatusCode.OK] * 2


async def test_what_is_no_connection_is_left_alone(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of sockets, one that is not connected; and a file or nothing where a socket was when it
    was looked for. No descriptor is left over.
    """
    left, right = socket.socketpair()
    with left, right, socket.socket() as loose, (tmp_path / "file").open("w") as file:
        before = len([*connections._DESCRIPTORS.iterdir()])
        assert await close(served.address, 1.0) == 0
        numbers = [file.fileno(), loose.fileno(), left.fileno(), 1_000_000]
        monkeypatch.setattr(connections, "_numbers", lambda: iter(numbers))
        assert await close(served.address, 1.0) == 0
        assert len([*connections._DESCRIPTORS.iterdir()]) == before
        left.send(b"x")
        assert right.recv(1) == b"x"
