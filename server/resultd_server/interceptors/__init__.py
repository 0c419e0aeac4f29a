"""What surrounds every call, one concern a file: functions from handler to handler.

They wrap handlers once, at start, rather than being asked for every call: what is
switched off costs nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

Context = grpc.aio.ServicerContext[bytes, bytes]
Raw = bytes | AsyncIterator[bytes]
Handler = Callable[[Raw, Context], Awaitable[bytes | None]]
"""A raw RPC: bytes or a stream of them in, bytes out; None where it wrote its answers."""

Interceptor = Callable[[str, Handler], Handler]
"""Wraps the handler of the method named."""
