"""The reference engine: everything in this process, nothing on disk."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence

from sortedcontainers import SortedDict

from resultd_server.engine.base import EngineStats
from resultd_server.engine.transactional import T, TransactionalEngine
from resultd_server.ledger import counters, usage
from resultd_server.ledger.txn import Db, Page, page_of, within
from resultd_server.ledger.unit import Unit, View
from resultd_server.ledger.usage import UNLIMITED, Allowance


class MemoryTxn:
    """A transaction on sorted maps, with a log to take it back."""

    def __init__(self, maps: dict[Db, SortedDict[bytes, bytes]]) -> None:
        self._maps = maps
        self._undo: list[tuple[Db, bytes, bytes | None]] = []

    def get(self, db: Db, key: bytes) -> bytes | None:
        value: bytes | None = self._maps[db].get(key)
        return value

    def get_many(
        self, db: Db, keys: Sequence[bytes], room_bytes: int, skip_bytes: int = 0
    ) -> list[bytes | None]:
        return within(room_bytes, map(self._maps[db].get, keys), skip_bytes)

    def scan(
        self, db: Db, start: bytes, stop: bytes, *, passing: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        rows = self._maps[db]
        for key in rows.irange(start, stop, inclusive=(True, False)):
            yield key, rows[key]

    def page(self, db: Db, start: bytes, stop: bytes, count: int) -> Page:
        return page_of(self.scan(db, start, stop), count)

    def put(self, db: Db, key: bytes, value: bytes) -> None:
        self._undo.append((db, key, self._maps[db].get(key)))
        self._maps[db][key] = value

    def put_many(self, db: Db, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        for key, value in zip(keys, values, strict=True):
            self.put(db, key, value)

    def delete(self, db: Db, key: bytes) -> bool:
        before = self._maps[db].pop(key, None)
        if before is not None:
            self._undo.append((db, key, before))
        return before is not None

    def remove(self, db: Db, key: bytes) -> None:
        self.delete(db, key)

    def roll_back(self) -> None:
        """Takes every change back, the last one first."""
        for db, key, before in reversed(self._undo):
            if before is None:
                self._maps[db].pop(key, None)
            else:
                self._maps[db][key] = before


class MemoryEngine(TransactionalEngine):
    """Runs every operation at once, on the event loop's thread."""

    name = "memory"

    def __init__(self, clock: Callable[[], int], *, allowance: Allowance = UNLIMITED) -> None:
        super().__init__(clock, allowance)
        self.store_id = uuid.uuid4().hex
        self._maps: dict[Db, SortedDict[bytes, bytes]] = {db: SortedDict() for db in Db}

    async def start(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close: what was kept is gone with the engine."""

    async def _write(
        self,
        operation: Callable[[Unit], T],
        *,
        grows: bool = True,
        size_bytes: int = 0,
        reports: int = 0,
    ) -> T:
        began_s = time.monotonic()
        txn = MemoryTxn(self._maps)
        unit = Unit(txn, self.clock(), allowance=self.allowance)
        try:
            result = operation(unit)
            counters.flush(unit)
            usage.flush(unit)
        except BaseException:
            txn.roll_back()
            raise
        self._commit_seconds.observe(time.monotonic() - began_s)
        self._commit_operations.observe(1)
        self._groups_incomplete += unit.expired_incomplete
        self.hub.announce(unit.changed, time.monotonic())
        return result

    def _read(self, operation: Callable[[View], T]) -> T:
        return operation(View(MemoryTxn(self._maps), self.clock()))

    def stats(self) -> EngineStats:
        return EngineStats(
            self._commit_seconds,
            self._commit_operations,
            revocations=self._revocations,
            groups_incomplete=self._groups_incomplete,
            held=self._held(),
            allowance=self.allowance,
        )
