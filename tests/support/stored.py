"""What lies in an engine, below its contract."""

from __future__ import annotations

from typing import Any

from resultd_server.engine.base import Engine
from resultd_server.engine.lmdb import LmdbEngine
from resultd_server.engine.memory import MemoryEngine
from resultd_server.ledger import consistency, keys, namespaces, usage
from resultd_server.ledger.consistency import Broken
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import View


def broken_in(engine: Engine) -> list[Broken]:
    """Rows that do not fit one another, or are left of what is gone."""
    transactional: Any = engine  # every one of them is
    found: list[Broken] = transactional._read(
        lambda view: [*consistency.check(view.txn, view.now_ms), *consistency.strays(view.txn)]
    )
    return found


def rows_of(engine: Engine, db: Db) -> list[tuple[bytes, bytes]]:
    """The rows of a database."""
    transactional: Any = engine
    found: list[tuple[bytes, bytes]] = transactional._read(
        lambda view: list(view.txn.scan(db, b"", keys.ALL))
    )
    return found


def row_of(engine: Engine, db: Db, key: bytes) -> bytes | None:
    """The row of a key."""
    transactional: Any = engine
    row: bytes | None = transactional._read(lambda view: view.txn.get(db, key))
    return row


def tamper(engine: MemoryEngine, db: Db, key: bytes, value: bytes | None) -> None:
    """Sets a row, or takes it out, whatever the rules say."""
    if value is None:
        del engine._maps[db][key]
    else:
        engine._maps[db][key] = value


def damage(engine: Engine, db: Db, key_part: bytes, *, gone: bool = False) -> None:
    """Flips a byte of every row in LMDB whose key has this part, as a bad disk would.

    `gone`: takes the rows out.
    """
    assert isinstance(engine, LmdbEngine)
    with engine._env.begin(write=True, db=engine._dbs[db]) as txn:
        rows = [(key, value) for key, value in txn.cursor() if key_part in key]
        assert rows
        for key, value in rows:
            if gone:
                txn.delete(key)
            else:
                txn.put(key, bytes([value[0] ^ 1]) + value[1:])


def usage_of(engine: Engine, namespace: str = "default") -> tuple[int, int]:
    """(records, bytes) that a namespace is said to hold; asserts that a recount agrees."""
    transactional: Any = engine

    def looked_up(view: View) -> tuple[dict[bytes, tuple[int, int]], bytes]:
        rows = {prefix: (records, size) for prefix, records, size in usage.rows(view.txn)}
        found = consistency.recount(view.txn)
        for prefix in rows.keys() | found.keys():
            assert rows.get(prefix, (0, 0)) == found.get(prefix, (0, 0))
        known = namespaces.find(view.txn, namespace)
        return rows, b"" if known is None else known.prefix

    rows, prefix = transactional._read(looked_up)
    held: tuple[int, int] = rows.get(prefix, (0, 0))
    return held


def times_filed(engine: Engine) -> list[int]:
    """When something is to be looked at for its expiry, in order."""
    return [keys.parse_expiry(key)[0] for key, _ in rows_of(engine, Db.EXPIRY)]
