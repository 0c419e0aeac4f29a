"""What a server that is going down, or full of streams, refuses."""

from __future__ import annotations

import asyncio
from typing import Protocol

from resultd_server import limits
from resultd_server.errors import Draining, FieldInvalid, Overloaded
from resultd_server.interceptors import Context, Handler, Interceptor, Raw

_MOMENT_S = 0.05


class Admission:
    """The door: counts the calls under way, and once closed lets no more in."""

    def __init__(self) -> None:
        self.closed = False
        self.calls = 0
        self.refused = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def intercept(self, _: str, handler: Handler) -> Handler:
        """Sends new calls elsewhere once the door is closed."""

        async def wrapped(raw: Raw, context: Context) -> bytes | None:
            if self.closed:
                self.refused += 1
                raise Draining("The server is going down: try again, another or the next answers.")
            self.calls += 1
            self._empty.clear()
            try:
                return await handler(raw, context)
            finally:
                self.calls -= 1
                if not self.calls:
                    self._empty.set()

        return wrapped

    async def empty(self) -> None:
        """Until no call is under way."""
        await self._empty.wait()

    async def quiet(self) -> None:
        """Until nobody has knocked at the closed door for a moment."""
        refused = -1
        while refused != self.refused:
            refused = self.refused
            await asyncio.sleep(_MOMENT_S)


class Load(Protocol):
    """What there is to know about the server's state."""

    @property
    def streams(self) -> int:
        """Streams under way."""


def bound_streams(load: Load, maximum: int = limits.STREAMS_MAX) -> Interceptor:
    """Refuses streams beyond what memory is planned for."""

    def intercept(_: str, handler: Handler) -> Handler:
        async def wrapped(raw: Raw, context: Context) -> bytes | None:
            if load.streams >= maximum:
                raise Overloaded(
                    f"{maximum} streams are open: wait for many ids on one stream, or try later."
                )
            return await handler(raw, context)

        return wrapped

    return intercept


def bound_bytes(maximum: int) -> Interceptor:
    """Refuses requests that are larger, before they are parsed."""

    def intercept(_: str, handler: Handler) -> Handler:
        async def wrapped(raw: Raw, context: Context) -> bytes | None:
            if isinstance(raw, bytes) and len(raw) > maximum:
                raise FieldInvalid("request", f"has {len(raw)} bytes", f"use at most {maximum}")
            return await handler(raw, context)

        return wrapped

    return intercept


class CallBound:
    """Refuses unary calls beyond what the server answers in good time, by number and bytes.

    Not for streams: one holds its place for hours, and they have a bound of their own.
    """

    def __init__(
        self, maximum: int = limits.CALLS_MAX, bytes_max: int = limits.CALLS_BYTES_MAX
    ) -> None:
        self._maximum = maximum
        self._bytes_max = bytes_max
        self._calls = 0
        self._bytes = 0

    def full(self) -> bool:
        """Whether there may be no room for another request: then it need not be read."""
        room = max(0, self._bytes_max - limits.REQUEST_BYTES_MAX)
        return self._calls >= self._maximum or self._bytes > room

    def intercept(self, _: str, handler: Handler) -> Handler:
        """Counts calls in and out."""

        async def wrapped(raw: Raw, context: Context) -> bytes | None:
            assert isinstance(raw, bytes)  # of unary calls alone
            size_bytes = len(raw)
            full = self._calls >= self._maximum or self._bytes + size_bytes > self._bytes_max
            if full and self._calls:
                raise Overloaded(
                    f"{self._calls} calls with {self._bytes} bytes are under way: try later."
                )
            self._calls += 1
            self._bytes += size_bytes
            try:
                return await handler(raw, context)
            finally:
                self._calls -= 1
                self._bytes -= size_bytes

        return wrapped
