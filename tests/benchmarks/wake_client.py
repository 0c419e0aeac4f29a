"""Our own client's process of the latency benchmark: it waits, and has another one store."""

from __future__ import annotations

import contextlib
import sys
import time
from uuid import uuid4

import resultd
from tests.benchmarks.orders import Partner, partner, take_orders
from tests.benchmarks.wakes import LIMIT_S, wakes

_MODULE = "tests.benchmarks.wake_client"
_VALUE = "x" * 298


class Program:
    """A client of a server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stack = contextlib.ExitStack()  # never left: what it holds ends with this process
        self._storer: Partner | None = None
        self._client = resultd.Client(url)
        self._client.server_info()  # the connection is no part of it

    def wake(self, samples: int) -> dict[str, float]:
        """Call of `store_result` in another process → the value that `get()` here waited for."""
        if self._storer is None:
            self._storer = self._stack.enter_context(partner(_MODULE, self._url))
        ids = [str(uuid4()) for _ in range(samples + samples // 10)]
        return wakes(ids, self._storer, self._get, self._is_subscribed)

    def store_one(self, task_id: str) -> dict[str, float]:
        """Stores a result; when that was called, by the clock that all processes share."""
        called_s = time.perf_counter()
        self._client.store_result(task_id, _VALUE)
        return {"called_s": called_s}

    def _get(self, task_id: str) -> object:
        return self._client.AsyncResult(task_id).get(timeout=LIMIT_S)

    def _is_subscribed(self, task_id: str) -> bool:
        watcher = self._client.watcher()
        return watcher.streaming and task_id in watcher._hub._waiters


if __name__ == "__main__":
    take_orders(Program(sys.argv[1]))
