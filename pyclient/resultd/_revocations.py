"""Hearing of tasks that are to stop: what a worker keeps open while it runs tasks."""

from __future__ import annotations

import datetime
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import NamedTuple

from resultd import _backoff, _records
from resultd._effects import Emit, Mailbox, Op, Open, Receive, Reconnect, Stream
from resultd._hub import IDS_PER_MESSAGE, SILENT_HEARTBEATS
from resultd._operations import chunks
from resultd.errors import ResultdError, UnavailableError
from resultd.v1 import stream_pb2, worker_service_pb2

logger = logging.getLogger("resultd")

# What only a stream says that does its work, or has done it.
_WORKS = (stream_pb2.CONTROL_KIND_SYNCED, stream_pb2.CONTROL_KIND_END)


class Revocation(NamedTuple):
    """A task that is to stop."""

    task_id: str
    terminate: bool
    signal: str
    reason: str
    time: datetime.datetime | None


class Revocations:
    """The tasks a worker runs, and what is to be told of them: the part without threads.

    Each task's revocation is told once, until the task is added again.
    """

    def __init__(self, task_ids: Iterable[str], heartbeat: float, bell: Mailbox) -> None:
        self._lock = threading.Lock()
        self._running = dict.fromkeys(task_ids)
        self._told: set[str] = set()
        self._heartbeat = heartbeat
        self._stream: Stream | None = None
        self._bell = bell
        self._closed = False
        _known.add(self)
        self._breaks = 0  # one after the other, without a stream in between that did its work

    def add(self, task_ids: Iterable[str]) -> None:
        """Run more tasks."""
        with self._lock:
            fresh = [task_id for task_id in task_ids if task_id not in self._running]
            self._running.update(dict.fromkeys(fresh))
            if self._stream is not None:
                for request in _requests(fresh):
                    self._stream.send(request)

    def remove(self, task_ids: Iterable[str]) -> None:
        """Run tasks no longer."""
        with self._lock:
            gone = [task_id for task_id in task_ids if task_id in self._running]
            for task_id in gone:
                del self._running[task_id]
                self._told.discard(task_id)
            if self._stream is not None:
                for page in chunks(gone, IDS_PER_MESSAGE):
                    request = worker_service_pb2.WatchRevocationsRequest(remove_task_ids=page)
                    self._stream.send(request)

    def close(self) -> None:
        """Listen no longer."""
        self._closed = True
        stream = self._stream
        if stream is not None:
            stream.cancel()
        self._bell.put(None)

    def listen(self) -> Op[None]:
        """Emit revocations until `close`."""
        while not self._closed:
            stream: Stream = yield Open("WatchRevocations", None)
            try:
                self._begin(stream)
                pause = yield from self._read(stream)
            except ResultdError as error:
                if self.closed:
                    return
                if error.final:
                    raise
                pause = _backoff.full_jitter(self._breaks, error.retry_delay)
                self._breaks += 1
            finally:
                self._stream = None
                stream.cancel()
            if pause:
                yield Receive(self._bell, pause)

    def forked(self) -> None:
        """Be in a forked child: another thread may have held the lock, the stream is no more."""
        self._lock = threading.Lock()
        self._stream = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _begin(self, stream: Stream) -> None:
        with self._lock:
            self._stream = stream
            if self._closed:  # while it was opened: close() found nothing to cancel
                stream.cancel()
            first = worker_service_pb2.WatchRevocationsRequest(sequence=1)
            first.heartbeat.FromNanoseconds(int(self._heartbeat * 1e9))
            stream.send(first)
            for request in _requests(list(self._running)):
                stream.send(request)

    def _read(self, stream: Stream) -> Op[float]:
        """Emit what is news, until the server ends the stream; gives the seconds until the next."""
        silent_at = time.monotonic() + SILENT_HEARTBEATS * self._heartbeat
        while True:
            items = yield Receive(stream.mailbox, max(0.0, silent_at - time.monotonic()))
            if not items and time.monotonic() >= silent_at:
                yield Reconnect(stream.generation)
                raise UnavailableError("the server fell silent; the stream is opened again")
            for frame in items:
                if isinstance(frame, ResultdError):
                    raise frame
                stream.taken()
                if frame.revocations or frame.control.kind in _WORKS:
                    self._breaks = 0
                for revocation in frame.revocations:
                    if self._is_news(revocation.task_id):
                        yield Emit(_read_revocation(revocation))
                if frame.control.kind == stream_pb2.CONTROL_KIND_END:
                    return _pause_after(frame.control)
            silent_at = time.monotonic() + SILENT_HEARTBEATS * self._heartbeat

    def _is_news(self, task_id: str) -> bool:
        with self._lock:
            news = task_id in self._running and task_id not in self._told
            if news:
                self._told.add(task_id)
            return news


_known: weakref.WeakSet[Revocations] = weakref.WeakSet()


def _in_child() -> None:
    for revocations in _known:
        revocations.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def tell(callback: Callable[[Revocation], object], revocation: Revocation) -> None:
    """Call a callback; one that raises is to hear of the next revocation all the same."""
    try:
        callback(revocation)
    except Exception:  # whatever the worker's code raises
        logger.exception("the callback of a revocation failed")


def _pause_after(end: stream_pb2.Control) -> float:
    if end.end_reason != stream_pb2.END_REASON_DRAINING:
        return 0.0
    # With chance in it: everybody else was drained at the same moment.
    return _backoff.full_jitter(0, end.retry_delay.seconds + end.retry_delay.nanos / 1e9)


def _requests(task_ids: list[str]) -> list[worker_service_pb2.WatchRevocationsRequest]:
    return [
        worker_service_pb2.WatchRevocationsRequest(add_task_ids=page)
        for page in chunks(task_ids, IDS_PER_MESSAGE)
    ]


def _read_revocation(message: worker_service_pb2.Revocation) -> Revocation:
    return Revocation(
        message.task_id,
        message.terminate,
        message.signal or "SIGTERM",
        message.reason,
        _records.moment(message, "create_time"),
    )
