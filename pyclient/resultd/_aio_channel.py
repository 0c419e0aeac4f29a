"""The asyncio shell: one lazy channel per client and event loop.

It does what `_channel` and `_stream` do for threads. A grpc.aio channel belongs to its loop and
cannot be closed from a fork hook: a process that is going to fork closes its asyncio clients
first. A child that inherits one anyway opens a channel of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from resultd import _channel, _status, _stubs
from resultd._credential import Credential, Metadata
from resultd._effects import (
    Call,
    Effect,
    Mailbox,
    Op,
    Open,
    Receive,
    Reconnect,
    Report,
    Sleep,
    run_async,
)
from resultd._reporter import LoopReporter
from resultd._stream import AHEAD
from resultd._url import Url
from resultd._watcher import Watcher
from resultd.errors import ClientClosedError, ResultdError, UnavailableError


class LoopMailbox:
    """A mailbox for tasks of one loop; may be filled from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._items: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: Any) -> None:
        """Leave an item."""
        self._items.append(item)
        if threading.get_ident() == self._thread:
            self._wake()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    async def receive(self, timeout: float | None) -> list[Any]:
        """Wait for items and take all there are; [] if none came in time."""
        if not self._items:
            await self._wait(timeout)
        items = list(self._items)
        self._items.clear()
        return items

    async def _wait(self, seconds: float | None) -> None:
        # By hand: asyncio.wait_for can swallow a cancellation before Python 3.12.
        self._waiter = self._loop.create_future()
        timer = None if seconds is None else self._loop.call_later(seconds, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class LoopStream:
    """A streaming call read by a task of its own, at most `AHEAD` frames ahead."""

    def __init__(
        self,
        start: Callable[[Any], Any],
        request: Message | None,
        alive: set[LoopStream],
        loop: asyncio.AbstractEventLoop,
        generation: int,
        explain: Callable[[grpc.RpcError], ResultdError],
    ) -> None:
        self.generation = generation
        self.mailbox = LoopMailbox(loop)
        self._room = asyncio.Semaphore(AHEAD)
        self._requests = LoopMailbox(loop)
        self._alive = alive
        self._explain = explain
        self._call: Any = start(request)
        alive.add(self)
        self._end: ResultdError = UnavailableError("the stream ended without saying why")
        # Not an iterator of requests: gRPC leaves the task that would read it behind.
        self._writer = loop.create_task(self._write()) if request is None else None
        self.reader: asyncio.Task[None] | None = loop.create_task(
            self._read(), name="resultd-stream"
        )
        # Not at the task's end: a task that is cancelled before its first step has none.
        self.reader.add_done_callback(self._ended)

    def send(self, request: Message) -> None:
        """Send a message."""
        self._requests.put(request)

    def taken(self) -> None:
        """Make room for the next frame."""
        self._room.release()

    def cancel(self) -> None:
        """End the call."""
        if self.reader is not None:
            self._call.cancel()
            self.reader.cancel()

    async def _write(self) -> None:
        # An end that is found here the reader hears of too, and says why.
        call = self._call
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                for request in await self._requests.receive(None):
                    await call.write(request)

    async def _read(self) -> None:
        try:
            while True:
                await self._room.acquire()
                frame = await self._call.read()
                if frame is grpc.aio.EOF:
                    return
                self.mailbox.put(frame)
        except grpc.aio.AioRpcError as error:
            self._end = self._explain(error)

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._call.cancel()  # abandoned calls of grpc.aio live on
        if self._writer is not None:
            self._writer.cancel()
        # What ended the tasks holds their frames, which hold this: gRPC's threads would stay,
        # and come upon a loop that is closed, until somebody collects garbage.
        self.reader = self._writer = self._call = None
        self._alive.discard(self)
        self.mailbox.put(self._end)


class AioEndpoint:
    """A server, as the tasks of one loop see it."""

    def __init__(self, url: Url) -> None:
        self.url = url
        self._loop: asyncio.AbstractEventLoop | None = None
        self._new_state()

    def _new_state(self) -> None:
        self._pid = os.getpid()
        self._channel: grpc.aio.Channel | None = None
        self._credential = Credential(self.url)
        self._methods: dict[str, Any] = {}
        self._streams: set[LoopStream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._generation = 0
        self._closed = False
        self._reporter = LoopReporter(self._call, self._start)
        self.watcher = Watcher(self, self.url.heartbeat)

    def enter(self) -> AioEndpoint:
        """Make sure that this is the loop the channel belongs to.

        Raises:
            RuntimeError: it belongs to another one that is still open.
        """
        loop = asyncio.get_running_loop()
        if loop is self._loop and self._pid == os.getpid():
            return self
        if self._loop is not None and not self._loop.is_closed() and self._pid == os.getpid():
            raise RuntimeError("an asyncio client belongs to one event loop: make one for each")
        if self._loop is not None:
            self._new_state()  # that loop is gone, with all that was open in it
        self._loop = loop
        return self

    async def handle(self, effect: Effect) -> Any:
        """Do what an operation asks for."""
        if isinstance(effect, Call):
            return await self._call(effect)
        if isinstance(effect, Report):
            return await self._reporter.store(effect)
        if isinstance(effect, Receive):
            assert isinstance(effect.mailbox, LoopMailbox)
            return await effect.mailbox.receive(effect.timeout)
        if isinstance(effect, Open):
            return self._open(effect)
        if isinstance(effect, Reconnect):
            return self._reconnect(effect.generation)
        assert isinstance(effect, Sleep)
        return await asyncio.sleep(effect.seconds)

    def new_mailbox(self) -> Mailbox:
        """Return a mailbox for tasks of this loop."""
        return LoopMailbox(self._running())

    def spawn(self, op: Op[None], failed: Callable[[BaseException], None]) -> None:
        """Drive an operation in a task; `failed` is told if that is cancelled."""
        task = self._start(run_async(op, self.handle))
        self._watching.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._watching.discard(task)
            if task.cancelled():  # perhaps before its first step: the operation saw nothing of it
                failed(asyncio.CancelledError())

        task.add_done_callback(ended)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._running().create_task(work, name="resultd")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def forbid_waiting(self) -> None:
        """Refuse to wait in the task that everybody who waits depends on."""
        if asyncio.current_task() in self._watching:
            raise RuntimeError("waiting inside a then() callback would wait for ever")

    async def close(self) -> None:
        """Close streams and channel; whoever waits is told."""
        if self._loop is None or self._loop is not asyncio.get_running_loop():
            return
        self.watcher.fail_all(ClientClosedError())
        streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        tasks = [
            *self._tasks,
            *self._closing,
            *(stream.reader for stream in streams if stream.reader),
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._closed = True  # not before: our own tasks were cancelled indeed
        channel, self._channel = self._channel, None
        self._methods = {}  # which keep gRPC's threads until they are collected
        if channel is not None:
            await channel.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None, "enter() comes first"
        return self._loop

    async def _call(self, effect: Call) -> Any:
        method = self._method(effect.method)
        metadata = self._credential.metadata
        generation = self._generation
        try:
            return await method(
                effect.request,
                timeout=effect.timeout,
                metadata=metadata,
                wait_for_ready=effect.patient,
            )
        except asyncio.CancelledError:
            # So grpc.aio ends the calls of a channel that is closed, too.
            if self._closed and not _is_cancelled():
                raise ClientClosedError from None
            raise
        except grpc.aio.AioRpcError as error:
            found = self._explain(error, metadata)
            if found.code == "DEADLINE_EXCEEDED" and self.url.is_silence(effect.timeout):
                self._reconnect(generation)  # as silent as a stream can be
            raise found from None

    def _explain(self, error: grpc.RpcError, metadata: Metadata) -> ResultdError:
        found = _status.from_rpc_error(error, self.url.scheme)
        if found.code == "UNAUTHENTICATED":
            found.renewed = self._credential.renew(metadata)
        return found

    def _open(self, effect: Open) -> LoopStream:
        method = self._method(effect.method)
        metadata = self._credential.metadata
        return LoopStream(
            lambda request: method(request, metadata=metadata, wait_for_ready=effect.patient),
            effect.request,
            self._streams,
            self._running(),
            self._generation,
            lambda error: self._explain(error, metadata),
        )

    def _reconnect(self, generation: int) -> None:
        if generation != self._generation or self._channel is None:
            return
        self._generation += 1
        for stream in list(self._streams):
            stream.cancel()
        channel, self._channel = self._channel, None
        # Calls under way run into their deadlines: to cancel them would look to whoever
        # awaits them as if their own task had been cancelled.
        task = self._running().create_task(channel.close(self.url.attempt_timeout))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _method(self, name: str) -> Any:
        if self._channel is None:
            self._channel = self._connect()
            self._methods = _stubs.methods(self._channel)
        return self._methods[name]

    def _connect(self) -> grpc.aio.Channel:
        self._credential.load()
        chosen = _channel.options(self.url)
        if self.url.secure:
            secret = _channel.credentials(self.url)
            return grpc.aio.secure_channel(self.url.target, secret, options=chosen)
        return grpc.aio.insecure_channel(self.url.target, options=chosen)


def _is_cancelled() -> bool:
    """Whether somebody asked the running task to end. Python 3.10 cannot tell."""
    task = asyncio.current_task()
    return sys.version_info >= (3, 11) and task is not None and task.cancelling() > 0
