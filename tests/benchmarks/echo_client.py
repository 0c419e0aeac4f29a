"""The yardsticks of our own client: blocking stubs on the bare echo server.

A process of its own that takes orders, as the clients it stands beside.
"""

from __future__ import annotations

import contextlib
import sys
import time
from uuid import uuid4

import grpc

from tests.benchmarks.orders import Partner, partner, take_orders
from tests.benchmarks.reports import report
from tests.benchmarks.wakes import wakes

_MODULE = "tests.benchmarks.echo_client"


class Echoes:
    """Calls and streams one after the other, on one connection."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stack = contextlib.ExitStack()  # never left: what it holds ends with this process
        self._pinger: Partner | None = None
        self._expected: set[str] = set()
        channel = grpc.insecure_channel(address)
        self._call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/Echo/Echo")
        self._ping: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/Echo/KeptPing"
        )
        self._wait: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/Echo/Wait")
        self._request = report("00000000-0000-0000-0000-000000000000").SerializeToString()
        self.calls(10)

    def calls(self, count: int) -> dict[str, float]:
        """So many: microseconds they took together."""
        began_s = time.perf_counter()
        for _ in range(count):
            self._call(self._request)
        return {"took": (time.perf_counter() - began_s) * 1e6}

    def wake(self, samples: int) -> dict[str, float]:
        """Call in another process, 4 KiB on disk → what an open stream here is sent for it."""
        if self._pinger is None:
            self._pinger = self._stack.enter_context(partner(_MODULE, self._address))
        ids = [str(uuid4()) for _ in range(samples + samples // 10)]
        return wakes(ids, self._pinger, self._get, self._expected.__contains__)

    def store_one(self, name: str) -> dict[str, float]:
        """Makes the call; when that was, by the clock that all processes share."""
        called_s = time.perf_counter()
        self._ping(name.encode() + b"\0" + self._request)
        return {"called_s": called_s}

    def _get(self, name: str) -> bytes:
        stream = self._wait(name.encode())
        next(stream)
        self._expected.add(name)
        return next(stream)


if __name__ == "__main__":
    take_orders(Echoes(sys.argv[1]))
