"""Streaming calls for threads: frames come through a bounded mailbox.

A thread reads the call and stays at most `AHEAD` frames ahead of whoever takes them, which
is the back-pressure: gRPC stops reading, the server stops sending. Waiting on the mailbox
has an exact timeout and lets Ctrl-C through at any of its steps, which gRPC would not outlive:
who takes frames never enters it, also not to end the call.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import Message

from resultd import _stranded
from resultd._deputies import deputies
from resultd.errors import ResultdError, UnavailableError

AHEAD = 2  # frames of at most 1 MiB (usually): enough to read one while one is worked on


class QueueMailbox:
    """A mailbox for threads; `SimpleQueue.put` is safe even inside finalisers."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, item: Any) -> None:
        """Leave an item."""
        self._queue.put(item)

    def receive(self, timeout: float | None) -> list[Any]:
        """Wait for items and take all there are; [] if none came in time."""
        items = []
        try:
            if timeout is not None:
                timeout = min(timeout, threading.TIMEOUT_MAX)
            items.append(self._queue.get(timeout=timeout))
            while True:
                items.append(self._queue.get_nowait())
        except queue.Empty:
            return items


class ThreadStream:
    """A streaming call read by a thread of its own; ended once nobody holds it any more.

    Made in a thread that no signal's handler interrupts.
    """

    def __init__(
        self,
        start: Callable[[Any], Any],
        request: Message | None,
        alive: set[Reading],
        generation: int,
        explain: Callable[[grpc.RpcError], ResultdError],
    ) -> None:
        self.generation = generation
        self._reading = reading = Reading(start, request, alive, explain)
        self.mailbox = reading.mailbox
        deputies.ready()
        reading.holder = Holder(self, deputies.receiver)
        reading.holder.reading = reading
        reading.begin()

    @property
    def owner(self) -> object:
        """The client's that opened it, if one did."""
        return self._reading.owner

    @owner.setter
    def owner(self, owner: object) -> None:
        self._reading.owner = owner

    def send(self, request: Message) -> None:
        """Send a message; grpc's own thread takes it from here."""
        self._reading.requests.put(request)

    def taken(self) -> None:
        """Make room for the next frame."""
        self._reading.room.put(None)

    def cancel(self) -> None:
        """End the call; what was read already stays in the mailbox."""
        self._reading.cancel()

    def join(self, deadline: float) -> None:
        """Wait until a monotonic time for the threads of a cancelled call to end."""
        self._reading.join(deadline)


class Holder(weakref.ref[ThreadStream]):
    """Who holds a stream. One that was not told to end is ended when nobody does.

    As where a signal's handler raised between its opening and whatever would have ended it.
    """

    reading: Reading

    def do(self) -> None:
        """End the call."""
        self.reading.cancel()


class Reading:
    """A streaming call, and the thread that reads it."""

    def __init__(
        self,
        start: Callable[[Any], Any],
        request: Message | None,
        alive: set[Reading],
        explain: Callable[[grpc.RpcError], ResultdError],
    ) -> None:
        self.owner: object = None
        self.mailbox = QueueMailbox()
        self.requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        # A token for each frame that may be read. (A semaphore is Python's: who gives back would
        # hold its lock for ever if a signal's handler raised there.)
        self.room: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(AHEAD):
            self.room.put(None)
        self.holder: Holder | None = None
        self._sender: threading.Thread | None = None
        self._cancelled = False
        self._over = False
        self._alive = alive
        self._explain = explain
        # Only in threads that no signal's handler interrupts: to drop it enters gRPC.
        self._call: Any = start(request if request is not None else self._outgoing())
        self._reader = threading.Thread(target=self._read, name="resultd-stream", daemon=True)

    def begin(self) -> None:
        """Read from now on.

        Raises:
            UnavailableError: there can be no thread for it; the call is ended.
        """
        self._alive.add(self)
        try:
            self._reader.start()
        except _stranded.NO_THREAD as error:
            self._alive.discard(self)
            self._over = True
            self.requests.put(None)
            self._call.cancel()
            self._call = None  # here, not where the error will be dropped
            raise _stranded.error(error) from error

    def cancel(self) -> None:
        """End the call. Never blocks, may be repeated: a deputy does what enters gRPC."""
        if self._over:
            return
        self._cancelled = True
        self.requests.put(None)
        self.room.put(None)
        deputies.leave(self._cancel_call)

    def _cancel_call(self) -> None:
        call = self._call
        if call is not None:
            call.cancel()

    def join(self, deadline: float) -> None:
        """Wait until a monotonic time for the threads of a cancelled call to end."""
        for thread in (self._reader, self._sender):
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _outgoing(self) -> Iterator[Message]:
        self._sender = threading.current_thread()
        while True:
            request = self.requests.get()
            if request is None:
                return
            yield request

    def _read(self) -> None:
        end: ResultdError = UnavailableError("the stream ended without saying why")
        try:
            while True:
                self.room.get()
                if self._cancelled:
                    self._cancel_call()  # should who began that have come no further
                    break
                self.mailbox.put(next(self._call))
        except StopIteration:
            pass
        except grpc.RpcError as error:
            end = self._explain(error)
        finally:
            self._over = True
            self._call = None
            self.holder = None
            self.requests.put(None)
            self._alive.discard(self)
            self.mailbox.put(end)
