"""The worker's process that reports, by our client or by Celery's backend; it takes orders."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from uuid import uuid4

import resultd
import resultd.aio
from tests.benchmarks.celery_app import create_app
from tests.benchmarks.orders import take_orders

_VALUE = "x" * 298
_LIMIT_S = 120.0


class Reporter:
    """Reports to the server at a URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._mark = uuid4().hex
        self._numbers = itertools.count()

    def threads(self, count: int, threads: int) -> dict[str, float]:
        """Our client, shared by the threads."""
        with resultd.Client(self._url) as client:
            return _in_threads(
                lambda: client.store_result(self._id(), _VALUE), count // threads, threads
            )

    def tasks(self, count: int, tasks: int) -> dict[str, float]:
        """Our client for asyncio, shared by the tasks."""
        return asyncio.run(self._tasks(max(count // tasks, 1), tasks))

    async def _tasks(self, each: int, tasks: int) -> dict[str, float]:
        async with resultd.aio.Client(self._url) as client:

            async def report(times: int) -> None:
                for _ in range(times):
                    await client.store_result(self._id(), _VALUE)

            await asyncio.gather(*(report(1) for _ in range(tasks)))  # warm
            began_s = time.perf_counter()
            await asyncio.gather(*(report(each) for _ in range(tasks)))
            return {"per_s": each * tasks / (time.perf_counter() - began_s)}

    def celery(self, count: int, threads: int) -> dict[str, float]:
        """Celery's backend of this URL; Celery makes one for each thread."""
        app = create_app("memory://", self._url)
        return _in_threads(
            lambda: app.backend.store_result(self._id(), _VALUE, "SUCCESS"),
            count // threads,
            threads,
        )

    def nothing(self, count: int, threads: int) -> dict[str, float]:
        """An empty item handed to a thread that wakes whose it is, and sends nothing: the floor.

        Bare locks, the cheapest that Python has; what was handed over meanwhile is taken at once.
        """
        handed: deque[_thread.LockType] = deque()
        bell = _thread.allocate_lock()
        bell.acquire()
        own = threading.local()

        def wake() -> None:
            while bell.acquire():
                while handed:
                    handed.popleft().release()

        def hand_over() -> None:
            asleep = getattr(own, "asleep", None)
            if asleep is None:
                asleep = own.asleep = _thread.allocate_lock()
                asleep.acquire()
            handed.append(asleep)
            with contextlib.suppress(RuntimeError):  # it is awake
                bell.release()
            asleep.acquire()

        threading.Thread(target=wake, daemon=True).start()
        return _in_threads(hand_over, count // threads, threads)

    def _id(self) -> str:
        return f"{self._mark}{next(self._numbers):04x}"


def _in_threads(report: Callable[[], object], each: int, count: int) -> dict[str, float]:
    """Results a second of so many threads, `each` of them; connected and warm before."""
    both = threading.Barrier(count + 1, timeout=_LIMIT_S)

    def work() -> None:
        report()
        both.wait()
        for _ in range(each):
            report()
        both.wait()

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    both.wait()
    began_s = time.perf_counter()
    both.wait()
    took_s = time.perf_counter() - began_s
    for thread in threads:
        thread.join()
    return {"per_s": each * count / took_s}


if __name__ == "__main__":
    take_orders(Reporter(sys.argv[1]))
