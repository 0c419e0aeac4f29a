"""Hints between the processes that share a store: a mesh of local sockets.

Each process listens on a socket of its own (`local_sockets`) and sends what it changed to
whoever connects; each connects to every other one. What is promised of a hint holds across
processes:

* a change is sent after its commit, by the process that made it, in order;
* who cannot take more is told LOST once it can: "anything may have changed";
* when a connection ends, a process that died among them, whoever listened to it takes that
  for LOST and connects again until it is back;
* `start` returns once everybody hears everybody, so that a process neither answers nor
  changes anything before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import cast

import structlog

from resultd_server import local_sockets
from resultd_server.engine.hints import Hub
from resultd_server.ledger.unit import Changed

AGAIN_S = 0.01
AGAIN_MAX_S = 0.25
"""Between two tries to reach a process under whose name nobody listens: longer each time."""

BUFFERED_BYTES_MAX = 4 * 1024 * 1024
"""What waits for one slow process: about 50,000 hints. Beyond it they are LOST."""

FRAME_BYTES_MAX = 64 * 1024 * 1024
"""More than one commit ever changes (4,096 operations of up to 10,000 ids of 255 bytes are
sent in several frames): longer is no frame of ours."""

CHANGES_PER_FRAME = 10_000

_LENGTH = struct.Struct(">I")
_WHEN = struct.Struct(">d")
_LOST = _LENGTH.pack(0)
_ENDED = (OSError, asyncio.IncompleteReadError, ValueError, struct.error)
"""What a connection ends with, or a frame is that is none of ours."""

log = structlog.get_logger("resultd.engine")


class Peers:
    """One process's place in the mesh: number `index` of those called by `names`.

    `door` listens under its own name, and is closed with it.
    """

    def __init__(self, hub: Hub, door: socket.socket, names: Sequence[str], index: int) -> None:
        self._hub = hub
        self._door = door
        self._names = names
        self._index = index
        self._others = [other for other in range(len(names)) if other != index]
        self._listeners: dict[int, _Listener] = {}
        self._heard: set[int] = set()
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens, and connects; returns when everybody hears everybody."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Listener(self), sock=self._door)
        self._tasks = [
            loop.create_task(self._listen_to(other), name=f"hints-of-{other}")
            for other in self._others
        ]
        async with self._changed:
            await self._changed.wait_for(self._complete)
        self._hub.outlet = self.send

    def _complete(self) -> bool:
        everybody = set(self._others)
        return self._heard >= everybody and self._listeners.keys() >= everybody

    async def close(self) -> None:
        """Leaves the mesh."""
        self._hub.outlet = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in list(self._listeners.values()):
            listener.close()
        if self._server is not None:
            self._server.close()
        self._door.close()

    def send(self, changed: Iterable[Changed], committed_s: float = 0.0) -> None:
        """Tells everybody what was changed here, and when: the host's clocks agree."""
        rows = ["\0".join(each) for each in changed]
        for at in range(0, len(rows), CHANGES_PER_FRAME):
            # Names and ids hold no control characters: they are refused at the door.
            body = _WHEN.pack(committed_s)
            body += "\n".join(rows[at : at + CHANGES_PER_FRAME]).encode()
            frame = _LENGTH.pack(len(body)) + body
            for listener in self._listeners.values():
                listener.send(frame)

    def joined(self, index: int, listener: _Listener) -> None:
        """Somebody listens to us from now on."""
        before = self._listeners.get(index)
        if before is not None:
            before.close()
        self._listeners[index] = listener
        self._notify()

    def left(self, index: int | None, listener: _Listener) -> None:
        """Somebody listens no longer."""
        if index is not None and self._listeners.get(index) is listener:
            del self._listeners[index]

    async def _listen_to(self, other: int) -> None:
        """Takes another process's hints, and connects again whenever that ends."""
        pause_s = AGAIN_S
        again = False
        while True:
            try:
                connection = await local_sockets.connect(self._names[other])
                reader, writer = await asyncio.open_unix_connection(sock=connection)
            except OSError:  # nobody listens, or a stranger
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, AGAIN_MAX_S)
                continue
            try:
                writer.write(_LENGTH.pack(self._index))
                # What it says first means: you are on the list.
                await self._read_frame(reader)
                self._heard.add(other)
                if again:  # what it changed since the connection before ended was said to nobody
                    self._hub.lose()
                again = True
                pause_s = AGAIN_S
                await self._notify_soon()
                while True:
                    await self._take(reader)
            except Exception as error:
                self._heard.discard(other)
                # Whatever it changed last may never have been said.
                self._hub.lose()
                if not isinstance(error, _ENDED):
                    log.critical("hints broke", of=other, exc_info=error)
                    await asyncio.sleep(AGAIN_MAX_S)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _take(self, reader: asyncio.StreamReader) -> None:
        body = await self._read_frame(reader)
        if not body:
            self._hub.lose()
            return
        (committed_s,) = _WHEN.unpack_from(body)
        changed = []
        for row in body[_WHEN.size :].decode().split("\n"):
            namespace, kind, id_ = row.split("\0")
            changed.append((namespace, kind, id_))
        self._hub.publish(changed, committed_s)

    async def _read_frame(self, reader: asyncio.StreamReader) -> bytes:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > FRAME_BYTES_MAX:
            raise ValueError(f"a frame of {length} bytes")
        return await reader.readexactly(length)

    def _notify(self) -> None:
        asyncio.get_running_loop().create_task(self._notify_soon())

    async def _notify_soon(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class _Listener(asyncio.Protocol):
    """Another process, as far as it listens to this one."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._index: int | None = None
        self._received = b""
        self._full = False
        self._lost = False
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's derive from neither
        if not local_sockets.is_ours(transport.get_extra_info("socket")):
            self._transport.abort()
        self._transport.set_write_buffer_limits(high=BUFFERED_BYTES_MAX)

    def data_received(self, data: bytes) -> None:
        # All it ever says is who it is.
        self._received += data[: _LENGTH.size]
        if self._index is None and len(self._received) >= _LENGTH.size:
            (self._index,) = _LENGTH.unpack(self._received[: _LENGTH.size])
            self._write(_LOST)  # heard by one that has just begun: it costs nothing
            self._peers.joined(self._index, self)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._lost:
            self._lost = False
            self._write(_LOST)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._peers.left(self._index, self)

    def send(self, frame: bytes) -> None:
        """Sends a frame, or remembers that it could not."""
        if self._full:
            self._lost = True
        else:
            self._write(frame)

    def _write(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)

    def close(self) -> None:
        """Ends the connection: the other side takes that for LOST."""
        if self._transport is not None:
            self._transport.abort()
