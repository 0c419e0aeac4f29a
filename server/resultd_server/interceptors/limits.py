"""What a server that is going down, or full of streams, refuses."""

from __future__ import annotations

from typing import Protocol

from resultd_server import limits
from resultd_server.errors import Draining, Overloaded
from resultd_server.interceptors import Context, Handler, Interceptor, Raw


class Load(Protocol):
    """What there is to know about the server's state."""

    @property
    def draining(self) -> bool:
        """Whether the server is going down."""

    @property
    def streams(self) -> int:
        """Streams under way."""


def refuse_when_draining(load: Load) -> Interceptor:
    """Sends new calls elsewhere once the server is going down."""

    def intercept(_: str, handler: Handler) -> Handler:
        async def wrapped(raw: Raw, context: Context) -> bytes | None:
            if load.draining:
                raise Draining("The server is going down: try again, another or the next answers.")
            return await handler(raw, context)

        return wrapped

    return intercept


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
