"""Drives the hub: one background operation per process that keeps one `Watch` open.

The operation is started by the first wait and ends, stream and all, `LINGER` seconds after
the last one. Waits may be abandoned from anywhere, a finaliser included: leaving takes no
lock, it is noted in a deque that whoever holds or next takes the lock works off.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Protocol

from resultd._effects import Effect, Mailbox, Op, Open, Receive, Reconnect, Stream
from resultd._hub import Fate, Hub
from resultd.errors import ClientClosedError, ResultdError, UnavailableError
from resultd.v1 import result_service_pb2, task_pb2

logger = logging.getLogger("resultd")

# Seconds a stream stays open after the last wait. A program that gets one result after the
# other then opens one stream, not one for each.
LINGER = 0.25


class Port(Protocol):
    """What the watcher needs of the shell that drives it."""

    def new_mailbox(self) -> Mailbox:
        """Return a mailbox that `Receive` can wait for."""

    def spawn(self, op: Op[None]) -> None:
        """Drive an operation in the background: in a thread, or a task."""

    def forbid_waiting(self) -> None:
        """Raise RuntimeError if the caller is the background operation itself."""


class Owner:
    """Whose waits and streams are whose, among those that share an endpoint: one for each client.

    Waits hold this and not the client, which they may outlive.
    """

    def __init__(self) -> None:
        self.closed = False


class Wait:
    """One wait: what it was told is in `mailbox`, as lists of records or an error.

    Raises:
        ClientClosedError: `owner` is closed, which else ends the wait.
    """

    def __init__(
        self,
        watcher: Watcher,
        ids: Iterable[str],
        transitions: bool,
        owner: Owner | None = None,
    ) -> None:
        watcher.port.forbid_waiting()
        self.mailbox = watcher.port.new_mailbox()
        self.transitions = transitions
        self.owner = owner
        self._watcher = watcher
        self._left = dict.fromkeys(ids)
        self._epoch = -1
        self.join()

    def join(self) -> None:
        """Make sure that the wait is known: again after a fork, else nothing."""
        if self._epoch != self._watcher.epoch and self._left:
            self._epoch = self._watcher.epoch
            self._watcher.add(self, list(self._left))

    def deliver(self, metas: list[task_pb2.TaskMeta]) -> None:
        """Take records from the hub."""
        for meta in metas:
            if meta.terminal:
                self._left.pop(meta.task_id, None)
        self.mailbox.put(metas)

    def fail(self, error: ResultdError) -> None:
        """Take the news that the server refuses."""
        self.mailbox.put(error)

    def close(self) -> None:
        """Wait no longer. Never blocks; safe in a finaliser."""
        self._left.clear()
        self._watcher.leave(self)


class Callback:
    """A wait that calls a function, from the background operation, for each record.

    Raises:
        ClientClosedError: `owner` is closed, which else ends the wait.
    """

    transitions = False

    def __init__(
        self,
        watcher: Watcher,
        ids: Iterable[str],
        function: Callable[[task_pb2.TaskMeta], object],
        refused: Callable[[ResultdError], None],
        owner: Owner | None = None,
    ) -> None:
        self.owner = owner
        self._function = function
        self._refused = refused
        self._watcher = watcher
        self._ids = list(ids)
        self._epoch = -1
        self.join()

    def join(self) -> None:
        """Make sure that the wait is known: again after a fork, else nothing."""
        if self._epoch != self._watcher.epoch:
            self._epoch = self._watcher.epoch
            self._watcher.add(self, self._ids)

    def deliver(self, metas: list[task_pb2.TaskMeta]) -> None:
        """Call the function for each record."""
        for meta in metas:
            try:
                self._function(meta)
            except BaseException:  # SystemExit too: the thread is everybody's
                logger.exception("a callback failed")

    def fail(self, error: ResultdError) -> None:
        """Call the other function: the server refuses."""
        try:
            self._refused(error)
        except BaseException:  # as above
            logger.exception("a callback failed")

    def close(self) -> None:
        """Wait no longer. Never blocks; safe in a finaliser."""
        self._watcher.leave(self)


class Watcher:
    """The hub of an endpoint, with its lock, its stream and its background operation."""

    def __init__(self, port: Port, heartbeat: float) -> None:
        self.port = port
        self.epoch = 0
        self._heartbeat = heartbeat
        self._leaving: deque[Wait | Callback] = deque()
        self._start_over()

    def _start_over(self) -> None:
        self._lock = threading.Lock()
        self._hub = Hub(self._heartbeat)
        self._stream: Stream | None = None
        self._running = False
        self._suspended = False
        self._bell: Mailbox | None = None
        self._leaving.clear()

    @property
    def streaming(self) -> bool:
        """Whether a stream is open now."""
        return self._stream is not None

    @property
    def synced(self) -> bool:
        """Whether the server has answered everything that it was asked on the open stream."""
        return self._hub.synced

    def add(self, waiter: Wait | Callback, ids: Iterable[str]) -> None:
        """Begin a wait; starts the background operation if it does not run."""
        with self._locked():
            if waiter.owner is not None and waiter.owner.closed:
                raise ClientClosedError  # `fail_of` may have been here before
            self._hub.add(waiter, ids)
            self._flush()
            spawn = not self._running and not self._suspended
            self._running = self._running or spawn
        if spawn:
            self._spawn()

    def _spawn(self) -> None:
        try:
            self.port.spawn(self._watch(self.epoch))
        except BaseException as error:  # no thread is to be had
            self._break_down(self.epoch, error)
            raise

    def leave(self, waiter: Wait | Callback) -> None:
        """End a wait. Never blocks and takes no lock that is held: see `_locked`."""
        self._leaving.append(waiter)
        self._work_off()

    def suspend(self) -> None:
        """Close the stream and let the background operation end: a fork is near."""
        with self._locked():
            self._suspended = True
        self._interrupt()

    def resume(self) -> None:
        """Go on after `suspend` if somebody still waits."""
        with self._locked():
            self._suspended = False
            spawn = self._hub.wanted and not self._running
            self._running = self._running or spawn
        if spawn:
            self._spawn()

    def forget_all(self) -> None:
        """Begin anew in a forked child: threads, locks and waits of the parent are not ours.

        A wait that the child goes on with joins again by itself.
        """
        self.epoch += 1
        self._start_over()

    def fail_all(self, error: ResultdError) -> None:
        """Tell everybody who waits that it is over: the client was closed."""
        with self._locked():
            waiters = self._hub.clear()
        for waiter in waiters:
            waiter.fail(error)
        self._interrupt()

    def fail_of(self, owner: Owner, error: ResultdError) -> None:
        """Tell who waits for a client that was closed. Others wait on."""
        with self._locked():
            mine = [
                waiter
                for waiter in self._hub.waiters
                if isinstance(waiter, (Wait, Callback)) and waiter.owner is owner
            ]
            self._leaving.extend(mine)  # worked off with the lock
        for waiter in mine:
            waiter.fail(error)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; afterwards do what was put off because it was held."""
        try:
            with self._lock:
                self._drain()
                yield
        finally:
            self._work_off()

    def _work_off(self) -> None:
        # Whoever fails to take the lock leaves the work to its holder, who looks again after
        # giving it back: nothing stays behind, and nobody waits for a lock here.
        while self._leaving and self._lock.acquire(blocking=False):
            try:
                self._drain()
                idle = not self._hub.wanted
            finally:
                self._lock.release()
            if idle:
                self._ring()

    def _drain(self) -> None:
        while self._leaving:
            self._hub.discard(self._leaving.popleft())
        self._flush()

    def _flush(self) -> None:
        if self._stream is None:
            return
        if self._hub.needs_transitions:
            self._stream.cancel()  # the next one is opened with transitions
            return
        for request in self._hub.take_requests():
            self._stream.send(request)

    def _ring(self) -> None:
        """Wake the background operation. Never blocks."""
        bell = self._bell
        if bell is not None:
            bell.put(None)

    def _interrupt(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.cancel()
        self._ring()

    def _watch(self, epoch: int) -> Op[None]:
        """The background operation: open, read, resume, until nobody waits."""
        bell = self.port.new_mailbox()
        pause: float | None = 0.0
        try:
            while pause is not None:
                if pause:
                    self._bell = bell
                    yield Receive(bell, pause)
                if self._ends(epoch):
                    return
                pause = yield from self._one_stream(epoch)
        except GeneratorExit:
            raise  # abandoned with its event loop: nobody is left to be told
        except BaseException as error:
            self._break_down(epoch, error)
            raise

    def _break_down(self, epoch: int, error: BaseException) -> None:
        """Tell everybody who waits: nothing will come; the next wait starts again."""
        if epoch != self.epoch:
            return
        with self._locked():
            self._running = False
            waiters = self._hub.clear()
        told = UnavailableError(f"waiting broke down: {error!r}")
        told.__cause__ = error
        for waiter in waiters:
            waiter.fail(told)

    def _ends(self, epoch: int) -> bool:
        """Say whether the operation is to end; once it says so, the next wait starts it."""
        if epoch != self.epoch:
            return True  # a fork's child began anew
        with self._locked():
            over = self._suspended or not self._hub.wanted
            if over:
                self._running = False
            return over

    def _one_stream(self, epoch: int) -> Generator[Effect, Any, float | None]:
        """Serve one stream to its end; gives the seconds until the next, None for no next."""
        stream: Stream | None = None
        try:
            stream = yield Open("Watch", None, patient=True)
            with self._locked():
                self._stream = stream
                self._bell = stream.mailbox
                self._hub.opened(time.monotonic())
                self._flush()
            return (yield from self._read(stream))
        except ResultdError as error:
            return self._after_break(error)
        finally:
            if stream is not None:
                stream.cancel()
            if epoch == self.epoch:
                with self._locked():
                    self._stream = None
                    self._bell = None
                    self._hub.closed()

    def _after_break(self, error: ResultdError) -> float | None:
        with self._locked():
            if self._suspended or self._hub.needs_transitions or not self._hub.wanted:
                return 0.0  # we broke it ourselves
            pause = self._hub.broken(error)
            if pause is None:
                self._running = False
            return pause

    def _read(self, stream: Stream) -> Generator[Effect, Any, float]:
        """Read until the server ends the stream, or nobody has waited for `LINGER`."""
        idle_since: float | None = None
        while not self._suspended:
            now = time.monotonic()
            left = self._hub.silence_left(now)
            if self._hub.wanted:
                idle_since = None
            else:
                idle_since = now if idle_since is None else idle_since
                if now - idle_since >= LINGER:
                    break
                left = min(left, idle_since + LINGER - now)
            items = yield Receive(stream.mailbox, left)
            if not items and self._hub.silence_left(time.monotonic()) <= 0:
                yield Reconnect(stream.generation)
                raise UnavailableError("the server fell silent; the stream is opened again")
            for item in items:
                pause = self._take(stream, item)
                if pause is not None:
                    return pause
        return 0.0

    def _take(self, stream: Stream, item: object) -> float | None:
        """Take one item of the stream's mailbox; gives a pause if the stream is to end."""
        if item is None:
            return None  # rung: something changed, look again
        if isinstance(item, ResultdError):
            raise item
        assert isinstance(item, result_service_pb2.WatchResponse)
        stream.taken()
        with self._locked():
            outcome = self._hub.received(item, time.monotonic())
        for waiter, metas in outcome.deliveries:
            waiter.deliver(metas)
        return outcome.delay if outcome.fate is Fate.RESUME else None
