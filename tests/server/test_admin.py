"""The admin port: what it answers, and what it does not let anybody do to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus

import pytest

from resultd_server import admin, limits, local_sockets
from resultd_server.admin import AdminServer, Answer, verdict
from tests.support.http import get_soon
from tests.support.in_process import until

GET = b"GET /well HTTP/1.1\r\nhost: x\r\n\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def well() -> Answer:
    """A route on which all is well."""
    return verdict("")


async def ill() -> Answer:
    """A route with a trouble."""
    return verdict("it broke")


@pytest.fixture
async def server() -> AsyncIterator[str]:
    """The address of a server with two routes."""
    serving = AdminServer({"/well": well, "/ill": ill})
    yield await serving.start("127.0.0.1:0")
    await serving.close()


async def said(address: str, request: bytes) -> bytes:
    """All that is answered to raw bytes until the server closes."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        return await rest(reader)
    finally:
        writer.close()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes; nothing, if it is with a reset."""
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""


async def test_routes_answer_and_what_is_none_is_said(server: str) -> None:
    """A trouble is 503 with its sentence; an unknown path names the known ones."""
    assert await get_soon(server, "/well") == (HTTPStatus.OK, "ok\n")
    assert await get_soon(server, "/well?a=b") == (HTTPStatus.OK, "ok\n")
    assert await get_soon(server, "/ill") == (HTTPStatus.SERVICE_UNAVAILABLE, "it broke\n")
    assert await get_soon(server, "/") == (HTTPStatus.NOT_FOUND, "there is /well, /ill\n")


@pytest.mark.parametrize("path", ["/well", "/ill", "/none"])
async def test_head_is_get_without_a_body(server: str, path: str) -> None:
    """Probes that want no body: the same status and headers, its length among them."""
    got = await said(server, f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    head = await said(server, f"HEAD {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    assert got.startswith(b"HTTP/1.1 ")
    assert head == got[: got.index(b"\r\n\r\n") + 4]
    assert len(head) < len(got)


async def test_nothing_else_is_served(server: str) -> None:
    """Another method is 405; what is no HTTP is 400; both end the connection."""
    posted = await said(server, b"POST /well HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
    assert posted.startswith(b"HTTP/1.1 405 ")
    assert (await said(server, b"\x16\x03\x01 hello\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("size_bytes", "answer"),
    [
        (limits.ADMIN_REQUEST_BYTES_MAX - 1, b"HTTP/1.1 200 "),
        (limits.ADMIN_REQUEST_BYTES_MAX, b"HTTP/1.1 200 "),
        (limits.ADMIN_REQUEST_BYTES_MAX + 1, b"HTTP/1.1 431 "),
        (10 * limits.ADMIN_REQUEST_BYTES_MAX, b"HTTP/1.1 431 "),
    ],
)
async def test_a_head_has_a_limit(server: str, size_bytes: int, answer: bytes) -> None:
    """Nothing is read beyond it, so a reset may cut the refusal off."""
    begin, end = b"GET /well HTTP/1.1\r\nhost: x\r\nx: ", b"\r\n\r\n"
    whole = begin + b"y" * (size_bytes - len(begin) - len(end)) + end
    got = await said(server, whole)
    assert got.startswith(answer) or (size_bytes > limits.ADMIN_REQUEST_BYTES_MAX and not got)


async def test_a_head_without_end_is_refused(server: str) -> None:
    """There is an answer or none."""
    endless = b"GET /well HTTP/1.1\r\nx: " + b"y" * (2 * limits.ADMIN_REQUEST_BYTES_MAX)
    assert b" 200 " not in await said(server, endless)


async def test_who_says_nothing_is_let_go(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that sends no request is closed in its time."""
    monkeypatch.setattr(limits, "ADMIN_EXCHANGE_S", 0.05)
    assert await said(server, b"") == b""
    assert await said(server, b"GET /we") == b""


async def hold(address: str, count: int, request: bytes = b"GET /we") -> list[Connection]:
    """So many connections that said this."""
    host, _, port = address.rpartition(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(count)]
    for _, writer in held:
        writer.write(request)
    return held


