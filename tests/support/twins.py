"""The same calls to two servers, and whether they are answered alike.

One server has many tenants, its twin has this one alone: whatever differs between their answers
comes from another tenant. Times are not compared, nor words that are opaque.

side = Side(channel, metadata)
answer = await side.ask(method, raw)          # unary
told = await side.listen(method, raw)         # a stream's first frames
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from resultd.v1 import stream_pb2
from tests.support import request_fields
from tests.support.access import WRITE_RACE
from tests.support.raw_calls import Metadata
from tests.support.refusals import DETAILS_KEY

ANSWER_S = 30.0
NOT_COMPARED = frozenset({"next_page_token", "after", "store_id", "engine"})
"""What servers may answer differently, beside times: whether it is there is compared."""

is_repeated = functools.cache(request_fields.is_repeated)
_LAST = (stream_pb2.CONTROL_KIND_SYNCED, stream_pb2.CONTROL_KIND_END)


@dataclass
class Answer:
    """How a call ended, and what it answered.

    `said`: what of it must be the same on both servers. `raw`: all bytes, for whoever looks for
    something in them. `message`: of a unary call that was not refused. `afters`: where to resume,
    of all that is in it.
    """

    code: grpc.StatusCode
    said: Any
    raw: bytes
    message: Any = None

    @property
    def afters(self) -> list[bytes]:
        """In the order they stand in."""
        return [] if self.message is None else list(_afters_of(self.message))


@dataclass
class Told:
    """What a stream has said, by the group its frames belong to.

    `items`: events, revocations and controls in their order. `last`: what each frame says anew.
    `afters`: where to resume.
    """

    items: dict[str, list[tuple[str, bytes]]] = field(default_factory=lambda: defaultdict(list))
    last: dict[str, dict[str, bytes]] = field(default_factory=lambda: defaultdict(dict))
    afters: dict[str, bytes] = field(default_factory=dict)
    raw: bytes = b""
    synced: bool = False
    ended: Answer | None = None

    @property
    def said(self) -> Any:
        """What must be the same on both servers."""
        return dict(self.items), dict(self.last), set(self.afters), self.ended and self.ended.said

    def take(self, frame: Any, raw: bytes) -> None:
        """One frame more; a heartbeat says nothing."""
        self.raw += raw
        control: Any = getattr(frame, "control", None)
        if control is not None and control.kind == stream_pb2.CONTROL_KIND_HEARTBEAT:
            return
        about = getattr(frame, "group_id", "")
        for part, value in frame.ListFields():
            if part.name == "after":
                self.afters[about] = value
            elif is_repeated(part):
                self.items[about] += [(part.name, comparable(each)) for each in value]
            elif part.name == "control":
                self.synced = self.synced or control.kind in _LAST
                self.items[about].append((part.name, comparable(value)))
            else:
                plain = comparable(value) if isinstance(value, Message) else repr(value).encode()
                self.last[about][part.name] = plain


class Side:
    """One server, as a tenant sees it."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._channel = channel
        self._metadata = metadata
        self._callables: dict[str, Any] = {}

    def as_if(self, metadata: Metadata) -> Side:
        """The same server, with something else said."""
        return Side(self._channel, metadata)

    async def ask(self, method: MethodDescriptor, raw: bytes) -> Answer:
        """A unary call."""
        call = self._callable(method)(raw, metadata=self._metadata, timeout=ANSWER_S)
        try:
            body: bytes = await call
        except grpc.aio.AioRpcError as error:
            return _refused(error)
        message = message_factory.GetMessageClass(method.output_type).FromString(body)
        trailing = _pairs(await call.trailing_metadata())
        code = grpc.StatusCode.OK
        return Answer(code, (code.name, comparable(message), trailing), body, message)

    async def listen(self, method: MethodDescriptor, raw: bytes) -> Listener:
        """A stream, read until it has said all that counted when it began, or ends."""
        while True:
            listener = Listener(method, self._open(method, raw))
            await listener.begin(raw)
            if listener.told.ended is None or not _lost_its_status(listener.told.ended):
                return listener

    def _open(self, method: MethodDescriptor, raw: bytes) -> Any:
        if method.client_streaming:
            return self._callable(method)(metadata=self._metadata)
        return self._callable(method)(raw, metadata=self._metadata)

    def _callable(self, method: MethodDescriptor) -> Any:
        found = self._callables.get(method.full_name)
        if found is None:
            assert method.containing_service is not None
            path = f"/{method.containing_service.full_name}/{method.name}"
            kind = "stream" if method.client_streaming else "unary"
            answers = "stream" if method.server_streaming else "unary"
            found = getattr(self._channel, f"{kind}_{answers}")(path)
            self._callables[method.full_name] = found
        return found


