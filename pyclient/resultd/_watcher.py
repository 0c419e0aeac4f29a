"""Drives the hub: one background operation per process that keeps one `Watch` open.

The operation is started by the first wait and ends, stream and all, `LINGER` seconds after
the last one. Waits may be abandoned from anywhere, a finaliser included: leaving takes no
lock, it is noted in a deque, which the operation, rung, works off, or who takes the lock first.

A signal's handler may raise between any two steps of the main thread, and it leaves nobody
else waiting: the lock is C's, taken and given back by one `with`; what is done under it may be
broken off and repeated; and the operation decides itself whether it is the one that runs.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

from resultd._effects import Effect, Mailbox, Op, Open, Receive, Reconnect, Stream
from resultd._hub import Fate, Hub, Waiter
from resultd.errors import ClientClosedError, ResultdError, UnavailableError, own
from resultd.v1 import result_service_pb2, task_pb2

logger = logging.getLogger("resultd")

# Seconds a stream stays open after the last wait. A program that gets one result after the
# other then opens one stream, not one for each.
LINGER = 0.25


class Port(Protocol):
    """What the watcher needs of the shell that drives it."""

    def new_mailbox(self) -> Mailbox:
        """Return a mailbox that `Receive` can wait for."""

    def spawn(self, op: Op[None], failed: Callable[[BaseException], None]) -> None:
        """Drive an operation in the background: in a thread, or a task.

        Without waiting; `failed` is called later if it cannot be.
        """

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

    It begins with `join`, and ends with `close`, or when nobody holds it any more: where a
    signal's handler raised, nobody may have come to close it.
    """

    def __init__(
        self,
        watcher: Watcher,
        ids: Iterable[str],
        transitions: bool,
        owner: Owner | None = None,
    ) -> None:
        watcher.port.forbid_waiting()
        self._watcher = watcher
        self._place = place = Place(self, watcher.leaving.append)
        self.mailbox = place.mailbox = watcher.port.new_mailbox()
        place.left = dict.fromkeys(ids)
        place.transitions = transitions
        place.owner = owner
        self._epoch = -1

    def join(self) -> None:
        """Make sure that the wait is known: at first, and again after a fork, else nothing.

        Raises:
            ClientClosedError: `owner` is closed, which else ends the wait.
        """
        if self._epoch != self._watcher.epoch and self._place.left:
            epoch = self._watcher.epoch
            self._watcher.add(self._place, list(self._place.left))
            self._epoch = epoch

    def close(self) -> None:
        """Wait no longer. Never blocks; safe in a finaliser."""
        if self._place.left:  # else the hub has let it go
            self._watcher.leave(self._place)
            self._place.left.clear()


class Place(weakref.ref[Wait]):
    """What the hub knows of a wait. Who waits holds it, it holds nobody."""

    __slots__ = ("left", "mailbox", "owner", "transitions")

    left: dict[str, None]
    mailbox: Mailbox
    owner: Owner | None
    transitions: bool

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def deliver(self, metas: list[task_pb2.TaskMeta]) -> None:
        """Take records from the hub."""
        for meta in metas:
            if meta.terminal:
                self.left.pop(meta.task_id, None)
        self.mailbox.put(metas)

    def fail(self, error: ResultdError) -> None:
        """Take the news that the server refuses."""
        self.mailbox.put(error)


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


class Turn:
    """An operation that was asked for."""

    __slots__ = ("begun", "broken")

    def __init__(self) -> None:
        self.begun = False  # or it never will
        self.broken = False  # and who waited was told


