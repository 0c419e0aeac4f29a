"""Streaming calls for threads: frames come through a bounded mailbox.

A thread reads the call and stays at most `AHEAD` frames ahead of whoever takes them, which
is the back-pressure: gRPC stops reading, the server stops sending. Waiting on the mailbox
has an exact timeout and lets Ctrl-C through, which waiting on the call has not.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import Message

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
    """A streaming call read by a thread of its own."""

    def __init__(
        self,
        start: Callable[[Any], Any],
        request: Message | None,
        alive: set[ThreadStream],
        generation: int,
        explain: Callable[[grpc.RpcError], ResultdError],
    ) -> None:
        self.generation = generation
        self.owner: object = None  # the client's that opened it, if one did
        self.mailbox = QueueMailbox()
        self._room = threading.Semaphore(AHEAD)
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._sender: threading.Thread | None = None
        self._cancelled = False
        self._alive = alive
        self._explain = explain
        self._call = start(request if request is not None else self._outgoing())
        self._reader = threading.Thread(target=self._read, name="resultd-stream", daemon=True)
        alive.add(self)
        self._reader.start()

    def send(self, request: Message) -> None:
        """Send a message; grpc's own thread takes it from here."""
        self._requests.put(request)

    def taken(self) -> None:
        """Make room for the next frame."""
        self._room.release()

    def cancel(self) -> None:
        """End the call; what was read already stays in the mailbox."""
        if self._cancelled:
            return
        self._cancelled = True
        self._requests.put(None)
        self._call.cancel()
        self._room.release()

    def join(self, deadline: float) -> None:
        """Wait until a monotonic time for the threads of a cancelled call to end."""
        for thread in (self._reader, self._sender):
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _outgoing(self) -> Iterator[Message]:
        self._sender = threading.current_thread()
        while True:
            request = self._requests.get()
            if request is None:
                return
            yield request

    def _read(self) -> None:
        end: ResultdError = UnavailableError("the stream ended without saying why")
        try:
            while True:
                self._room.acquire()
                if self._cancelled:
                    break
                self.mailbox.put(next(self._call))
        except StopIteration:
            pass
        except grpc.RpcError as error:
            end = self._explain(error)
        finally:
            self._requests.put(None)
            self._alive.discard(self)
            self.mailbox.put(end)
