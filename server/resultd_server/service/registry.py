"""From a servicer to grpc's handlers, with raw bytes at the edge.

So nothing is parsed or serialized more often than it must be, and malformed bytes get
an answer of ours.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from resultd_server import limits
from resultd_server.acceptance import Method, Rpc
from resultd_server.errors import MalformedMessage, Overloaded
from resultd_server.interceptors import Context, Handler, Interceptor, Raw
from resultd_server.interceptors.auth import Identify
from resultd_server.service import elements

NO_ROOM = "There was no room for another request: try later."
LATE = (
    f"The request did not come whole, for {limits.REQUEST_S:g} s or when memory was short: try "
    "later, with less at once where the line is slow."
)


class Call(NamedTuple):
    """One RPC under way."""

    method: str
    namespace: str
    context: Context


def _never() -> bool:
    return False


class Interceptors(NamedTuple):
    """What goes around handlers, the outermost first: those of all, then those of their kind.

    `unary_full`, `streams_full`: whether calls of the kind are to be refused unread.
    """

    of_all: Sequence[Interceptor]
    of_unary: Sequence[Interceptor] = ()
    of_streams: Sequence[Interceptor] = ()
    unary_full: Callable[[], bool] = _never
    streams_full: Callable[[], bool] = _never


def methods(
    service: ServiceDescriptor,
    servicer: object,
    interceptors: Interceptors,
    identify: Callable[[str], Identify],
) -> list[Method]:
    """Serves every method of a service by the servicer's method of its snake-case name.

    Unary methods take (request, call) and return a message or its bytes; streaming ones
    write to `call.context` and return None; those with a stream of requests get an
    async iterator of parsed ones. `identify`: who checks a method's calls and tells their
    namespace.
    """
    found = []
    for method in service.methods:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
        handler = _adapt(method, getattr(servicer, name), identify(method.full_name))
        unary = not (method.server_streaming or method.client_streaming)
        kind = interceptors.of_unary if unary else interceptors.of_streams
        for interceptor in reversed((*interceptors.of_all, *kind)):
            handler = interceptor(method.full_name, handler)
        found.append(
            Method(
                service.full_name,
                method.name,
                _rpc(method, handler),
                interceptors.unary_full if unary else interceptors.streams_full,
                _refusing(method.full_name, interceptors, NO_ROOM),
                _refusing(method.full_name, interceptors, LATE),
            )
        )
    return found


def _refusing(method: str, interceptors: Interceptors, sentence: str) -> Rpc:
    """What refuses a call unread: as if requests were a stream, for gRPC then waits for none."""

    async def refuse(_: Raw, __: Context) -> bytes | None:
        raise Overloaded(sentence, unread=True)

    handler: Handler = refuse
    for interceptor in reversed(interceptors.of_all):
        handler = interceptor(method, handler)
    return grpc.stream_unary_rpc_method_handler(handler)


def _rpc(method: MethodDescriptor, handler: Handler) -> Rpc:
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(handler)
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(handler)
    return grpc.unary_unary_rpc_method_handler(handler)


def _adapt(
    method: MethodDescriptor, serve: Callable[[Any, Call], Any], identify: Identify
) -> Handler:
    message = message_factory.GetMessageClass(method.input_type)
    name = method.full_name

    async def handler(raw: Raw, context: Context) -> bytes | None:
        call = Call(name, identify(context), context)
        if isinstance(raw, bytes):
            answer = await serve(_parse(message, raw), call)
        else:
            answer = await serve(_parse_each(message, raw), call)
        return answer.SerializeToString() if isinstance(answer, Message) else answer

    return handler


async def _parse_each(message: type[Message], raws: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    async for raw in raws:
        yield _parse(message, raw)


def _parse(message: type[Message], raw: bytes) -> Message:
    elements.check(message.DESCRIPTOR, raw)
    try:
        return message.FromString(raw)
    except DecodeError as error:
        raise MalformedMessage(
            f"The bytes are not a {message.DESCRIPTOR.full_name}: {error}. Use the protocol's "
            "generated messages, and valid UTF-8 in strings."
        ) from None