@pytest.mark.parametrize(
    "silent",
    [
        limits.ADMIN_CONNECTIONS_MAX - 2,
        limits.ADMIN_CONNECTIONS_MAX - 1,
        limits.ADMIN_CONNECTIONS_MAX,
        10 * limits.ADMIN_CONNECTIONS_MAX - 1,
    ],
)
async def test_who_says_nothing_keeps_nobody_out(server: str, silent: int) -> None:
    """With all places held by half a request, or none, a probe is answered at once: who waited
    longest is closed for it, and the others are not.
    """
    held = await hold(server, silent)
    assert (await said(server, GET)).startswith(b"HTTP/1.1 200 ")
    gone = max(0, silent + 1 - limits.ADMIN_CONNECTIONS_MAX)
    assert [await rest(reader) for reader, _ in held[:gone]] == [b""] * gone
    for reader, writer in held[gone:]:
        writer.write(GET.removeprefix(b"GET /we"))
        assert (await rest(reader)).startswith(b"HTTP/1.1 200 ")
    for _, writer in held:
        writer.close()


async def test_one_that_is_answered_too_many_is_closed() -> None:
    """Whose answer is being made keeps its place: while all are such others are closed at once,
    and a free place serves again.
    """
    gate, begun = asyncio.Event(), asyncio.Semaphore(0)

    async def slow() -> Answer:
        begun.release()
        await gate.wait()
        return verdict("")

    serving = AdminServer({"/well": slow})
    address = await serving.start("127.0.0.1:0")
    held = await hold(address, limits.ADMIN_CONNECTIONS_MAX, GET)
    for _ in held:
        await begun.acquire()
    assert await said(address, GET) == b""
    gate.set()
    for reader, writer in held:
        assert (await rest(reader)).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert (await said(address, GET)).startswith(b"HTTP/1.1 200 ")
    await serving.close()


@pytest.mark.parametrize("taken", [True, False])
async def test_who_does_not_take_its_answer_is_let_go(
    monkeypatch: pytest.MonkeyPatch, *, taken: bool
) -> None:
    """A page that nobody reads is kept for as long as an exchange may take, and no longer; who
    reads it has all of it.
    """
    page, asked = b"x" * 60_000, asyncio.Event()

    async def large() -> Answer:
        asked.set()
        return Answer(page)

    serving = AdminServer({"/well": large})
    host, _, port = (await serving.start("127.0.0.1:0")).rpartition(":")
    assert serving._server is not None
    serving._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)  # the system takes little
        connection.connect((host, int(port)))
        if not taken:
            monkeypatch.setattr(limits, "ADMIN_EXCHANGE_S", 0.05)
        connection.sendall(GET)
        if not taken:
            await asked.wait()
            await until(lambda: not serving._under_way)
        assert (await asyncio.to_thread(_all_of, connection)).endswith(b"\r\n\r\n" + page) == taken
    await serving.close()


def _all_of(connection: socket.socket) -> bytes:
    found = bytearray()
    connection.settimeout(10)
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1_000_000):
            found += data
    return bytes(found)


async def test_a_taken_port_is_said() -> None:
    """Listening where somebody else does raises OSError with the remedy, and the flag for it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=r"in use: .*, or name .* with --admin"):
            await AdminServer({}).start(address)


async def test_a_process_asks_another() -> None:
    """On a local socket the same answers come, again from the next process; from nobody OSError."""
    name = local_sockets.new_name()
    with local_sockets.listen(name) as door:
        for _ in range(2):
            serving = AdminServer({"/ill": ill})
            await serving.start_between(door.dup())
            assert await admin.fetch(name, "/ill") == await ill()
            await serving.close()
    with pytest.raises(ConnectionRefusedError):
        await admin.fetch(name, "/ill")


async def test_another_user_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs as somebody else gets no answer from a process."""
    name = local_sockets.new_name()
    serving = AdminServer({"/well": well})
    await serving.start_between(local_sockets.listen(name))
    connection = await local_sockets.connect(name)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # now all others are strangers
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    writer.write(b"GET /well HTTP/1.1\r\nhost: x\r\n\r\n")
    told = b""
    with contextlib.suppress(ConnectionResetError):
        told = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await serving.close()
    assert told == b""


async def test_whoever_answers_no_http_is_no_answer() -> None:
    """A process that answers something else, or nothing, is an OSError."""
    for answer in (b"hello\r\n\r\n", b""):

        async def speak(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = answer
        ) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()
            await writer.wait_closed()

        name = local_sockets.new_name()
        server = await asyncio.start_unix_server(speak, sock=local_sockets.listen(name))
        with pytest.raises(OSError, match="no answer from"):
            await admin.fetch(name, "/")
        server.close()
        await server.wait_closed()
