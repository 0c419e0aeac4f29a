"""The yardstick of storing in batches: pipelines of the commands that Celery's backend sends.

A process of its own that takes orders: pipelines through redis-py, as a program would send
them; and the same commands as bytes made beforehand, which shows what the server can take.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from tests.benchmarks.orders import take_orders
from tests.benchmarks.reports import BATCH

_META: dict[str, Any] = {
    "status": "SUCCESS",
    "result": "x" * 298,
    "traceback": None,
    "children": [],
    "date_done": "2026-01-01T00:00:00.000000+00:00",
    "task_id": "00000000-0000-0000-0000-000000000000",
}
_VALUE = json.dumps(_META).encode()
_EXPIRES_S = 86_400
_ANSWERS = b"+OK\r\n:0\r\n" * BATCH


class Reports:
    """A redis-server to report to."""

    def __init__(self, url: str) -> None:
        import redis  # a machine without it can still import the benchmarks

        self._url = url
        self._client: Any = redis.Redis.from_url(url)
        self._numbers = itertools.count()

    def pipelined(self, batches: int, callers: int) -> dict[str, float]:
        """Through redis-py, in so many threads: results a second."""
        keys = [self._keys() for _ in range(batches)]
        self._in_threads(iter(keys[:callers]), callers)  # the connections are no part of it
        began_s = time.perf_counter()
        self._in_threads(iter(keys[callers:]), callers)
        return {"per_s": (batches - callers) * BATCH / (time.perf_counter() - began_s)}

    def _in_threads(self, left: Iterator[list[str]], callers: int) -> None:
        taking = threading.Lock()

        def work() -> None:
            while True:
                with taking:
                    keys = next(left, None)
                if keys is None:
                    return
                with self._client.pipeline(transaction=False) as pipeline:
                    for key in keys:
                        pipeline.set(key, _VALUE, ex=_EXPIRES_S)
                        pipeline.publish(key, _VALUE)
                    pipeline.execute()

        threads = [threading.Thread(target=work) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def packed(self, batches: int, callers: int) -> dict[str, float]:
        """Bytes made beforehand on so many connections: results a second."""
        sent = [b"".join(map(_packed, self._keys())) for _ in range(batches)]
        return {"per_s": batches * BATCH / asyncio.run(self._send(sent, callers))}

    async def _send(self, pipelines: list[bytes], callers: int) -> float:
        address = urlsplit(self._url)
        connections = [
            await asyncio.open_connection(address.hostname, address.port) for _ in range(callers)
        ]
        left = iter(pipelines)

        async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for pipeline in left:
                writer.write(pipeline)
                answers = await reader.readexactly(len(_ANSWERS))
                if answers != _ANSWERS:
                    raise RuntimeError(f"redis-server refused: {answers[:200]!r}")

        began_s = time.perf_counter()
        await asyncio.gather(*(work(*connection) for connection in connections))
        took_s = time.perf_counter() - began_s
        for _, writer in connections:
            writer.close()
        return took_s

    def _keys(self) -> list[str]:
        return [f"celery-task-meta-{next(self._numbers)}" for _ in range(BATCH)]


def _packed(key: str) -> bytes:
    """SET key value EX …, PUBLISH key value."""
    name, seconds = key.encode(), str(_EXPIRES_S).encode()
    return _command(b"SET", name, _VALUE, b"EX", seconds) + _command(b"PUBLISH", name, _VALUE)


def _command(*words: bytes) -> bytes:
    parts = [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


if __name__ == "__main__":
    take_orders(Reports(sys.argv[1]))
