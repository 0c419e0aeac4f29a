"""The reference engine: nothing on disk, and an operation that raises leaves no trace."""

from __future__ import annotations

import pytest

from resultd_server.engine.memory import MemoryEngine
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.unit import TASK, Unit
from tests.support.stores import Clock, Store


async def test_what_raises_is_taken_back(clock: Clock) -> None:
    """An operation that raises in the middle changes nothing and hints nobody."""
    engine = MemoryEngine(clock)
    await engine.start()
    store = Store(engine, clock)
    await store.report("t")
    subscription = engine.subscribe("default")
    subscription.add(TASK, ["t"])
    before = {db: dict(rows) for db, rows in engine._maps.items()}

    def breaks(unit: Unit) -> None:
        for db, rows in before.items():
            for key in rows:
                unit.txn.delete(db, key)
                unit.txn.put(db, key + b"x", b"y")
        unit.hint(Namespace("default", b""), TASK, "t")
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await engine._write(breaks)
    assert {db: dict(rows) for db, rows in engine._maps.items()} == before
    assert subscription.take() == []


async def test_nothing_is_shared(clock: Clock) -> None:
    """What one memory engine keeps another does not see."""
    first, second = MemoryEngine(clock), MemoryEngine(clock)
    await Store(first, clock).report("t")
    assert await Store(second, clock).state("t") == "UNKNOWN"
    await first.close()
