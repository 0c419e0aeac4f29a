"""The yardstick of reading results one by one: a blocking stub on the bare echo server.

A process of its own that takes orders, as the clients it stands beside.
"""

from __future__ import annotations

import sys
import time

import grpc

from tests.benchmarks.orders import take_orders
from tests.benchmarks.reports import report


class Echoes:
    """Calls one after the other, on one connection."""

    def __init__(self, address: str) -> None:
        self._call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = grpc.insecure_channel(
            address
        ).unary_unary("/Echo/Echo")
        self._request = report("00000000-0000-0000-0000-000000000000").SerializeToString()
        self.calls(10)

    def calls(self, count: int) -> dict[str, float]:
        """So many: microseconds they took together."""
        began_s = time.perf_counter()
        for _ in range(count):
            self._call(self._request)
        return {"took": (time.perf_counter() - began_s) * 1e6}


if __name__ == "__main__":
    take_orders(Echoes(sys.argv[1]))
