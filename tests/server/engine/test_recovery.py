"""From the journal into LMDB: in parts, again and again, and not without room."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from resultd_server.engine import environment, journal, recovery
from resultd_server.engine.disk import NoRoom
from resultd_server.engine.environment import Txn
from resultd_server.engine.journal import Journal
from resultd_server.engine.lease import Lease
from resultd_server.engine.overlay import Layer
from resultd_server.engine.recovery import Left, Progress, Target
from resultd_server.errors import StoreFailed
from resultd_server.ledger.txn import Db
from tests.support.full_disk import error_of
from tests.support.stores import MAP_BYTES


def rows(*numbers: int, value: bytes | None = b"v") -> Layer:
    """A layer with these rows, of two databases."""
    layer = Layer()
    for number in numbers:
        for db in (Db.TASKS, Db.EXPIRY):
            layer.of(db).values[b"%05d" % number] = value
    return layer


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """LMDB in a directory that was made ready."""
    Lease(tmp_path).close()
    opened = environment.open_environment(tmp_path, MAP_BYTES)
    yield recovery.open_target(opened, environment.open_databases(opened, tmp_path))
    opened.close()


def keys(target: Target, db: Db = Db.TASKS) -> list[int]:
    """What lies in LMDB."""
    with target.environment.begin() as txn:
        return [int(key) for key, _ in Txn(txn, target.dbs).scan(db, b"", b"z")]


@pytest.mark.parametrize("txn_rows", [64, 100, 128, 10_000])
def test_every_row_is_written_however_it_is_divided(target: Target, txn_rows: int) -> None:
    """Puts and deletions arrive whole, in one transaction or many; others get their turn."""
    pauses: list[None] = []
    recovery.write(target, rows(*range(200)), None)
    changes = rows(*range(100), value=None)
    changes.update(rows(*range(500, 600)))
    live_bytes = recovery.write(
        target,
        changes,
        Progress(b"run of 8", 7),
        txn_rows=txn_rows,
        pause=lambda: pauses.append(None),
    )
    for db in (Db.TASKS, Db.EXPIRY):
        assert keys(target, db) == [*range(100, 200), *range(500, 600)]
    assert live_bytes > 0
    assert pauses
    assert recovery.progress_of(target) == Progress(b"run of 8", 7)


def test_the_progress_comes_last(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that fails in the middle leaves the journal as much as it had to do before."""
    recovery.write(target, Layer(), Progress(b"run of 8", 1))
    put_many = Txn.put_many

    def fails(txn: Txn, db: Db, *rows: Sequence[bytes]) -> None:
        if db is Db.EXPIRY:
            raise environment.MapFull("no room")
        put_many(txn, db, *rows)

    with monkeypatch.context() as patch:
        patch.setattr(Txn, "put_many", fails)
        with pytest.raises(environment.MapFull):
            recovery.write(target, rows(*range(100)), Progress(b"run of 8", 2), txn_rows=64)
    assert recovery.progress_of(target) == Progress(b"run of 8", 1)
    assert 0 < len(keys(target)) <= 100


def left_behind(target: Target, directory: Path) -> None:
    """A journal that LMDB has not got."""
    written = Journal(directory, recovery.begin_run(target))
    written.append(written.encode(rows(1, 2)))
    written.append(written.encode(rows(2, value=None)))
    written.close()


def test_what_was_left_is_written_once_or_twice(target: Target, tmp_path: Path) -> None:
    """Replaying changes LMDB once; doing it again changes nothing, undone work is done again."""
    left_behind(target, tmp_path)
    before = recovery.progress_of(target)
    assert before is not None
    target.environment.close()
    for _ in range(2):
        recovery.replay(tmp_path)
        opened = environment.open_environment(tmp_path, MAP_BYTES)
        again = recovery.open_target(opened, environment.open_databases(opened, tmp_path))
        assert keys(again) == [1]
        assert recovery.progress_of(again) == Progress(before.run, 2)
        recovery.write(again, Layer(), before)  # as if the progress had not been written
        opened.close()


