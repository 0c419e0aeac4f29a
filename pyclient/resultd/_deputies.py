"""Threads that do for the main thread what no signal's handler may break off.

Python runs the handlers of signals in the main thread, between any two of its steps, and there
comes out what they raise: Ctrl-C, a soft time limit. gRPC does not withstand that: it can leave
a lock taken that every other thread will wait for. So the main thread opens and ends no stream,
connection, or call that may last. It hands such work to a thread that waits for some, through a
queue that is one step of C, and waits on a bare lock. Plain unary calls it makes itself (`_unary`).

There is one as a rule, begun with the first work, and another where that is busy: should the main
thread be interrupted in its wait, the work goes on to its end, and the next does not wait for it.
"""

from __future__ import annotations

import _thread
import contextlib
import contextvars
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from resultd import _gevent, _signals

T = TypeVar("T")

logger = logging.getLogger("resultd")

# Work that goes on though nobody waits for it ends with its own time: as much may pile up.
THREADS_MAX = 16
# Free threads that are kept. Of two that wait, each piece of work would wake both.
FREE_MAX = 1
# Seconds, at most, that a fork waits for them: free ones end in well under a millisecond.
PAUSE_MAX = 0.05


class Work(Protocol):
    """What is handed over."""

    def do(self) -> None:
        """Do it. Raises nothing."""


class Errand(Generic[T]):
    """Work that somebody waits for, and what came of it."""

    __slots__ = ("_context", "_stop", "_work", "answer", "done", "error", "given_up")

    def __init__(self, work: Callable[[Errand[T]], T]) -> None:
        self._work = work
        self._context = contextvars.copy_context()
        self._stop: Callable[[], object] | None = None
        self.done = threading.Lock()
        self.done.acquire()
        self.answer: Any = None
        self.error: BaseException | None = None
        self.given_up = False

    def do(self) -> None:
        """Do it, and wake who waits."""
        try:
            self.answer = self._context.run(self._work, self)
        except BaseException as error:  # noqa: BLE001 (handed on to who waits)
            self.error = error
        self._stop = None
        self.done.release()

    def stop_with(self, stop: Callable[[], object]) -> None:
        """Say how to end it sooner, should nobody wait any more."""
        self._stop = stop
        if self.given_up:
            stop()

    def stop(self) -> None:
        """End it sooner, if it said how."""
        stop = self._stop
        if stop is not None:
            stop()


class Unattended:
    """Work that nobody waits for."""

    __slots__ = ("_work",)

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work

    def do(self) -> None:
        """Do it."""
        try:
            self._work()
        except BaseException:  # the thread is everybody's
            logger.exception("work that nobody waits for failed")


class Deputies:
    """The threads of a process; `deputies` are the only ones."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Know of no thread, as in a forked child."""
        self._greenlets = _gevent.has_patched()
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # around what follows
        self._threads: set[threading.Thread] = set()
        self._free = 0
        self._paused = False

    @property
    def receiver(self) -> Callable[[Work], None]:
        """What takes work in one step of C: for a finaliser. Somebody has to be `ready`."""
        self._notice_gevent()
        return self._queue.put

    def do(self, work: Callable[[Errand[T]], T]) -> T:
        """Have work done and wait for it; returns or raises what it does.

        An exception of a signal's handler ends the wait, not the work.
        """
        self._notice_gevent()
        errand = Errand(work)
        try:
            self._queue.put(errand)
            self.ready()
            errand.done.acquire()
        except BaseException:  # Ctrl-C, a soft time limit
            errand.given_up = True
            self.leave(errand.stop)
            raise
        if errand.error is None:
            answer: T = errand.answer
            return answer
        error, errand.error = errand.error, None  # whose traceback holds both
        try:
            raise error
        finally:
            del error

    def leave(self, work: Callable[[], object]) -> None:
        """Have work done and do not wait for it. Takes no lock, may be called by a finaliser."""
        self._notice_gevent()
        self._queue.put(Unattended(work))
        self.ready()

    def ready(self) -> None:
        """Begin a thread if none is free."""
        self._notice_gevent()
        if self._free:
            return
        try:
            # Thread.start() waits, in Python: not in the main thread, which may be interrupted.
            _thread.start_new_thread(self._begin, ())
        except RuntimeError as error:  # there can be no more, as when the interpreter ends
            if _signals.raised_by(error) is not None:
                raise
            if not self._threads:
                self._work_off()

    def _notice_gevent(self) -> None:
        """Begin anew once threads are greenlets: a queue of before would stop them all."""
        if self._greenlets != _gevent.has_patched():
            self.begin_anew()

    def pause(self, deadline: float) -> None:
        """Let free threads end, and begin none: a fork is near. Busy ones are left alone."""
        self._paused = True
        with self._lock:
            threads, free = list(self._threads), self._free
        for _ in range(free):
            self._queue.put(None)
        deadline = min(deadline, time.monotonic() + PAUSE_MAX)
        for thread in threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def resume(self) -> None:
        """Go on, with what was handed over meanwhile."""
        self._paused = False
        if not self._queue.empty():
            self.ready()

    # In threads of their own

    def _begin(self) -> None:
        """Begin a thread, if none is free."""
        with self._lock:
            if self._free or self._paused or len(self._threads) == THREADS_MAX:
                return
            thread = threading.Thread(target=self._serve, name="resultd-call", daemon=True)
            self._threads.add(thread)
            self._free += 1
        try:
            thread.start()
        except RuntimeError:  # there can be no more; this one is there
            self._end(thread)
            self._work_off()

    def _work_off(self) -> None:
        """Do here what nobody else will."""
        with contextlib.suppress(queue.Empty):
            while (work := self._queue.get_nowait()) is not None:
                work.do()

    def _serve(self) -> None:
        me = threading.current_thread()
        while (work := self._queue.get()) is not None or not self._paused:
            if work is None:
                continue  # that fork is over
            with self._lock:
                self._free -= 1
            if not self._queue.empty():  # handed over while this one looked free
                self._begin()
            work.do()
            del work  # not kept until the next
            with self._lock:
                self._free += 1
                if self._free > FREE_MAX:
                    break
        self._end(me)
        if not self._queue.empty():  # handed over as the last one ended
            self._begin()

    def _end(self, thread: threading.Thread) -> None:
        with self._lock:
            self._free -= 1
            self._threads.discard(thread)


deputies = Deputies()


def needed() -> bool:
    """Whether a signal's handler may raise in this thread: it is the main thread.

    Not while the interpreter ends: other threads do not run any more. And not among greenlets,
    which are all in that thread, deputies too.
    """
    is_main = threading.get_ident() == threading.main_thread().ident
    return is_main and not sys.is_finalizing() and not _gevent.has_patched()
