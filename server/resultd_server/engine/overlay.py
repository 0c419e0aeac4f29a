"""Rows that are not in LMDB yet, and transactions that see them above it.

A layer is one dict and one sorted list of keys per database. A deleted row is a marker
(None). Newer layers lie above older ones, and all of them above LMDB.
"""

from __future__ import annotations

import heapq
import sys
import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from itertools import islice, repeat
from operator import itemgetter
from typing import Any

from resultd_server.ledger.txn import Db, Page, ReadTxn, page_of, within

Row = tuple[Db, bytes, bytes | None]
"""(database, key, value; None where the row is deleted)."""

_SORT_FROM = 16
_LOWER = object()  # no row here: a layer below may have it


class Rows:
    """The rows of one database, by key. None: deleted. No key is ever taken out.

    So the keys that were set since somebody last asked for a range are the dict's last
    ones, and setting a row costs no more than a dict does.
    """

    __slots__ = ("_lock", "_ordered", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self._ordered: list[bytes] = []
        self._lock = threading.Lock()

    def between(self, start: bytes, stop: bytes, count: int = sys.maxsize) -> list[bytes]:
        """The first `count` keys with start <= key < stop, in order."""
        if len(self.values) != len(self._ordered):
            with self._lock:  # a reader and a writer may both look
                self._sort()
        ordered = self._ordered
        first = bisect_left(ordered, start)
        if first == len(ordered) or ordered[first] >= stop:
            return []
        return ordered[first : bisect_left(ordered, stop, first, min(first + count, len(ordered)))]

    def _sort(self) -> None:
        ordered = self._ordered
        new = list(islice(reversed(self.values), len(self.values) - len(ordered)))
        if len(new) * _SORT_FROM > len(ordered):
            self._ordered = sorted(ordered + new)
        else:
            for key in new:
                insort(ordered, key)


class Layer:
    """Rows of all databases. `size_bytes`: what they took in the journal."""

    __slots__ = ("dbs", "size_bytes")

    def __init__(self) -> None:
        self.dbs: dict[Db, Rows] = {}
        self.size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self.dbs)

    def __len__(self) -> int:
        return sum(len(rows.values) for rows in self.dbs.values())

    def of(self, db: Db) -> Rows:
        """The rows of a database, to set some."""
        rows = self.dbs.get(db)
        if rows is None:
            rows = self.dbs[db] = Rows()
        return rows

    def update(self, newer: Layer) -> None:
        """Lays a newer layer's rows over these."""
        for db, rows in newer.dbs.items():
            self.of(db).values.update(rows.values)
        self.size_bytes += newer.size_bytes


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

    def get_many(
        self, db: Db, keys: Sequence[bytes], room_bytes: int, skip_bytes: int = 0
    ) -> list[bytes | None]:
        # Of a store at rest, and of what was stored a while ago: none.
        above = [
            rows.values
            for layer in self._layers
            if (rows := layer.dbs.get(db)) is not None and not rows.values.keys().isdisjoint(keys)
        ]
        if not above:
            return self._below.get_many(db, keys, room_bytes, skip_bytes)
        found: list[Any] = list(map(above[0].get, keys, repeat(_LOWER)))
        lower = [place for place, row in enumerate(found) if row is _LOWER]
        for values in above[1:]:
            for place in lower:
                found[place] = values.get(keys[place], _LOWER)
            lower = [place for place in lower if found[place] is _LOWER]
        if lower:
            rest = self._below.get_many(db, [keys[place] for place in lower], room_bytes)
            for place, row in zip(lower, rest, strict=False):
                found[place] = row
            if len(rest) < len(lower):  # they filled the room
                del found[lower[len(rest)] :]
        if None in found or sum(map(len, found)) > room_bytes:
            return within(room_bytes, found, skip_bytes)
        # As a rule all are there and fit: then without a line of Python for each.
        return list(map(itemgetter(slice(skip_bytes, None)), found))

    def scan(
        self, db: Db, start: bytes, stop: bytes, *, passing: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        found = self._between(db, start, stop)
        below = self._below.scan(db, start, stop, passing=passing)
        return _laid_over(found, below) if found else below

    def page(self, db: Db, start: bytes, stop: bytes, count: int) -> Page:
        above = self._between(db, start, stop, count)
        below = self._below.page(db, start, stop, count)
        if not above:
            return below
        found: dict[bytes, bytes | None] = dict(zip(*below, strict=True))
        for keys, values in reversed(above):
            found.update(zip(keys, map(values.__getitem__, keys), strict=True))
        # What has as many as that may have more behind its last one.
        ends = [keys[-1] for keys, _ in (below, *above) if len(keys) == count]
        ordered = sorted(found)
        if ends:
            del ordered[bisect_right(ordered, min(ends)) :]
        if None in found.values():
            ordered = [key for key in ordered if found[key] is not None]
            if ends and len(ordered) < count:  # too few are left of what was looked at
                return page_of(self.scan(db, start, stop), count)
        del ordered[count:]
        there: list[Any] = list(map(found.__getitem__, ordered))  # no None among them
        return ordered, there

    def _between(
        self, db: Db, start: bytes, stop: bytes, count: int = sys.maxsize
    ) -> list[tuple[list[bytes], dict[bytes, bytes | None]]]:
        """The first keys of each layer in a range, and what they are found in."""
        found = []
        for layer in self._layers:
            rows = layer.dbs.get(db)
            if rows is not None and (keys := rows.between(start, stop, count)):
                found.append((keys, rows.values))
        return found


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
        self.own.of(db).values[key] = value

    def put_many(self, db: Db, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        self.own.of(db).values.update(zip(keys, values, strict=True))

    def delete(self, db: Db, key: bytes) -> bool:
        there = self.get(db, key) is not None
        if there:
            self.remove(db, key)
        return there

    def remove(self, db: Db, key: bytes) -> None:
        self.own.of(db).values[key] = None
