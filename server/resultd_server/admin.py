"""The admin port: `/metrics`, `/livez`, `/readyz` over HTTP, for scrapers and probes.

Beside the service, on the same event loop: what it answers shows that the loop runs. One
request a connection, a few connections at a time, a few seconds each.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from socket import socket
from typing import NamedTuple

import h11

from resultd_server import limits, listening, local_sockets

TEXT = "text/plain; charset=utf-8"
_READ_BYTES = 4096
_TOO_LARGE = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


class Answer(NamedTuple):
    """What is said to a GET, and without its body to a HEAD."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    content_type: str = TEXT


Route = Callable[[], Awaitable[Answer]]


def verdict(trouble: str) -> Answer:
    """A probe's answer: "ok", or 503 with what is wrong."""
    if not trouble:
        return Answer(b"ok\n")
    return Answer(f"{trouble}\n".encode(), HTTPStatus.SERVICE_UNAVAILABLE)


class _Places:
    """Who is answered, a few at a time; who waits longest for its peer gives way to the next.

    It waits for the rest of a request, and until the answer is taken. A probe says at once what it
    asks, and who holds a place without a word is none.
    """

    def __init__(self) -> None:
        self._waiting: dict[asyncio.WriteTransport, None] = {}  # the longest first
        self._answered: set[asyncio.WriteTransport] = set()

    def take(self, transport: asyncio.WriteTransport) -> bool:
        """One more, who waits; whether there is a place."""
        if len(self._waiting) + len(self._answered) >= limits.ADMIN_CONNECTIONS_MAX:
            if not self._waiting:
                return False
            longest = next(iter(self._waiting))
            self.leave(longest)
            longest.abort()
        self._waiting[transport] = None
        return True

    def answer(self, transport: asyncio.WriteTransport) -> bool:
        """It waits no longer; whether it has its place still."""
        if transport not in self._waiting:
            return False
        del self._waiting[transport]
        self._answered.add(transport)
        return True

    def wait(self, transport: asyncio.WriteTransport) -> bool:
        """It waits from now on, behind the others; whether it has its place still."""
        if transport not in self._waiting and transport not in self._answered:
            return False
        self.leave(transport)
        self._waiting[transport] = None
        return True

    def leave(self, transport: asyncio.WriteTransport) -> None:
        """Its place is free, if it has one still."""
        self._waiting.pop(transport, None)
        self._answered.discard(transport)


class AdminServer:
    """Answers GET and HEAD by path. `start`, then `close`."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._routes = routes
        self._under_way: set[asyncio.Task[None]] = set()
        self._places = _Places()
        self._server: asyncio.Server | None = None

    async def start_between(self, door: socket) -> None:
        """Listens to other processes of this server (`local_sockets`) alone."""
        self._server = await asyncio.start_unix_server(self._asked, sock=door)

    async def start(self, address: str) -> str:
        """Listens on host:port; the address. Raises OSError."""
        listening.check_free(address, "--admin")
        host, _, port = address.rpartition(":")
        self._server = await asyncio.start_server(self._connected, host.strip("[]"), int(port))
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Ends everything at once."""
        if self._server is not None:
            self._server.close()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if local_sockets.is_ours(writer.get_extra_info("socket")):
            await self._connected(reader, writer)
        else:
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # asyncio runs this in one
        self._under_way.add(task)
        try:
            if self._places.take(writer.transport):
                # Gone, or too slow: there is nobody to tell.
                with contextlib.suppress(OSError, asyncio.TimeoutError):
                    exchange = self._exchange(reader, writer)
                    await asyncio.wait_for(exchange, limits.ADMIN_EXCHANGE_S)
        finally:
            self._under_way.discard(task)
            self._places.leave(writer.transport)
            writer.transport.abort()  # close() would wait for who does not take its answer

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        place = writer.transport
        method = b""
        try:
            room = limits.ADMIN_REQUEST_BYTES_MAX
            while (event := connection.next_event()) is h11.NEED_DATA:
                if not room:  # h11 bounds what is incomplete, and takes more with the end
                    raise h11.RemoteProtocolError("The head is too large.", _TOO_LARGE)
                data = await reader.read(min(_READ_BYTES, room))
                room -= len(data)
                connection.receive_data(data)
        except h11.RemoteProtocolError as error:
            answer = Answer(b"not a request\n", HTTPStatus(error.error_status_hint))
        else:
            if not isinstance(event, h11.Request) or not self._places.answer(place):
                return  # it has gone without a word, or given way
            method = event.method
            answer = await self._answer(method, event.target)
        if not self._places.wait(place):
            return
        place.set_write_buffer_limits(0)  # drained: the system has all of it
        writer.write(_serialized(connection, answer, has_body=method != b"HEAD"))
        await writer.drain()

    async def _answer(self, method: bytes, target: bytes) -> Answer:
        if method not in (b"GET", b"HEAD"):
            return Answer(b"GET and HEAD only\n", HTTPStatus.METHOD_NOT_ALLOWED)
        route = self._routes.get(target.partition(b"?")[0].decode("ascii", "replace"))
        if route is None:
            known = ", ".join(self._routes)
            return Answer(f"there is {known}\n".encode(), HTTPStatus.NOT_FOUND)
        return await route()


def _serialized(connection: h11.Connection, answer: Answer, *, has_body: bool) -> bytes:
    headers = [
        ("content-type", answer.content_type),
        ("content-length", str(len(answer.body))),
        ("cache-control", "no-store"),
        ("allow", "GET, HEAD"),
        ("connection", "close"),
    ]
    response = h11.Response(status_code=answer.status, headers=headers, reason=answer.status.phrase)
    parts = [connection.send(response)]
    if has_body:
        parts.append(connection.send(h11.Data(data=answer.body)))
    return b"".join(part for part in parts if part)


async def fetch(name: str, target: str) -> Answer:
    """Asks another process of this server. Raises OSError, asyncio.TimeoutError."""
    return await asyncio.wait_for(_fetch(name, target), limits.ADMIN_FETCH_S)


async def _fetch(name: str, target: str) -> Answer:
    connection_to = await local_sockets.connect(name)
    reader, writer = await asyncio.open_unix_connection(sock=connection_to)
    connection = h11.Connection(h11.CLIENT)
    try:
        request = h11.Request(
            method="GET", target=target, headers=[("host", "localhost"), ("connection", "close")]
        )
        asked = connection.send(request)
        assert asked is not None  # None stands for a connection's end
        writer.write(asked)
        status, body, content_type = HTTPStatus.BAD_GATEWAY, bytearray(), TEXT
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65_536))
            elif isinstance(event, h11.Response):
                status = HTTPStatus(event.status_code)
                content_type = dict(event.headers)[b"content-type"].decode("ascii")
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                return Answer(bytes(body), status, content_type)
    except h11.ProtocolError as error:
        raise OSError(f"no answer from {name}: {error}") from None
    finally:
        writer.close()
