"""What lies in an engine, below its contract."""

from __future__ import annotations

from typing import Any

from resultd_server.engine.base import Engine
from resultd_server.engine.memory import MemoryEngine
from resultd_server.ledger import consistency, keys
from resultd_server.ledger.consistency import Broken
from resultd_server.ledger.txn import Db


def broken_in(engine: Engine) -> list[Broken]:
    """Rows that do not fit one another."""
    transactional: Any = engine  # every one of them is
    found: list[Broken] = transactional._read(
        lambda view: list(consistency.check(view.txn, view.now_ms))
    )
    return found


def rows_of(engine: Engine, db: Db) -> list[tuple[bytes, bytes]]:
    """The rows of a database."""
    transactional: Any = engine
    found: list[tuple[bytes, bytes]] = transactional._read(
        lambda view: list(view.txn.scan(db, b"", keys.ALL))
    )
    return found


def tamper(engine: MemoryEngine, db: Db, key: bytes, value: bytes | None) -> None:
    """Sets a row, or takes it out, whatever the rules say."""
    if value is None:
        del engine._maps[db][key]
    else:
        engine._maps[db][key] = value