class Listener:
    """A stream under way."""

    def __init__(self, method: MethodDescriptor, call: Any) -> None:
        self.told = Told()
        self._method = method
        self._call = call
        self._output = message_factory.GetMessageClass(method.output_type)

    async def begin(self, raw: bytes) -> None:
        """Asks, and reads until what counted has been told."""
        if self._method.client_streaming:
            # Where it is refused already, reading says why.
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await self._call.write(raw)
        await self._read(lambda: self.told.synced)

    async def hear_of(self, word: str) -> None:
        """Reads until something is said of it, or the stream ends."""
        sought = word.encode()

        def heard() -> bool:
            return any(sought in said for each in self.told.items.values() for _, said in each)

        await self._read(heard)

    async def _read(self, enough: Any) -> None:
        async def until_enough() -> None:
            while self.told.ended is None and not enough():
                await self._read_one()

        await asyncio.wait_for(until_enough(), ANSWER_S)

    async def _read_one(self) -> None:
        try:
            frame = await self._call.read()
        except grpc.aio.AioRpcError as error:
            self.told.ended = _refused(error)
            return
        if frame is grpc.aio.EOF:
            code = await self._call.code()
            pairs = _pairs(await self._call.trailing_metadata())
            self.told.ended = Answer(code, (code.name, await self._call.details(), pairs), b"")
            return
        self.told.take(self._output.FromString(frame), frame)

    def close(self) -> None:
        """Hangs up."""
        self._call.cancel()


def comparable(message: Message) -> bytes:
    """A message's bytes without its times and opaque words: whether they are there stays."""
    stripped = type(message)()
    stripped.CopyFrom(message)
    _strip(stripped)
    return stripped.SerializeToString(deterministic=True)


def parts_of(message: Any) -> Iterator[Any]:
    """The messages in a message, as they are; not those in maps."""
    for part, value in message.ListFields():
        if part.message_type is None or part.message_type.GetOptions().map_entry:
            continue
        if is_repeated(part):
            yield from value
        else:
            yield value


def _strip(message: Any) -> None:
    if message.DESCRIPTOR.full_name == "google.protobuf.Timestamp":
        message.Clear()
        return
    for part, value in message.ListFields():
        if part.name in NOT_COMPARED:
            setattr(message, part.name, b"-" if isinstance(value, bytes) else "-")
    for each in parts_of(message):
        _strip(each)


def _afters_of(message: Any) -> Iterator[bytes]:
    if after := getattr(message, "after", b""):
        yield after
    for each in parts_of(message):
        yield from _afters_of(each)


def _refused(error: grpc.aio.AioRpcError) -> Answer:
    pairs = _pairs(error.trailing_metadata())
    said = (error.code().name, error.details(), pairs)
    return Answer(error.code(), said, repr(said).encode())


def _pairs(metadata: Any) -> list[tuple[str, Any]]:
    pairs = ((key, _details(value) if key == DETAILS_KEY else value) for key, value in metadata)
    return sorted(pairs, key=lambda pair: pair[0])


def _details(raw: bytes) -> Any:
    """A status taken apart: maps have no order."""
    status = status_pb2.Status.FromString(raw)
    found = []
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        known = next(each for each in (info, retry) if detail.Unpack(each))
        found.append((detail.type_url, comparable(known)))
    return status.code, status.message, found


def _lost_its_status(answer: Answer) -> bool:
    return bool(answer.said[1] == WRITE_RACE)
