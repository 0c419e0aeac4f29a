"""The event loop of a server process, on which nothing is left of calls that were cancelled.

sys.exit(event_loop.run(serve()))

gRPC's asyncio frees what it allocated for a batch of operations once that has been awaited to a
good end. Of a batch that fails, or whose awaiter is cancelled first, it keeps the memory for ever
(grpc/grpc#43360, unmended in 1.85): 96 to 350 bytes of every call that is cancelled, scattered so
that the pages around them stay as well. Here such batches are carried to their end, whoever still
waits for them; an answer, which gRPC cancels only with its loop, is said to have gone well. Remove
this module when the oldest supported grpcio does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterator
from functools import partial
from types import coroutine
from typing import Any, TypeVar

import uvloop
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # gRPC's own insides, untyped

T = TypeVar("T")

CANCELLABLE = frozenset(
    {
        cygrpc.ReceiveMessageOperation,
        cygrpc.SendInitialMetadataOperation,
        cygrpc.SendMessageOperation,
    }
)
"""What a batch ends with that may be under way when its call is cancelled."""

_execute_batch = cygrpc.execute_batch


class Loop(uvloop.Loop):
    """uvloop's, whose `create_future` can be another for a moment: an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        # There from the start: to change an entry costs less than to add one and delete it.
        vars(self)["create_future"] = super().create_future


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs the work of a process to its end, like `asyncio.run`."""
    cygrpc.execute_batch = execute_batch
    return uvloop.run(work, loop_factory=Loop)


def execute_batch(
    call: object, operations: tuple[object, ...], loop: object
) -> Coroutine[Any, Any, None]:
    """Does what gRPC's does, and frees whatever becomes of it."""
    if type(loop) is Loop:
        last = type(operations[-1])
        if last is cygrpc.SendStatusFromServerOperation:
            return _answer(call, operations, loop)
        if last in CANCELLABLE:
            return _carry(call, operations, loop)
    return _execute_batch(call, operations, loop)  # type: ignore[no-any-return]  # untyped


async def _carry(call: object, operations: tuple[object, ...], loop: Loop) -> None:
    ended: asyncio.Future[None] = loop.create_future()
    rest = _execute_batch(call, operations, loop)
    batch = BatchFuture(ended, rest)
    _begin(rest, loop, batch.itself)
    await ended


@coroutine
def _answer(
    call: object, operations: tuple[object, ...], loop: Loop
) -> Generator[asyncio.Future[None], None, None]:
    """A call's last batch, which gRPC does not cancel: it fails where the peer has gone."""
    rest = _execute_batch(call, operations, loop)
    yield _begin(rest, loop, partial(AnswerFuture, loop=loop))
    _end(rest)


def _begin(
    rest: Coroutine[Any, Any, None], loop: Loop, create_future: Callable[[], object]
) -> asyncio.Future[None]:
    """Starts a batch; it waits for what `create_future` gives, and this is what it yields."""
    attributes = vars(loop)
    own = attributes["create_future"]
    attributes["create_future"] = create_future
    try:
        return rest.send(None)  # type: ignore[no-any-return]  # untyped
    finally:
        attributes["create_future"] = own


def _end(rest: Coroutine[Any, Any, None]) -> None:
    """Lets gRPC free a batch that is done."""
    try:
        rest.send(None)
    except StopIteration:
        return
    raise RuntimeError("gRPC's execute_batch awaits something more")


class AnswerFuture(asyncio.Future[None]):
    """Sent, or for nobody: either way the call is over, and its batch is freed."""

    def set_exception(self, _: type | BaseException) -> None:
        """The peer has gone."""
        self.set_result(None)


class BatchFuture:
    """What gRPC awaits in place of a future: takes a failure for an end like any other."""

    __slots__ = ("_ended", "_rest")

    def __init__(self, ended: asyncio.Future[None], rest: Coroutine[Any, Any, None]) -> None:
        """`rest`: gRPC's, which awaits this and then frees; `ended`: for who waits, if any."""
        self._ended = ended
        self._rest: Coroutine[Any, Any, None] | None = rest

    def itself(self) -> BatchFuture:
        """What the loop answers when it is asked for a future."""
        return self

    def __await__(self) -> Iterator[BatchFuture]:
        """Leaves the rest waiting."""
        yield self

    def cancelled(self) -> bool:
        """Never: the operations are gRPC's until it is done with them."""
        return False

    def set_result(self, _: None) -> None:
        """The operations are done."""
        self._free()
        if not self._ended.done():
            self._ended.set_result(None)

    def set_exception(self, error: Exception) -> None:
        """They failed: freed all the same, and then who waits is told."""
        self._free()
        if not self._ended.done():
            self._ended.set_exception(error)

    def _free(self) -> None:
        rest, self._rest = self._rest, None  # it holds this: no work for the garbage collector
        assert rest is not None, "a batch ends once"
        _end(rest)
