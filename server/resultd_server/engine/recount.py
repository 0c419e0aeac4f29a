"""What namespaces hold, counted again in a store that nobody serves, and set right.

for change in recount.repair(directory):
    print(change.namespace, change.said, change.held)

Counts are the one thing in a store that can be made of the rest of it. A row of them that is
damaged refuses the writes of its namespace, and no other.
"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import NamedTuple

from resultd_server.engine import environment, lease
from resultd_server.engine.environment import Txn
from resultd_server.errors import RecordCorrupt
from resultd_server.ledger import consistency, keys, usage
from resultd_server.ledger.txn import Db


class Change(NamedTuple):
    """A count that was wrong: records and bytes as its row said, None if it could not be read,
    and as they are.
    """

    namespace: str
    said: tuple[int, int] | None
    held: tuple[int, int]


def repair(directory: Path) -> list[Change]:
    """Counts again, and writes what was wrong, durably on return; it may be done over.

    What a server left in its journal is written into the store before. Raises StoreFailed where
    there is no store, or pages or rows are damaged that are counted; OSError where a server
    uses it.
    """
    lease.check_there(directory)
    with contextlib.closing(lease.Lease(directory)):
        damages = environment.damage(directory)
        if damages:
            raise environment.cannot_open(directory, damages[0])
        size_bytes = (directory / environment.DATA).stat().st_size
        opened = environment.open_environment(
            directory, size_bytes + environment.HEADROOM_BYTES_MIN
        )
        with contextlib.closing(opened):
            dbs = environment.open_databases(opened, directory)
            try:
                with opened.begin(write=True) as raw:
                    return _repair(Txn(raw, dbs), environment.keys_of(raw, dbs[Db.META]))
            except (RecordCorrupt, struct.error, ValueError, environment.Error) as error:
                raise environment.cannot_open(directory, error) from error


def _repair(txn: Txn, meta_keys: list[bytes]) -> list[Change]:
    start, changes = keys.usage(b""), []
    held = consistency.recount(txn)
    names = {prefix: name for name, prefix in txn.scan(Db.NAMESPACES, b"", keys.ALL)}
    counted = {key[len(start) :] for key in meta_keys if key.startswith(start)}
    for prefix in sorted(counted | held.keys()):
        said, is_held = _said(txn, prefix), held.get(prefix, (0, 0))
        if said == is_held:
            continue
        if prefix in held:
            txn.put(Db.META, keys.usage(prefix), usage.pack(*is_held))
        else:
            txn.delete(Db.META, keys.usage(prefix))
        name = names.get(prefix, prefix.hex().encode())
        changes.append(Change(name.decode(), said, is_held))
    return changes


def _said(txn: Txn, prefix: bytes) -> tuple[int, int] | None:
    """What the row says; no row: nothing. None if it cannot be read."""
    try:
        row = txn.get(Db.META, keys.usage(prefix))
        return (0, 0) if row is None else usage.unpack(row)
    except (RecordCorrupt, struct.error):
        return None
