"""From the journal into LMDB: in parts, again and again, and not without room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from resultd_server.engine import environment, recovery
from resultd_server.engine.environment import Txn
from resultd_server.engine.journal import Journal
from resultd_server.engine.lease import Lease
from resultd_server.engine.overlay import Layer
from resultd_server.engine.recovery import Progress, Target
from resultd_server.errors import StoreFailed
from resultd_server.ledger.txn import Db
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


def test_without_room_it_says_so(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal that does not fit keeps the server from starting, in a sentence; it stays."""
    left_behind(target, tmp_path)
    target.environment.close()

    def full(*_: object) -> None:
        raise environment.Error("mdb_txn_commit: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Txn, "put_many", full)
        with pytest.raises(StoreFailed, match="Make room on the disk"):
            Lease(tmp_path)
    Lease(tmp_path).close()
