"""What a hostile peer does on one connection, frame by frame.

`ATTACKS[name](peer)` does one; `Peer` is the connection. An attack ends when it is done or
the server has had enough; either is fine, as long as the server lives and lets go.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import socket
import struct
from collections.abc import Awaitable, Callable

from resultd.v1 import result_service_pb2 as pb
from resultd_server.limits import REQUEST_BYTES_MAX
from tests.support import http2
from tests.support.http2 import END_HEADERS, END_STREAM, PREFACE, call_headers, frame, header_block
from tests.support.reports import success

SERVICE = "/resultd.v1.ResultService/"
SLOW_S = 0.2
"""Between the bytes of those that are slow."""

START = PREFACE + frame(http2.SETTINGS, 0, 0)


class Peer:
    """One connection, raw."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        dice: random.Random,
        hold_s: float,
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.dice = dice
        self.hold_s = hold_s
        self.ended = False
        """Whether the server closed it."""

    async def send(self, data: bytes) -> None:
        """Sends, as fast as the server takes it."""
        self.writer.write(data)
        await self.writer.drain()

    async def trickle(self, data: bytes, piece_bytes: int = 1) -> None:
        """Sends a little at a time, for as long as it is to hold on."""
        steps = max(1, int(self.hold_s / SLOW_S))
        for start in range(0, min(len(data), steps * piece_bytes), piece_bytes):
            await self.send(data[start : start + piece_bytes])
            await asyncio.sleep(SLOW_S)

    async def pour(self, stream: int, data: bytes) -> None:
        """Sends data on a stream as fast as the server asks for it."""
        windows = {0: 65_535, stream: 65_535}
        sent = 0
        while sent < len(data):
            room = min(16_000, *windows.values())
            if room > 0:
                piece = data[sent : sent + room]
                await self.send(frame(http2.DATA, 0, stream, piece))
                sent += len(piece)
                for of in windows:
                    windows[of] -= len(piece)
                continue
            head = await self.reader.readexactly(9)
            kind, _, of = struct.unpack(">BBI", head[3:])
            said = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
            if kind == http2.WINDOW_UPDATE and of in windows:
                windows[of] += int.from_bytes(said, "big")
            if kind == http2.RST_STREAM and of == stream:
                return

    async def listen(self, seconds: float) -> None:
        """Reads what comes, until the server closes or the time is over."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._drain(), seconds)

    async def _drain(self) -> None:
        while await self.reader.read(65_536):
            continue
        self.ended = True


def _headers(stream: int, path: str, *, end: bool = False) -> bytes:
    block = header_block(call_headers(SERVICE + path))
    return frame(http2.HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


def _call(stream: int, path: str, body: bytes) -> bytes:
    data = frame(http2.DATA, END_STREAM, stream, http2.message(body))
    return _headers(stream, path) + data


_WAIT = pb.WaitForRequest(task_ids=["never"]).SerializeToString()
_GET = pb.GetResultRequest(task_id="never").SerializeToString()


def half_call(stream: int) -> bytes:
    """A call whose message has a beginning and no end."""
    half = b"\0" + struct.pack(">I", 20_000) + b"x" * 1_000
    return _headers(stream, "StoreResult") + frame(http2.DATA, 0, stream, half)


async def rapid_reset(peer: Peer) -> None:
    """Calls that are taken back at once, 200 on a connection."""
    cancel = struct.pack(">I", 8)
    rounds = (
        _call(stream, "WaitFor", _WAIT) + frame(http2.RST_STREAM, 0, stream, cancel)
        for stream in range(1, 400, 2)
    )
    await peer.send(START + b"".join(rounds))
    await peer.listen(peer.hold_s)


async def silence(peer: Peer) -> None:
    """A connection that says nothing."""
    await peer.listen(peer.hold_s)


async def silence_after_settings(peer: Peer) -> None:
    """A connection that begins, and then says nothing."""
    await peer.send(START)
    await peer.listen(peer.hold_s)


async def slow_preface(peer: Peer) -> None:
    """The first bytes, one by one."""
    await peer.trickle(PREFACE)


async def slow_headers(peer: Peer) -> None:
    """Headers that go on and on, a few bytes a frame."""
    await peer.send(START + frame(http2.HEADERS, 0, 1, header_block(call_headers(SERVICE))))
    piece = frame(http2.CONTINUATION, 0, 1, header_block([("x-a", "b")]))
    await peer.trickle(piece * 100, len(piece))


async def slow_body(peer: Peer) -> None:
    """A message that comes byte by byte, and never whole."""
    await peer.send(START + _headers(1, "StoreResult"))
    piece = frame(http2.DATA, 0, 1, b"\0")
    await peer.send(frame(http2.DATA, 0, 1, b"\0" + struct.pack(">I", 1_000)))
    await peer.trickle(piece * 100, len(piece))


async def half_messages(peer: Peer) -> None:
    """50 calls that send half of a message and hold on."""
    await peer.send(START + b"".join(half_call(stream) for stream in range(1, 100, 2)))
    await peer.listen(peer.hold_s)


async def large_half_message(peer: Peer) -> None:
    """A part of a message of 10 MiB, four times what comes unasked, and no more."""
    method = peer.dice.choice(("StoreResult", "WaitFor", "Watch"))
    await peer.send(START + _headers(1, method))
    await peer.pour(1, b"\0" + struct.pack(">I", 10 * 2**20) + b"x" * 2**18)
    await peer.listen(peer.hold_s)


async def ping_flood(peer: Peer) -> None:
    """2,000 pings, whose answers nobody reads."""
    await peer.send(START)
    await peer.send(frame(http2.PING, 0, 0, b"12345678") * 2_000)
    await asyncio.sleep(peer.hold_s)


async def settings_flood(peer: Peer) -> None:
    """2,000 settings, whose answers nobody reads."""
    one = frame(http2.SETTINGS, 0, 0, struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, 65_535))
    await peer.send(START + one * 2_000)
    await asyncio.sleep(peer.hold_s)


async def metadata_bomb(peer: Peer) -> None:
    """64 KiB of headers, each its own."""
    block = header_block(call_headers(SERVICE + "GetResult"))
    block += header_block((f"x-{n}", "v" * 100) for n in range(600))
    await peer.send(START + in_frames(block))
    await peer.listen(peer.hold_s)


async def table_bomb(peer: Peer) -> None:
    """A header of 3 KiB put into the table once, and named 5,000 times: 15 MiB of headers."""
    value = b"v" * 3_000
    length = bytes((0x7F,)) + _varint(len(value) - 127)
    entry = b"\x40" + bytes((3,)) + b"x-a" + length + value
    block = header_block(call_headers(SERVICE + "GetResult")) + entry + bytes((0xBE,)) * 5_000
    await peer.send(START + in_frames(block))
    await peer.listen(peer.hold_s)


async def continuation_flood(peer: Peer) -> None:
    """Headers that are continued 5,000 times with nothing."""
    begin = frame(http2.HEADERS, 0, 1, header_block(call_headers(SERVICE + "GetResult")))
    await peer.send(START + begin + frame(http2.CONTINUATION, 0, 1) * 5_000)
    await peer.listen(peer.hold_s)


async def frame_too_large(peer: Peer) -> None:
    """A frame of 16 MiB, where 16 KiB are allowed."""
    head = struct.pack(">I", 2**24 - 1)[1:] + struct.pack(">BBI", http2.DATA, 0, 1)
    await peer.send(START + _headers(1, "StoreResult") + head + b"x" * 100_000)
    await peer.listen(peer.hold_s)


async def lying_length(peer: Peer) -> None:
    """A message said to have 4 GiB, or 17 MiB, of which nothing comes."""
    said = peer.dice.choice((2**32 - 1, 17 * 2**20))
    data = frame(http2.DATA, 0, 1, b"\0" + struct.pack(">I", said) + b"x" * 1_000)
    await peer.send(START + _headers(1, "StoreResult") + data)
    await peer.listen(peer.hold_s)


async def window_of_nothing(peer: Peer) -> None:
    """A hundred calls whose answers may not be sent: the window is 0."""
    closed = frame(http2.SETTINGS, 0, 0, struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, 0))
    calls = (_call(stream, "GetResult", _GET) for stream in range(1, 200, 2))
    await peer.send(PREFACE + closed + b"".join(calls))
    await peer.listen(peer.hold_s)


async def window_too_wide(peer: Peer) -> None:
    """Windows opened beyond what there is, and by nothing."""
    wide = frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1))
    none = frame(http2.WINDOW_UPDATE, 0, 1, struct.pack(">I", 0))
    await peer.send(START + _headers(1, "WaitFor") + none + wide * 2)
    await peer.listen(peer.hold_s)


async def other_protocols(peer: Peer) -> None:
    """HTTP/1.1, the beginning of TLS, and noise."""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + peer.dice.randbytes(500)
    web = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    await peer.send(peer.dice.choice((hello, web, peer.dice.randbytes(4_000))))
    await peer.listen(peer.hold_s)


async def noise_in_frames(peer: Peer) -> None:
    """Frames of every kind and stream, full of noise."""
    await peer.send(START)
    for _ in range(20):
        kind, stream = peer.dice.randrange(12), peer.dice.choice((0, 1, 2, 3, 2**31 - 1))
        noise = peer.dice.randbytes(peer.dice.randrange(100))
        await peer.send(frame(kind, peer.dice.randrange(256), stream, noise))
    await peer.listen(peer.hold_s)


async def priority_flood(peer: Peer) -> None:
    """2,000 priorities of streams that do not exist, each depending on itself."""
    some = (
        frame(http2.PRIORITY, 0, stream, struct.pack(">IB", stream, 1))
        for stream in range(1, 4_001, 2)
    )
    await peer.send(START + b"".join(some))
    await peer.listen(peer.hold_s)


async def many_streams(peer: Peer) -> None:
    """2,000 waits on one connection, where 1,000 are allowed."""
    calls = (_call(stream, "WaitFor", _WAIT) for stream in range(1, 4_000, 2))
    await peer.send(START + b"".join(calls))
    await peer.listen(peer.hold_s)


async def unread_answers(peer: Peer) -> None:
    """Calls whose answers are large, and nobody reads them."""
    stored = success("large", b"x" * 200_000).SerializeToString()
    body = http2.message(stored)
    frames = [frame(http2.DATA, 0, 1, body[at : at + 16_000]) for at in range(0, len(body), 16_000)]
    await peer.send(START + _headers(1, "StoreResult") + b"".join(frames))
    await peer.send(frame(http2.DATA, END_STREAM, 1))
    get = pb.GetResultRequest(task_id="large").SerializeToString()
    await peer.send(b"".join(_call(stream, "GetResult", get) for stream in range(3, 100, 2)))
    await asyncio.sleep(peer.hold_s)


BOMB = gzip.compress(bytes(REQUEST_BYTES_MAX), 9)
"""A thousandth of what it becomes, and that is the largest message taken."""


def bombs(path: str, calls: int) -> bytes:
    """So many calls, each with a compressed message."""
    block = header_block([*call_headers(path), ("grpc-encoding", "gzip")])
    body = http2.message(BOMB, compressed=True)
    pieces = [body[at : at + 16_000] for at in range(0, len(body), 16_000)]
    frames = []
    for stream in range(1, 2 * calls, 2):
        frames.append(frame(http2.HEADERS, END_HEADERS, stream, block))
        frames += [frame(http2.DATA, 0, stream, piece) for piece in pieces]
        frames.append(frame(http2.DATA, END_STREAM, stream))
    return b"".join(frames)


async def inflating_messages(peer: Peer) -> None:
    """Three messages that are small until somebody unpacks them."""
    await peer.send(START + bombs(SERVICE + "StoreResult", 3))
    await peer.listen(peer.hold_s)


async def not_grpc(peer: Peer) -> None:
    """Calls that are none: no method, no path, an unknown encoding, trailers in the middle."""
    headers = call_headers(SERVICE + "GetResult")
    odd = peer.dice.choice(
        (
            headers[1:],
            [(name, value) for name, value in headers if name != ":path"],
            [*headers, ("grpc-encoding", "lzma")],
            [*headers, ("grpc-timeout", "99999999999H")],
            [*headers, ("x-bin", "§ no base64".encode().decode("latin-1")[:20])],
            [*headers, ("content-length", "-1")],
        )
    )
    block = header_block(odd)
    body = frame(http2.DATA, END_STREAM, 1, b"\1" + http2.message(_GET)[1:])
    await peer.send(START + frame(http2.HEADERS, END_HEADERS, 1, block) + body)
    await peer.listen(peer.hold_s)


async def hang_up(peer: Peer) -> None:
    """A reset in the middle of a call."""
    await peer.send(START + _call(1, "WaitFor", _WAIT) + _headers(3, "StoreResult"))
    sock = peer.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _varint(number: int) -> bytes:
    """An integer of HPACK, after its prefix."""
    out = bytearray()
    while number >= 128:
        out.append(number % 128 | 128)
        number //= 128
    return bytes([*out, number])


def in_frames(block: bytes) -> bytes:
    """Headers of stream 1, in as many frames as they need."""
    pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    frames = [frame(http2.HEADERS, 0, 1, pieces[0])]
    frames += [frame(http2.CONTINUATION, 0, 1, piece) for piece in pieces[1:]]
    return b"".join(frames) + frame(http2.CONTINUATION, END_HEADERS, 1)


ATTACKS: dict[str, Callable[[Peer], Awaitable[None]]] = {
    attack.__name__.replace("_", " "): attack
    for attack in (
        rapid_reset,
        silence,
        silence_after_settings,
        slow_preface,
        slow_headers,
        slow_body,
        half_messages,
        large_half_message,
        ping_flood,
        settings_flood,
        metadata_bomb,
        table_bomb,
        continuation_flood,
        frame_too_large,
        lying_length,
        window_of_nothing,
        window_too_wide,
        other_protocols,
        noise_in_frames,
        priority_flood,
        many_streams,
        unread_answers,
        inflating_messages,
        not_grpc,
        hang_up,
    )
}
HUNG_UP = (ConnectionError, asyncio.IncompleteReadError, OSError)
"""What an attack sees of a server that has had enough."""


async def attack(address: str, name: str, dice: random.Random, hold_s: float) -> bool:
    """Does one; whether the server ended the connection."""
    host, _, port = address.rpartition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return True
    peer = Peer(reader, writer, dice, hold_s)
    try:
        # Whatever is never read or never taken: an attack is given up, not waited for.
        await asyncio.wait_for(ATTACKS[name](peer), hold_s + 5.0)
    except HUNG_UP:
        return True
    except asyncio.TimeoutError:
        return False
    finally:
        writer.transport.abort()
    return peer.ended
