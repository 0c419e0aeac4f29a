"""Rows that are not in LMDB yet, and transactions that see them above it.

A layer is one dict and one sorted list of keys per database. A deleted row is a marker
(None). Newer layers lie above older ones, and all of them above LMDB.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from resultd_server.ledger.txn import Db, ReadTxn

Row = tuple[Db, bytes, bytes | None]
"""(database, key, value; None where the row is deleted)."""

_ROW_BYTES = 16
_SORT_FROM = 16


class _Rows:
    """The rows of one database. Keys are sorted when somebody asks for a range."""

    __slots__ = ("_fresh", "_ordered", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self._ordered: list[bytes] = []
        self._fresh: list[bytes] = []

    def set(self, key: bytes, value: bytes | None) -> None:
        if key not in self.values:
            self._fresh.append(key)
        self.values[key] = value

    def between(self, start: bytes, stop: bytes) -> list[bytes]:
        """The keys with start <= key < stop, in order."""
        ordered = self._ordered
        if self._fresh:
            if len(self._fresh) * _SORT_FROM > len(ordered):
                ordered += self._fresh
                ordered.sort()
            else:
                for key in self._fresh:
                    insort(ordered, key)
            self._fresh.clear()
        first = bisect_left(ordered, start)
        if first == len(ordered) or ordered[first] >= stop:
            return []
        return ordered[first : bisect_left(ordered, stop, first)]


class Layer:
    """Rows of all databases. `size_bytes`: of keys and values, each time they were set."""

    __slots__ = ("dbs", "rows", "size_bytes")

    def __init__(self) -> None:
        self.dbs: dict[Db, _Rows] = {}
        self.rows = 0
        self.size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self.dbs)

    def set(self, db: Db, key: bytes, value: bytes | None) -> None:
        """Sets or deletes a row."""
        rows = self.dbs.get(db)
        if rows is None:
            rows = self.dbs[db] = _Rows()
        rows.set(key, value)
        self.rows += 1
        self.size_bytes += len(key) + _ROW_BYTES + (len(value) if value else 0)

    def update(self, newer: Layer) -> None:
        """Lays a newer layer's rows over these."""
        for db, rows in newer.dbs.items():
            mine = self.dbs.get(db)
            if mine is None:
                self.dbs[db] = rows  # handed over: nobody writes to `newer` any more
            else:
                for key, value in rows.values.items():
                    mine.set(key, value)
        self.rows += newer.rows
        self.size_bytes += newer.size_bytes

    def items(self) -> Iterator[Row]:
        """Every row, in no order."""
        for db, rows in self.dbs.items():
            for key, value in rows.values.items():
                yield db, key, value


class OverlayTxn:
    """A reading transaction: layers, the newest first, above another one."""

    __slots__ = ("_below", "_layers")

    def __init__(self, layers: Sequence[Layer], below: ReadTxn) -> None:
        self._layers = layers
        self._below = below

    def get(self, db: Db, key: bytes) -> bytes | None:
        for layer in self._layers:
            rows = layer.dbs.get(db)
            if rows is not None and key in rows.values:
                return rows.values[key]
        return self._below.get(db, key)

    def scan(self, db: Db, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        found = []
        for layer in self._layers:
            rows = layer.dbs.get(db)
            if rows is not None and (keys := rows.between(start, stop)):
                found.append((keys, rows.values))
        below = self._below.scan(db, start, stop)
        return _laid_over(found, below) if found else below


def _laid_over(
    layers: list[tuple[list[bytes], dict[bytes, bytes | None]]],
    below: Iterator[tuple[bytes, bytes]],
) -> Iterator[tuple[bytes, bytes]]:
    """The rows of all in key order; of a key that several have, the first's."""
    before = None
    lower = next(below, None)
    for key in heapq.merge(*(keys for keys, _ in layers)):
        if key == before:
            continue
        before = key
        while lower is not None and lower[0] < key:
            yield lower
            lower = next(below, None)
        if lower is not None and lower[0] == key:
            lower = next(below, None)
        value = next(values[key] for _, values in layers if key in values)
        if value is not None:
            yield key, value
    if lower is not None:
        yield lower
        yield from below


class WriteSet(OverlayTxn):
    """A writing transaction: what it changes is in `own`, and nowhere else yet."""

    __slots__ = ("own",)

    def __init__(self, layers: Sequence[Layer], below: ReadTxn) -> None:
        self.own = Layer()
        super().__init__((self.own, *layers), below)

    def put(self, db: Db, key: bytes, value: bytes) -> None:
        self.own.set(db, key, value)

    def delete(self, db: Db, key: bytes) -> bool:
        there = self.get(db, key) is not None
        if there:
            self.own.set(db, key, None)
        return there
