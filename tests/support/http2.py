"""HTTP/2 by hand: requests that no gRPC client would send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9
END_STREAM, END_HEADERS = 1, 4
ACK = 1
INITIAL_WINDOW_SIZE = 4
STREAM = 1
ANSWER_S = 10.0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Headers, each a literal that is not indexed."""
    block = b""
    for name, value in headers:
        assert max(len(name), len(value)) < 127
        block += b"\0" + bytes((len(name),)) + name.encode()
        block += bytes((len(value),)) + value.encode()
    return block


def call_headers(
    path: str, content_type: str | None = "application/grpc", method: str = "POST"
) -> list[tuple[str, str]]:
    """What a call begins with."""
    headers = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x")]
    headers.append(("te", "trailers"))
    if content_type is not None:
        headers.append(("content-type", content_type))
    return headers


def message(body: bytes, *, compressed: bool = False) -> bytes:
    """A gRPC message, as it is or said to be compressed."""
    return bytes((compressed,)) + struct.pack(">I", len(body)) + body


def request(
    path: str, body: bytes, content_type: str | None, method: str = "POST", *, framed: bool = True
) -> bytes:
    """A whole request: its body a gRPC message, or as it is."""
    headers = call_headers(path, content_type, method)
    return (
        PREFACE
        + frame(SETTINGS, 0, 0)
        + frame(HEADERS, END_HEADERS, STREAM, header_block(headers))
        + frame(DATA, END_STREAM, STREAM, message(body) if framed else body)
    )


def answer(address: str, raw: bytes) -> set[int]:
    """The kinds of frames that came in answer to the stream, until it or the connection ended;
    with PING, if the server sent any of its own.
    """
    host, _, port = address.rpartition(":")
    kinds: set[int] = set()
    with (
        socket.create_connection((host, int(port)), ANSWER_S) as connection,
        connection.makefile("rb") as reader,
    ):
        connection.sendall(raw)
        while len(head := reader.read(9)) == 9:
            length = int.from_bytes(head[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            reader.read(length)
            if stream == STREAM or kind == GOAWAY or (kind == PING and not flags & ACK):
                kinds.add(kind)
            over = kind in (RST_STREAM, GOAWAY) or (kind in (HEADERS, DATA) and flags & END_STREAM)
            if over and (stream == STREAM or kind == GOAWAY):
                break
    return kinds
