"""Unary calls of gRPC's blocking channel, made so that a signal's handler may break them off.

calls = Calls(channel)
calls["GetResult"](request, timeout=1.0, metadata=())
held = lock_of(channel)
…  # an exception out of nowhere
give_back(held)

Python runs the handlers of signals in the main thread, between any two of its steps, and there
comes out what they raise. In a unary call gRPC's Python code does not withstand that in two
places: where it makes bytes of messages and back every exception becomes an error of its own;
and what its channel keeps lies under a `threading.Condition`, whose `__exit__` is Python and may
end before it has let the lock go. So the bytes are made here, and whoever was interrupted gives
back what its thread still has of that lock. What it guards was done by then.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from resultd.errors import make


class Unary:
    """A unary method, as gRPC's own is called."""

    __slots__ = ("_call", "_path", "_read", "_write")

    def __init__(
        self, call: Any, path: str, write: Callable[[Any], bytes], read: Callable[[bytes], Any]
    ) -> None:
        self._call = call
        self._path = path
        self._write = write
        self._read = read

    def __call__(self, request: Any, **how: Any) -> Any:
        """Make the call. Raises what gRPC's raises, and InternalError for what is no answer."""
        return self.read(self._call(self._write(request), **how))

    def future(self, request: Any, **how: Any) -> Any:
        """Begin the call; the future has bytes, for `read`."""
        return self._call.future(self._write(request), **how)

    def read(self, answer: bytes) -> Any:
        """Make a message of an answer's bytes."""
        try:
            return self._read(answer)
        except DecodeError as error:
            problem = f"the answer to {self._path} is not the message it should be: {error}"
            raise make("INTERNAL", problem) from error


class OfBytes:
    """What a stub takes for a channel: its unary methods are `Unary`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.unary_stream = channel.unary_stream
        self.stream_stream = channel.stream_stream

    def unary_unary(
        self,
        path: str,
        request_serializer: Callable[[Any], bytes],
        response_deserializer: Callable[[bytes], Any],
        **more: Any,
    ) -> Unary:
        """Return a method's callable."""
        call = self._channel.unary_unary(path, **more)
        return Unary(call, path, request_serializer, response_deserializer)


def lock_of(channel: grpc.Channel) -> threading.Condition | None:
    """Return the condition under which gRPC keeps what a channel has; None if there is no such."""
    # A field of cygrpc's, which has no name in Python: what holds it says so to the collector.
    for state in gc.get_referents(getattr(channel, "_channel", None)):
        for each in gc.get_referents(state):
            if isinstance(each, threading.Condition):
                return each
    return None


def give_back(lock: threading.Condition) -> None:
    """Let a lock go as often as this thread has it; not at all, as a rule."""
    with contextlib.suppress(RuntimeError):  # it is not, or no longer, this thread's
        while True:
            lock.release()
