"""Pacing streams: frames, heartbeats, the end. The only place that writes to one.

A source says what counts; this says when: at once while there is something, a
heartbeat when there is not, END when the source, the request's timeout, the stream's
age or the server's draining says so.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

from resultd.v1 import stream_pb2
from resultd_server import limits
from resultd_server.core.sources import ChangingSource, Source
from resultd_server.errors import Overloaded
from resultd_server.ledger.times import set_ms
from resultd_server.service.quotas import Quotas
from resultd_server.service.registry import Call
from resultd_server.tallies import Histogram

DRAIN_RETRY_DELAY_MS = 500
WAKE_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
)  # fmt: skip
"""Bounds of the histogram of how soon waiters hear of a commit."""

_WATCHDOG_S = 5.0
_HEARTBEAT = stream_pb2.CONTROL_KIND_HEARTBEAT
_SYNCED = stream_pb2.CONTROL_KIND_SYNCED
_END = stream_pb2.CONTROL_KIND_END

M = TypeVar("M", bound=Message)


class Streams:
    """The streams under way: counted, drained together, dropped when stalled."""

    def __init__(self, *, age_s: float = limits.STREAM_AGE_S, quotas: Quotas | None = None) -> None:
        self._age_s = age_s
        self._quotas = quotas or Quotas()
        self._running: set[Stream] = set()
        self.draining = False
        self.stalled = 0
        #: From a commit to the frame that tells of it; None where nobody asks.
        self.wake_seconds: Histogram | None = None

    @property
    def streams(self) -> int:
        """Streams under way."""
        return len(self._running)

    def under_way(self) -> Iterator[tuple[str, int]]:
        """(method, ids and groups waited for) of every stream under way."""
        for stream in self._running:
            yield stream.method, sum(map(len, stream.source.subscription.noted.values()))

    def drain(self) -> None:
        """Ends every stream with DRAINING, as soon as its frame is written."""
        self.draining = True
        for stream in self._running:
            stream.source.subscription.wake()

    async def watch_stalled(self) -> None:
        """Drops streams whose write has not moved for a minute. Runs until cancelled."""
        while True:
            await asyncio.sleep(_WATCHDOG_S)
            self.drop_stalled(asyncio.get_running_loop().time())

    def drop_stalled(self, now_s: float) -> None:
        """Ends the streams whose write has not moved for a minute at `now_s`."""
        for stream in self._running:
            since_s = stream.writing_since_s
            if since_s is not None and now_s - since_s > limits.STALLED_WRITE_S:
                self.stalled += 1
                stream.stalled = True
                stream.task.cancel()

    async def run(self, call: Call, source: Source, timeout_s: float | None = None) -> None:
        """Sends what the source has until the stream ends, and frees it."""
        age_s = self._age_s * random.uniform(  # so that streams opened together part
            1 - limits.STREAM_AGE_JITTER, 1 + limits.STREAM_AGE_JITTER
        )
        stream = Stream(call, source, timeout_s, age_s)
        self._running.add(stream)
        try:
            self._quotas.enter(source.subscription)
            await stream.run(self)
        except asyncio.CancelledError:
            if not stream.stalled:
                raise
            # With a status: a call whose handler is merely cancelled never ends.
            raise Overloaded(
                f"The stream was not read for {limits.STALLED_WRITE_S:g} s: resume it."
            ) from None
        finally:
            self._running.discard(stream)
            del stream.task  # it keeps the error that ended it, which keeps this frame
            self._quotas.leave(source.subscription)
            source.close()

    async def run_changing(
        self,
        call: Call,
        source: ChangingSource,
        requests: AsyncIterator[M],
        apply: Callable[[M], None],
    ) -> None:
        """The same, while requests change what is waited for."""
        reader = asyncio.create_task(self._read_requests(source, requests, apply))
        stream = asyncio.create_task(self.run(call, source))
        try:
            await asyncio.wait({stream, reader}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and not stream.done():
                reader.result()  # raises what was wrong with a request
                source.closing = True
                source.subscription.wake()
            await stream
        finally:
            for task in (reader, stream):
                task.cancel()
            await asyncio.gather(reader, stream, return_exceptions=True)

    async def _read_requests(
        self, source: ChangingSource, requests: AsyncIterator[M], apply: Callable[[M], None]
    ) -> None:
        async for request in requests:
            if source.subscription.closed:
                return  # the stream ended while this was on its way
            apply(request)
            self._quotas.changed(source.subscription)
            while source.congested:
                # The client is to read its answers before it asks for more.
                await source.answered()


class Stream:
    """One stream under way."""

    def __init__(self, call: Call, source: Source, timeout_s: float | None, age_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None  # handlers run in tasks
        self.task = task
        self.source = source
        self.method = call.method
        self.writing_since_s: float | None = None
        self.stalled = False
        self._call = call
        self._loop = asyncio.get_running_loop()
        now_s = self._loop.time()
        self._written_s = now_s
        self._dies_s = now_s + age_s
        self._times_out_s = None if timeout_s is None else now_s + timeout_s

    async def run(self, streams: Streams) -> None:
        """Until it ends."""
        source = self.source
        synced = not source.says_synced
        subscription = source.subscription
        while True:
            committed_s, subscription.committed_s = subscription.committed_s, 0.0
            frame = await source.next_frame()
            if frame is not None:
                await self._write(frame)
                if committed_s and streams.wake_seconds is not None:
                    streams.wake_seconds.observe(time.monotonic() - committed_s)
            reason = source.end if frame is None else None
            if frame is None and not synced:
                synced = True
                await self._control(_SYNCED)
            # What counted when the wait began is sent whole, however short the timeout.
            overdue = self._overdue(streams.draining, may_time_out=synced or frame is None)
            if reason is None and overdue is not None:
                reason = source.end or overdue
            if reason is not None:
                await self._end(reason)
                return
            if frame is None:
                await source.subscription.wait(self._rest_s())
                await self._beat()

    def _overdue(
        self, draining: bool, *, may_time_out: bool
    ) -> stream_pb2.EndReason.ValueType | None:
        now_s = self._loop.time()
        times_out_s = self._times_out_s if may_time_out else None
        if times_out_s is not None and now_s >= times_out_s:
            return stream_pb2.END_REASON_TIMEOUT
        if draining:
            return stream_pb2.END_REASON_DRAINING
        return stream_pb2.END_REASON_MAX_AGE if now_s >= self._dies_s else None

    def _rest_s(self) -> float:
        until_s = min(self._written_s + self.source.heartbeat_s, self._dies_s)
        if self._times_out_s is not None:
            until_s = min(until_s, self._times_out_s)
        return until_s - self._loop.time()

    async def _beat(self) -> None:
        if self._loop.time() - self._written_s >= self.source.heartbeat_s * 0.999:
            await self._control(_HEARTBEAT)

    async def _control(self, kind: stream_pb2.ControlKind.ValueType) -> None:
        await self._write(self.source.frame(self._message(kind)))

    async def _end(self, reason: stream_pb2.EndReason.ValueType) -> None:
        message = self._message(_END)
        message.end_reason = reason
        if reason == stream_pb2.END_REASON_DRAINING:
            message.retry_delay.nanos = DRAIN_RETRY_DELAY_MS * 1_000_000
        await self._write(self.source.frame(message))

    def _message(self, kind: stream_pb2.ControlKind.ValueType) -> stream_pb2.Control:
        message = stream_pb2.Control(kind=kind)
        set_ms(message.server_time, self.source.now_ms())
        return message

    async def _write(self, frame: bytes) -> None:
        self.writing_since_s = self._loop.time()
        await self._call.context.write(frame)
        self.writing_since_s = None
        self._written_s = self._loop.time()
