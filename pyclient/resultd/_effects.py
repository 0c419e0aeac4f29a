"""Behaviour as generators: an operation yields what it needs done and gets the outcome.

An operation is written once, as a generator of effects, and driven by two thin shells: one
calls grpc and blocks, the other awaits grpc.aio. Retries, resume, waiting and decoding live
in operations; threads and tasks live in shells.

Rules for operations: catch narrowly, clean up in `finally` without yielding (cancelling a
stream and leaving a wait are plain calls that never block), and never loop without an effect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from resultd.v1 import result_service_pb2

T = TypeVar("T")

# Effects are not changed once they are made, and told apart by what they are: frozen ones, with
# equality and a hash, would take longer to define at every import, and to make at every call.


class Mailbox(Protocol):
    """Where a background thread or task leaves things for whoever waits."""

    def put(self, item: Any) -> None:
        """Leave an item. Never blocks, takes no lock, may be called from a finaliser."""


class Stream(Protocol):
    """An open streaming call. What arrives is in `mailbox`, at most a few frames ahead."""

    mailbox: Mailbox
    generation: int

    def send(self, request: Message) -> None:
        """Send a message on a bidirectional stream. Never blocks."""

    def taken(self) -> None:
        """Say that a frame was taken from the mailbox, so that the next may be read."""

    def cancel(self) -> None:
        """End the call, for good. Never blocks, may be repeated; others see to its end."""


@dataclass(eq=False)
class Call:
    """Make a unary call; gives the response, or raises a `ResultdError`.

    `patient`: wait for a connection, where there is none, as long as `timeout` lasts.
    """

    method: str
    request: Message
    timeout: float
    patient: bool = False


@dataclass(eq=False)
class Report:
    """Store a report, in a call with whatever else is to be stored now; gives its answer."""

    request: result_service_pb2.StoreResultRequest
    timeout: float
    patient: bool = False


@dataclass(eq=False)
class Open:
    """Open a streaming call; `request` is None for one that also sends a stream.

    `patient`: wait for a connection where there is none.
    """

    method: str
    request: Message | None
    patient: bool = False


@dataclass(eq=False)
class Receive:
    """Wait up to `timeout` seconds (None: for ever) for items; gives [] when none came."""

    mailbox: Mailbox
    timeout: float | None


@dataclass(eq=False)
class Reconnect:
    """Give up the connection a stream fell silent on, unless that was done already.

    A network that swallows everything gives no end to a connection either: a new stream on
    it would be as silent.
    """

    generation: int


@dataclass(eq=False)
class Sleep:
    """Do nothing for some seconds."""

    seconds: float


@dataclass(eq=False)
class Emit:
    """Hand a value to the user who iterates over this operation."""

    value: Any


Effect = Call | Report | Open | Receive | Reconnect | Sleep | Emit
Op = Generator[Effect, Any, T]


def run(op: Op[T], handle: Callable[[Effect], Any]) -> T:
    """Drive an operation to its end, blocking."""
    try:
        effect = next(op)
        while True:
            try:
                outcome = handle(effect)
            except BaseException as error:  # noqa: BLE001 (handed on, Ctrl-C too)
                effect = op.throw(error)
            else:
                effect = op.send(outcome)
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        op.close()  # where Ctrl-C came between the operation and its shell


async def run_async(op: Op[T], handle: Callable[[Effect], Coroutine[Any, Any, Any]]) -> T:
    """Drive an operation to its end, awaiting."""
    try:
        effect = next(op)
        while True:
            try:
                outcome = await handle(effect)
            except BaseException as error:  # noqa: BLE001 (handed on, cancellation too)
                effect = op.throw(error)
            else:
                effect = op.send(outcome)
    except StopIteration as stop:
        value: T = stop.value
        return value


def iterate(op: Op[None], handle: Callable[[Effect], Any]) -> Iterator[Any]:
    """Drive an operation that emits values; closing the iterator closes the operation."""
    step: Callable[[], Effect] = op.__next__
    try:
        while True:
            try:
                effect = step()
            except StopIteration:
                return
            if isinstance(effect, Emit):
                yield effect.value
                step = op.__next__
                continue
            try:
                step = partial(op.send, handle(effect))
            except BaseException as error:  # noqa: BLE001 (handed on)
                step = partial(op.throw, error)
    finally:
        # It may hold an error, whose traceback holds this frame. (A function made here would have
        # a frame there itself.)
        del step
        op.close()


async def iterate_async(
    op: Op[None], handle: Callable[[Effect], Coroutine[Any, Any, Any]]
) -> AsyncIterator[Any]:
    """Drive an operation that emits values; closing the iterator closes the operation."""
    step: Callable[[], Effect] = op.__next__
    try:
        while True:
            try:
                effect = step()
            except StopIteration:
                return
            if isinstance(effect, Emit):
                yield effect.value
                step = op.__next__
                continue
            try:
                step = partial(op.send, await handle(effect))
            except BaseException as error:  # noqa: BLE001 (handed on)
                step = partial(op.throw, error)
    finally:
        del step  # as in `iterate`
        op.close()


def each(op: Op[None], use: Callable[[Any], None]) -> Op[None]:
    """Drive an operation that emits values inside another: `use` is called with each."""

    def used(value: Any) -> Iterable[Any]:
        use(value)
        return ()

    return spread(op, used)


def spread(op: Op[None], change: Callable[[Any], Iterable[Any]]) -> Op[None]:
    """Emit, for each value an operation emits, all values of `change(value)`."""
    step: Callable[[], Effect] = op.__next__
    try:
        while True:
            try:
                effect = step()
            except StopIteration:
                return
            if isinstance(effect, Emit):
                for value in change(effect.value):
                    yield Emit(value)
                step = op.__next__
                continue
            try:
                step = partial(op.send, (yield effect))
            except BaseException as error:  # noqa: BLE001 (handed on: the operation cleans up)
                step = partial(op.throw, error)
    finally:
        del step  # as in `iterate`
        op.close()
