"""The event loop of a server process, on which nothing is left of calls that were cancelled.

sys.exit(event_loop.run(serve()))

gRPC's asyncio frees what it allocated for a batch of operations once that has been awaited to a
good end. Of a batch that fails, or whose awaiter is cancelled first, it keeps the memory for ever
(grpc/grpc#43360, unmended in 1.85): 96 to 350 bytes of every call that is cancelled, scattered so
that the pages around them stay as well. Here such batches are carried to their end, whoever still
waits for them. Remove this module when the oldest supported grpcio does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import uvloop
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # gRPC's own insides, untyped

T = TypeVar("T")

ENDANGERED = frozenset(
    {
        cygrpc.ReceiveMessageOperation,
        cygrpc.SendInitialMetadataOperation,
        cygrpc.SendMessageOperation,
    }
)
"""What a batch ends with that may be under way when its call is cancelled; one that ends with the
status, an answer, gRPC does to its end."""

_execute_batch = cygrpc.execute_batch


class Loop(uvloop.Loop):
    """uvloop's, with room for attributes: `_carry` puts one there."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs the work of a process to its end, like `asyncio.run`."""
    cygrpc.execute_batch = execute_batch
    return uvloop.run(work, loop_factory=Loop)


def execute_batch(
    call: object, operations: tuple[object, ...], loop: object
) -> Coroutine[Any, Any, None]:
    """Does what gRPC's does, and frees whatever becomes of it."""
    if type(operations[-1]) in ENDANGERED and type(loop) is Loop:
        return _carry(call, operations, loop)
    return _execute_batch(call, operations, loop)  # type: ignore[no-any-return]  # untyped


async def _carry(call: object, operations: tuple[object, ...], loop: Loop) -> None:
    ended: asyncio.Future[None] = loop.create_future()
    rest = _execute_batch(call, operations, loop)
    batch = Batch(ended, rest)
    attributes = vars(loop)
    attributes["create_future"] = batch.itself
    try:
        rest.send(None)
    finally:
        del attributes["create_future"]
    await ended


class Batch:
    """What gRPC awaits in place of a future: takes a failure for an end like any other."""

    __slots__ = ("_ended", "_rest")

    def __init__(self, ended: asyncio.Future[None], rest: Coroutine[Any, Any, None]) -> None:
        """`rest`: gRPC's, which awaits this and then frees; `ended`: for who waits, if any."""
        self._ended = ended
        self._rest: Coroutine[Any, Any, None] | None = rest

    def itself(self) -> Batch:
        """What the loop answers when it is asked for a future."""
        return self

    def __await__(self) -> Iterator[Batch]:
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
        try:
            rest.send(None)
        except StopIteration:
            return
        raise RuntimeError("gRPC's execute_batch awaits something more")
