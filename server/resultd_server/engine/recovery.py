"""From the journal into LMDB: while a server runs (a checkpoint), and when one starts.

Rows are written as they are to be in the end, so doing it again changes nothing: a
checkpoint may stop anywhere and be repeated, and takes several transactions where there is
much to write. The last one says how far LMDB has the journal. Those before it leave a
mark, so that nobody copies half of a commit (`backup`); so does the last one, where part
of a commit after it was written to make room.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from resultd_server.engine import environment, journal
from resultd_server.engine.environment import Environment, Transaction, Txn
from resultd_server.engine.journal import Journal
from resultd_server.engine.overlay import Layer
from resultd_server.ledger.txn import Db

TXN_ROWS = 8_000
"""Each may copy a page, so a transaction takes about 40 MiB of the map before it gives any back."""

SLICE_ROWS = 64
"""About 0.1 ms, in which the event loop waits for Python's lock."""

_KEY = b"progress"
_MARK = b"partial"


class Progress(NamedTuple):
    """How far LMDB has the journal: the run, and its last entry."""

    run: bytes
    entry: int


class Left(NamedTuple):
    """What of a journal LMDB has no room for. `progress`: as it will be when LMDB has it."""

    progress: Progress
    layer: Layer


class Target(NamedTuple):
    """Where a checkpoint writes to."""

    environment: Environment
    dbs: dict[Db, Any]
    progress_db: Any


def open_target(opened: Environment, dbs: dict[Db, Any]) -> Target:
    """The target in an environment. Raises environment.Error."""
    return Target(opened, dbs, opened.open_db(environment.JOURNAL))


def find_target(opened: Environment) -> Target:
    """The same in one that is only read. Raises environment.Error where part of it is missing.

    Its journal's database may be: several processes have no journal.
    """
    dbs = {db: opened.open_db(db.value, create=False) for db in Db}
    return Target(opened, dbs, environment.find_database(opened, environment.JOURNAL))


def begin_run(target: Target) -> bytes:
    """A new run, of which LMDB has everything: nothing. Raises environment.Error."""
    run = os.urandom(journal.RUN_BYTES)
    write(target, Layer(), Progress(run, 0))
    return run


def write(
    target: Target,
    layer: Layer,
    progress: Progress | None,
    *,
    txn_rows: int = TXN_ROWS,
    pause: Callable[[], None] | None = None,
    whole: bool = True,
) -> int:
    """Writes a layer, durably on return, and then the progress; live bytes afterwards.

    `pause` is called every now and then. `whole`: LMDB has no half of a commit afterwards; the
    mark stays otherwise. Raises environment.Error; some rows may be written then.
    """
    slices = _slices(layer)
    while True:
        with target.environment.begin(write=True) as raw:
            txn = Txn(raw, target.dbs)
            more = _write_some(txn, slices, txn_rows, pause)
            if more or not whole:
                raw.put(_MARK, environment.seal(_MARK, b""), db=target.progress_db)
            else:
                raw.delete(_MARK, db=target.progress_db)
            if not more:
                if progress is not None:
                    value = progress.run + progress.entry.to_bytes(8, "big")
                    raw.put(_KEY, environment.seal(_KEY, value), db=target.progress_db)
                return environment.count_live_bytes(raw, target.dbs)


def _slices(layer: Layer) -> Iterator[tuple[Db, list[bytes], dict[bytes, bytes | None]]]:
    """Keys as LMDB takes them best, by database and in order, with what they are found in."""
    for db in journal.DATABASES:
        rows = layer.dbs.get(db)
        if rows is not None:
            keys = sorted(rows.values)
            for begin in range(0, len(keys), SLICE_ROWS):
                yield db, keys[begin : begin + SLICE_ROWS], rows.values


def _write_some(
    txn: Txn,
    slices: Iterator[tuple[Db, list[bytes], dict[bytes, bytes | None]]],
    count: int,
    pause: Callable[[], None] | None,
) -> bool:
    """Writes until it is `count` rows; whether there may be more."""
    for db, keys, values in slices:
        count -= len(keys)
        rows = list(map(values.__getitem__, keys))
        if None in rows:
            for key, value in zip(keys, rows, strict=True):
                if value is None:
                    txn.delete(db, key)
            keys = [key for key in keys if values[key] is not None]
        txn.put_many(db, keys, [value for value in rows if value is not None])
        if count <= 0:
            return True
        if pause is not None:
            pause()
    return False


def replay(directory: Path) -> Left | None:
    """Writes into LMDB what a server that ended suddenly left in the journal.

    What there is no room for, None where LMDB has everything then. Raises StoreFailed where the
    journal is damaged, or cannot be written for another reason.
    """
    if not any((directory / name).exists() for name in journal.FILES):
        return None
    opened = environment.open_environment(directory, environment.replay_map_bytes(directory))
    try:
        target = open_target(opened, environment.open_databases(opened, directory))
        progress = progress_of(target)
        if progress is None:  # it was written before the files were made
            raise environment.cannot_open(directory, "it does not know its journal")
        entry, layer = journal.read(directory, progress.run, progress.entry)
        if not layer:
            return None
        last = Progress(progress.run, entry)
        try:
            write(target, layer, last)
        except environment.Error as error:
            if environment.finds_no_room(opened, directory, error):
                return Left(last, layer)
            raise
        return None
    except environment.Error as error:
        raise environment.cannot_open(directory, error) from error
    finally:
        opened.close()


def go_on(target: Target, directory: Path, left: Left, *, sync: bool = True) -> Journal:
    """The journal, open to append to the run that wrote it last: a new one cannot begin.

    Before it is written to, all that was read at this start is made to be on disk. A server that
    was killed may have written more than it synced: its last entry, or how far LMDB has the
    journal. After a power cut that would be missing before what comes now, or below it. Raises
    environment.Error, OSError.
    """
    target.environment.sync(True)
    place = journal.end_of(directory, left.progress.run, left.progress.entry if left.layer else 0)
    again = Journal(directory, left.progress.run, sync=sync)
    again.go_on(left.progress.entry, place)
    return again


def progress_of(target: Target) -> Progress | None:
    """How far LMDB has the journal; None before there was one. Raises RecordCorrupt."""
    with target.environment.begin() as txn:
        return progress_in(target, txn)


def progress_in(target: Target, txn: Transaction) -> Progress | None:
    """The same as a transaction sees it."""
    if target.progress_db is None:
        return None
    raw: Any = txn.get(_KEY, db=target.progress_db)  # bytes, since buffers=False
    if raw is None:
        return None
    value = environment.unseal(_KEY, raw)
    return Progress(value[: journal.RUN_BYTES], int.from_bytes(value[journal.RUN_BYTES :], "big"))


def between_checkpoints(target: Target, txn: Transaction) -> bool:
    """Whether a transaction sees whole commits only."""
    return target.progress_db is None or txn.get(_MARK, db=target.progress_db) is None
