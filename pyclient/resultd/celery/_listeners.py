"""Those who listen to results by `then()`: each is told once, in a thread that is there for it."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from vine import Thenable

logger = logging.getLogger("resultd.celery")

# Seconds the callbacks' thread stays after the last callback.
IDLE = 5.0


@Thenable.register
class Once:
    """A listener that is told once, by whoever comes first.

    Each thread that learns what a result is tells its listeners, and vine drops a listener only
    after it has returned: one that still runs would be begun again.
    """

    def __init__(self, listener: Any) -> None:
        self._untold = [listener]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        for listener in self._take():
            listener(*args, **kwargs)

    def throw(self, *args: Any, **kwargs: Any) -> None:
        """Tell it an error."""
        for listener in self._take():
            listener.throw(*args, **kwargs)

    def throw1(self, *args: Any, **kwargs: Any) -> None:
        """Tell it an error, which vine itself raises again."""
        for listener in self._take():
            listener.throw1(*args, **kwargs)

    def cancel(self) -> None:
        """Tell it that nothing will come."""
        for listener in self._take():
            listener.cancel()

    def drop(self) -> None:
        """Have it told nothing."""
        self._take()

    def _take(self) -> list[Any]:
        """Give the listener to the first who asks: of several threads, one pops it."""
        with contextlib.suppress(IndexError):
            return [self._untold.pop()]
        return []


class Callbacks:
    """A thread for `then()` callbacks, there while it is needed.

    Not the thread that reads the stream: a callback may itself wait for results.
    """

    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._process = os.getpid()
        self._queue: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._running = False

    def add(self, callback: Callable[[], object]) -> None:
        """Have a callback called."""
        if self._process != os.getpid():
            self._renew()  # forked: the thread stayed behind
        self._queue.put(callback)
        with self._starting:
            if self._running:
                return
            self._running = True
            try:
                threading.Thread(target=self._run, name="resultd-then", daemon=True).start()
            except BaseException:  # none is to be had: the next callback tries again
                self._running = False
                raise

    def _run(self) -> None:
        try:
            self._call_all()
        except BaseException:  # thrown into the thread from outside: the next one is to be begun
            self._running = False
            raise

    def _call_all(self) -> None:
        while True:
            try:
                callback = self._queue.get(timeout=IDLE)
            except queue.Empty:
                with self._starting:
                    if self._queue.empty():
                        self._running = False
                        return
                continue
            try:
                callback()
            except BaseException:  # SystemExit too: the thread is everybody's
                logger.exception("a then() callback failed")