class Watcher:
    """The hub of an endpoint, with its lock, its stream and its background operation."""

    def __init__(self, port: Port, heartbeat: float) -> None:
        self.port = port
        self.epoch = 0
        #: Who waits no longer, and was not let go by the hub yet.
        self.leaving: deque[Place | Callback] = deque()
        self._heartbeat = heartbeat
        self._start_over()

    def _start_over(self) -> None:
        self._lock = threading.Lock()
        self._hub = Hub(self._heartbeat)
        self._stream: Stream | None = None
        # The operation that runs, and the one that was asked for last.
        self._running: Turn | None = None
        self._asked: Turn | None = None
        self._suspended = False
        self._bell: Mailbox | None = None
        self.leaving.clear()

    @property
    def streaming(self) -> bool:
        """Whether a stream is open now."""
        return self._stream is not None

    @property
    def synced(self) -> bool:
        """Whether the server has answered everything that it was asked on the open stream."""
        return self._hub.synced

    def add(self, waiter: Place | Callback, ids: Iterable[str]) -> None:
        """Begin a wait; starts the background operation if it does not run."""
        with self._lock:
            self._drain()
            if waiter.owner is not None and waiter.owner.closed:
                raise ClientClosedError  # `fail_of` may have been here before
            self._hub.add(waiter, ids)
            self._flush()
        self._make_run()

    def _make_run(self) -> None:
        if self._running is not None or self._suspended:
            return
        if self._asked is not None and not self._asked.begun:
            return
        # Should this be broken off, the next wait asks for another: one of the two ends at once.
        turn = Turn()
        failed = functools.partial(self._break_down, self.epoch, turn)
        self.port.spawn(self._watch(self.epoch, turn), failed)
        self._asked = turn

    def leave(self, waiter: Place | Callback) -> None:
        """End a wait. Never blocks and takes no lock: the background operation does the rest."""
        self.leaving.append(waiter)
        self._ring()

    def suspend(self) -> None:
        """Close the stream and let the background operation end: a fork is near."""
        self._suspended = True
        self._interrupt()

    def resume(self) -> None:
        """Go on after `suspend` if somebody still waits."""
        with self._lock:  # an operation that is about to end has seen it, or ends not
            self._suspended = False
        if self._hub.wanted:
            self._make_run()

    def forget_all(self) -> None:
        """Begin anew in a forked child: threads, locks and waits of the parent are not ours.

        A wait that the child goes on with joins again by itself.
        """
        self.epoch += 1
        self._start_over()

    def fail_all(self, error: ResultdError) -> None:
        """Tell everybody who waits that it is over: the client was closed."""
        with self._lock:
            waiters = self._hub.clear()
        for waiter in waiters:
            waiter.fail(own(error))
        self._interrupt()

    def fail_of(self, owner: Owner, error: ResultdError) -> None:
        """Tell who waits for a client that was closed. Others wait on."""
        with self._lock:
            mine = [
                waiter
                for waiter in self._hub.waiters
                if isinstance(waiter, (Place, Callback)) and waiter.owner is owner
            ]
            self.leaving.extend(mine)
            self._drain()
        for waiter in mine:
            waiter.fail(own(error))
        self._ring()

    def drop_all(self) -> None:
        """Let everybody wait in vain: the interpreter ends, and who waits with it."""
        with self._lock:
            self._hub.clear()
        self._interrupt()

    # With the lock

    def _drain(self) -> None:
        while self.leaving:
            self._hub.discard(self.leaving[0])
            self.leaving.popleft()  # only now: this may be broken off
        self._flush()

    def _flush(self) -> None:
        if self._stream is None:
            return
        if self._hub.needs_transitions:
            self._stream.cancel()  # the next one is opened with transitions
            return
        for request in self._hub.take_requests():
            self._stream.send(request)

    # Without

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

    def _watch(self, epoch: int, turn: Turn) -> Op[None]:
        """The background operation: open, read, resume, until nobody waits."""
        pause: float | None = 0.0
        try:
            if not self._begins(epoch, turn):
                return
            while pause is not None:
                if pause:
                    yield from self._rest(pause)
                if self._ends(epoch):
                    return
                try:
                    pause = yield from self._one_stream(epoch)
                except ResultdError as error:
                    pause = self._after_break(error)
        except GeneratorExit:
            raise  # abandoned with its event loop: nobody is left to be told
        except BaseException as error:
            self._break_down(epoch, turn, error)
            raise

    def _begins(self, epoch: int, turn: Turn) -> bool:
        """Say whether the operation is the one that runs from now on."""
        turn.begun = True
        if epoch != self.epoch:
            return False  # a fork's child began anew
        with self._lock:
            if self._running is not None:
                return False
            self._running = turn
            return True

    def _rest(self, seconds: float) -> Generator[Effect, Any, None]:
        """Wait before the next try; no longer than anybody waits."""
        self._bell = bell = self.port.new_mailbox()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            yield Receive(bell, left)
            with self._lock:
                self._drain()
                if self._suspended or not self._hub.wanted:
                    return

    def _break_down(self, epoch: int, turn: Turn, error: BaseException) -> None:
        """Tell everybody who waits: nothing will come; the next wait starts again.

        Once: a shell may say again what the operation has said itself.
        """
        turn.begun = True
        if turn.broken:
            return
        if epoch != self.epoch:
            return
        with self._lock:
            if self._running is not None and self._running is not turn:
                return  # another one runs
            self._running = None
            waiters = self._hub.clear()
            turn.broken = True
        told = UnavailableError(f"waiting broke down: {error!r}")
        told.__cause__ = error
        for waiter in waiters:
            waiter.fail(own(told))

    def _ends(self, epoch: int) -> bool:
        """Say whether the operation is to end; once it says so, the next wait starts it."""
        if epoch != self.epoch:
            return True  # a fork's child began anew
        with self._lock:
            self._drain()
            over = self._suspended or not self._hub.wanted
            if over:
                self._running = None
            return over

    def _one_stream(self, epoch: int) -> Generator[Effect, Any, float]:
        """Serve one stream to its end; gives the seconds until the next.

        Raises:
            ResultdError: it broke.
        """
        stream: Stream | None = None
        try:
            stream = yield Open("Watch", None, patient=True)
            with self._lock:
                self._stream = stream
                self._bell = stream.mailbox
                self._hub.opened(time.monotonic())
                self._drain()
            return (yield from self._read(stream))
        except ResultdError:
            with self._lock:
                self._drain()
                if self._suspended or self._hub.needs_transitions or not self._hub.wanted:
                    return 0.0  # we broke it ourselves
            raise
        finally:
            if stream is not None:
                stream.cancel()
            if epoch == self.epoch:
                with self._lock:
                    self._stream = None
                    self._bell = None
                    self._hub.closed()

    def _after_break(self, error: ResultdError) -> float | None:
        """Give the seconds until the next try; None if that is not to be, and all are told."""
        waiters: list[Waiter] = []
        with self._lock:
            pause = self._hub.broken(error)
            if pause is None:
                self._running = None
                waiters = self._hub.clear()
        for waiter in waiters:  # without the lock: one may wait again at once
            waiter.fail(own(error))
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
            with self._lock:
                self._drain()
            return None  # rung: somebody left, or the stream is to end
        if isinstance(item, ResultdError):
            raise item
        assert isinstance(item, result_service_pb2.WatchResponse)
        stream.taken()
        with self._lock:
            self._drain()
            outcome = self._hub.received(item, time.monotonic())
        for waiter, metas in outcome.deliveries:
            waiter.deliver(metas)
        return outcome.delay if outcome.fate is Fate.RESUME else None
