"""The yardstick of storing in batches: the same bytes put into LMDB, and nothing else.

A process of its own that takes orders; as many puts a durable commit as a batch has reports.
"""

from __future__ import annotations

import itertools
import tempfile
import time

import lmdb

from tests.benchmarks.orders import take_orders
from tests.benchmarks.reports import BATCH, report

_MAP_BYTES = 16 * 1024**3


class Puts:
    """An environment of the server's own settings."""

    def __init__(self, directory: str) -> None:
        self._env = lmdb.open(
            directory, map_size=_MAP_BYTES, max_dbs=1, writemap=False, lib_version=0
        )
        self._db = self._env.open_db(b"tasks")
        self._numbers = itertools.count()

    def put(self, count: int) -> dict[str, float]:
        """Puts so many rows: CPU µs a row, and rows a second."""
        rows = []
        for _ in range(count):
            task_id = f"task-{next(self._numbers)}"
            rows.append((task_id.encode(), report(task_id).meta.SerializeToString()))
        cpu_s, began_s = time.process_time(), time.perf_counter()
        for start in range(0, count, BATCH):
            with self._env.begin(write=True, db=self._db) as txn:
                for key, value in rows[start : start + BATCH]:
                    txn.put(key, value)
        took_s = time.perf_counter() - began_s
        return {"cpu_us": (time.process_time() - cpu_s) / count * 1e6, "per_s": count / took_s}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as where:
        take_orders(Puts(where))