@pytest.mark.parametrize(
    ("name", "flipped"), [(b"journal", b"kournal"), (b"tasks", b"taskr"), (b"log", b"loo")]
)
def test_a_flipped_bit_in_a_databases_name_is_no_empty_database(
    target: Target, tmp_path: Path, name: bytes, flipped: bytes
) -> None:
    """Neither the journal nor what was in it seems never to have been: the start is refused."""
    left_behind(target, tmp_path)
    target.environment.close()
    data = tmp_path / "data.mdb"
    data.write_bytes(data.read_bytes().replace(name, flipped))
    for _ in range(2):
        with pytest.raises(StoreFailed, match=f"{flipped.decode()}.*backup"):
            recovery.replay(tmp_path)


def test_a_journal_that_lmdb_does_not_know_is_refused(target: Target, tmp_path: Path) -> None:
    """Files of a journal, and nothing that says how far it is done: not taken for done."""
    left_behind(target, tmp_path)
    with target.environment.begin(write=True) as txn:
        txn.drop(target.progress_db, delete=False)
    target.environment.close()
    with pytest.raises(StoreFailed, match="does not know its journal"):
        recovery.replay(tmp_path)


def test_a_store_without_a_journal_is_left_alone(tmp_path: Path) -> None:
    """Where no journal was ever written nothing is opened."""
    recovery.replay(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_room_nothing_is_lost(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cannot serve a journal that does not fit is told so, in a sentence; it stays as it is."""
    left_behind(target, tmp_path)
    target.environment.close()

    def full(*_: object) -> None:
        raise error_of(errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr(Txn, "put_many", full)
        with pytest.raises(NoRoom, match="make room on its disk") as caught:
            Lease(tmp_path)
        assert "backup" not in caught.value.sentence
        for _ in range(2):
            lease = Lease(tmp_path, keeps_left=True)
            assert lease.left is not None
            assert lease.left.progress.entry == 2
            assert lease.left.layer.of(Db.TASKS).values == {b"00001": b"v", b"00002": None}
            lease.close()
    Lease(tmp_path).close()


def test_another_trouble_is_no_full_disk(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that a broken disk does not take is not served before it is in LMDB."""
    left_behind(target, tmp_path)
    target.environment.close()

    def broken(*_: object) -> None:
        raise error_of(errno.EIO)

    monkeypatch.setattr(Txn, "put_many", broken)
    with pytest.raises(StoreFailed, match="Input/output error"):
        Lease(tmp_path, keeps_left=True)


def test_a_run_goes_on_where_it_was(target: Target, tmp_path: Path) -> None:
    """After its last entry, in the same file; what comes then is read with what was there."""
    left_behind(target, tmp_path)
    before = recovery.progress_of(target)
    assert before is not None
    left = Left(Progress(before.run, 2), rows(1))
    again = recovery.go_on(target, tmp_path, left)
    again.append(again.encode(rows(3)))
    again.close()
    last, layer = journal.read(tmp_path, before.run, before.entry)
    assert last == 3
    assert layer.of(Db.TASKS).values == {b"00001": b"v", b"00002": None, b"00003": b"v"}


def test_a_run_goes_on_over_what_lmdb_has(target: Target, tmp_path: Path) -> None:
    """Where nothing is left the files are used from the start, and the entries' numbers go on."""
    left_behind(target, tmp_path)
    before = recovery.progress_of(target)
    assert before is not None
    recovery.write(target, rows(1), Progress(before.run, 2))
    again = recovery.go_on(target, tmp_path, Left(Progress(before.run, 2), Layer()))
    again.append(again.encode(rows(3)))
    again.close()
    last, layer = journal.read(tmp_path, before.run, 2)
    assert (last, layer.of(Db.TASKS).values) == (3, {b"00003": b"v"})
    assert journal.end_of(tmp_path, before.run, 3) == (0, journal.BLOCK_BYTES)


def test_what_was_read_is_synced_before_the_run_goes_on(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed server may have written more than it synced, and entries build on what was read."""
    left_behind(target, tmp_path)
    before = recovery.progress_of(target)
    assert before is not None
    synced: list[str] = []

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    class Noting:
        def sync(self, force: bool) -> None:
            assert force
            synced.append("data.mdb")

    monkeypatch.setattr(os, "fsync", noted)
    noting: Any = Noting()
    left = Left(Progress(before.run, 2), rows(1))
    recovery.go_on(target._replace(environment=noting), tmp_path, left).close()
    assert {"data.mdb", *journal.FILES} <= set(synced)
