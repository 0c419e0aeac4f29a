"""Reading streams: frame by frame, to a control frame, or to the end.

Requests of a bidirectional call are written to `frames.call`: an iterator of them would
be left behind, in a task of its own, when the server ends the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from google.protobuf.duration_pb2 import Duration

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import stream_pb2

READ_S = 20.0
SYNCED = stream_pb2.CONTROL_KIND_SYNCED
HEARTBEAT = stream_pb2.CONTROL_KIND_HEARTBEAT
RESET = stream_pb2.CONTROL_KIND_RESET
END = stream_pb2.CONTROL_KIND_END


def seconds(number: float) -> Duration:
    """A Duration."""
    return Duration(seconds=int(number), nanos=round(number % 1 * 1e9))


def event_of(encoded: bytes) -> stream_pb2.Event:
    """An event that was encoded as it stands in a frame."""
    (event,) = events_of(encoded)
    return event


def events_of(encoded: bytes) -> list[stream_pb2.Event]:
    """Events that were encoded as they stand in a frame."""
    return list(pb.IterateResponse.FromString(encoded).events)


class Frames:
    """The frames of a call. Every read has a deadline, so that a hang is a failure."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self._frames = call.__aiter__()

    async def next(self) -> Any:
        """The next frame."""
        return await asyncio.wait_for(anext_of(self._frames), READ_S)

    async def until(self, kind: stream_pb2.ControlKind.ValueType) -> list[Any]:
        """The frames up to the control frame of a kind, that one last."""
        frames = [await self.next()]
        while frames[-1].control.kind != kind:
            frames.append(await self.next())
        return frames

    async def rest(self) -> list[Any]:
        """The frames up to the end of the call; the last one is an END and the status OK."""
        frames = await self.until(END)
        try:
            extra = await self.next()
        except StopAsyncIteration:
            return frames
        raise AssertionError(f"after END came {extra}")


def anext_of(iterator: AsyncIterator[Any]) -> Any:
    """`anext`, as a coroutine in every Python."""

    async def step() -> Any:
        return await iterator.__anext__()

    return step()


def ids(frames: Iterable[Any]) -> list[str]:
    """The tasks of the frames' events, in their order."""
    return [event.task.task_id for frame in frames for event in frame.events]


def states(frames: Iterable[Any]) -> list[int]:
    """The states of the frames' events, in their order."""
    return [event.task.state for frame in frames for event in frame.events]


def control(frame: Any) -> tuple[int, int]:
    """(kind, end reason) of a frame."""
    return frame.control.kind, frame.control.end_reason
