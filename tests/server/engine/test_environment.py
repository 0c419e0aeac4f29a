"""LMDB as the engines know it: rows with checksums, scans, how full it is."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb
import pytest

from resultd_server import limits
from resultd_server.engine import disk, environment
from resultd_server.engine.environment import Environment, Txn
from resultd_server.errors import RecordCorrupt, StoreFailed
from resultd_server.ledger.txn import Db
from tests.support.full_disk import error_of, no_room
from tests.support.stores import MAP_BYTES

Opened = tuple[Environment, dict[Db, Any]]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """An empty environment and its databases."""
    made = environment.open_environment(tmp_path, MAP_BYTES, sync=False)
    yield made, environment.open_databases(made, tmp_path)
    made.close()


@pytest.fixture
def synced(tmp_path: Path) -> Iterator[Opened]:
    """The same as a server has it: meta pages have a descriptor of their own."""
    made = environment.open_environment(tmp_path, MAP_BYTES)
    yield made, environment.open_databases(made, tmp_path)
    made.close()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    """A data file that is not LMDB's any more is refused in a sentence, and let go."""
    environment.open_environment(tmp_path, MAP_BYTES).close()
    (tmp_path / "data.mdb").write_bytes(b"\1" * 8192)
    for _ in range(2):
        with pytest.raises(StoreFailed, match="cannot be opened"):
            environment.open_environment(tmp_path, MAP_BYTES)


def test_rows_come_back_in_key_order(opened: Opened) -> None:
    """A scan has the rows from its start up to, and without, its end; deleted ones are gone."""
    made, dbs = opened
    with made.begin(write=True) as raw:
        txn = Txn(raw, dbs)
        txn.put_many(Db.TASKS, [b"a", b"b", b"d"], [b"1", b"", b"4"])
        txn.put(Db.TASKS, b"c", b"3")
        assert txn.delete(Db.TASKS, b"a")
        assert not txn.delete(Db.TASKS, b"a")
        assert list(txn.scan(Db.TASKS, b"a", b"d")) == [(b"b", b""), (b"c", b"3")]
        assert list(txn.scan(Db.TASKS, b"e" * 1_000, b"f")) == []
        assert (txn.get(Db.TASKS, b"c"), txn.get(Db.TASKS, b"a")) == (b"3", None)
        assert list(txn.scan(Db.GROUPS, b"", b"z")) == []


def test_many_rows_are_read_at_once(opened: Opened) -> None:
    """Values come in the order asked for, None where there is none, as far as there is room."""
    made, dbs = opened
    with made.begin(write=True) as raw:
        txn = Txn(raw, dbs)
        txn.put_many(Db.TASKS, [b"a", b"b", b"c", b"d"], [b"1", b"", b"333", b"4"])
        assert txn.get_many(Db.TASKS, [b"b", b"x", b"a", b"b"], 9) == [b"", None, b"1", b""]
        asked = [b"a", b"b", b"c", b"d"]
        assert txn.get_many(Db.TASKS, asked, 5) == [b"1", b"", b"333", b"4"]
        assert txn.get_many(Db.TASKS, asked, 3) == [b"1", b"", b"333"]
        assert txn.get_many(Db.TASKS, [], 3) == []
        for room, several in ((9, asked), (3, asked), (9, [b"x", *asked])):
            rests = [each and each[1:] for each in txn.get_many(Db.TASKS, several, room)]
            assert txn.get_many(Db.TASKS, several, room, 1) == rests
        assert txn.page(Db.TASKS, b"b", b"d", 9) == ([b"b", b"c"], [b"", b"333"])
        assert txn.page(Db.TASKS, b"b", b"e", 1) == ([b"b"], [b""])
        assert [*map(len, txn.page(Db.TASKS, b"bb", b"c", 9))] == [0, 0]
        assert [*map(len, txn.page(Db.TASKS, b"e", b"f", 9))] == [0, 0]


@pytest.mark.parametrize("there", [0, 1, 7, 8, 9, 63, 64, 65, 99])
def test_a_page_ends_where_the_range_does(opened: Opened, there: int) -> None:
    """However few rows it has, and however many of others lie behind."""
    made, dbs = opened
    keys = [b"b%02d" % number for number in range(there)]
    with made.begin(write=True) as raw:
        txn = Txn(raw, dbs)
        others = [b"a", *(b"c%02d" % number for number in range(20))]
        txn.put_many(Db.TASKS, sorted([*keys, *others]), [b"1"] * (there + len(others)))
        for count in (0, 1, 7, 8, 9, 63, 64, 65, 99, 500):
            found = txn.page(Db.TASKS, b"b", b"c", count)
            assert found == (keys[:count], [b"1"] * min(there, count))


def test_a_page_of_few_rows_reads_few_of_others(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who follows a group asks for a page and finds one row, with other groups' behind it."""
    read = 0

    def counted(rows: Iterator[bytes], count: int) -> Iterator[bytes]:
        nonlocal read
        for row in islice(rows, count):
            read += 1
            yield row

    made, dbs = opened
    with made.begin(write=True) as raw:
        txn = Txn(raw, dbs)
        others = [b"c%03d" % number for number in range(500)]
        txn.put_many(Db.TASKS, [b"b", *others], [b"1"] * 501)
        monkeypatch.setattr(environment, "islice", counted)
        assert txn.page(Db.TASKS, b"b", b"c", 481) == ([b"b"], [b"1"])
    assert read == 8 + 1  # keys, and the row itself


@pytest.mark.parametrize("missing", [b"", b"x"])
def test_one_of_many_rows_that_is_damaged_is_named(opened: Opened, missing: bytes) -> None:
    """RecordCorrupt has the key of the damaged row, whatever is read with it."""
    made, dbs = opened
    with made.begin(write=True) as raw:
        txn = Txn(raw, dbs)
        txn.put_many(Db.TASKS, [b"a", b"c"], [b"1", b"3"])
        raw.put(b"b", environment.seal(b"a", b"2"), db=dbs[Db.TASKS])
        keys = [key for key in (b"a", missing, b"b", b"c") if key]
        with pytest.raises(RecordCorrupt) as met:
            txn.get_many(Db.TASKS, keys, 9)
        assert met.value.metadata["key"] == b"b".hex()
        with pytest.raises(RecordCorrupt) as met:
            txn.page(Db.TASKS, b"a", b"d", 9)
        assert met.value.metadata["key"] == b"b".hex()


@pytest.mark.parametrize("size_bytes", [0, 1, 500, 5_000])
def test_damage_anywhere_among_many_rows_is_found(opened: Opened, size_bytes: int) -> None:
    """A bit that is wrong in any of several rows, of whatever size, is found, and where."""
    made, dbs = opened
    keys = [b"a", b"bb", b"ccc"]
    for damaged in keys:
        for bit in (0, 8 * (size_bytes + 4) - 1):
            with made.begin(write=True) as raw:
                txn = Txn(raw, dbs)
                txn.put_many(Db.TASKS, keys, [bytes(size_bytes)] * 3)
                assert txn.get_many(Db.TASKS, keys, 99_999) == [bytes(size_bytes)] * 3
                row = bytearray(environment.seal(damaged, bytes(size_bytes)))
                row[bit // 8] ^= 1 << bit % 8
                raw.put(damaged, bytes(row), db=dbs[Db.TASKS])
                with pytest.raises(RecordCorrupt) as met:
                    txn.get_many(Db.TASKS, keys, 99_999)
                with pytest.raises(RecordCorrupt) as paged:
                    txn.page(Db.TASKS, b"a", b"d", 9)
                for error in (met.value, paged.value):
                    assert error.metadata["key"] == damaged.hex()


def test_small_rows_that_are_sound_are_checked_together(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many small rows none is looked at by itself while all are sound."""
    made, dbs = opened
    rows = [(b"%03d" % number, b"v" * number) for number in range(300)]
    with made.begin(write=True) as raw:
        txn = Txn(raw, dbs)
        txn.put_many(Db.TASKS, *map(list, zip(*rows, strict=True)))
        monkeypatch.delattr(environment, "unseal")
        keys, values = map(list, zip(*rows, strict=True))
        assert txn.get_many(Db.TASKS, keys, limits.MIB) == values
        assert txn.page(Db.TASKS, b"0", b"9", 999) == (keys, values)


@pytest.mark.parametrize("byte", [0, 4, -1])
def test_a_row_that_is_not_what_was_written_is_refused(byte: int) -> None:
    """Damage in the value or its checksum, or a value under another key, is RecordCorrupt."""
    row = bytearray(environment.seal(b"key", b"value"))
    assert environment.unseal(b"key", bytes(row)) == b"value"
    with pytest.raises(RecordCorrupt, match="backup"):
        environment.unseal(b"kez", bytes(row))
    row[byte] ^= 1
    with pytest.raises(RecordCorrupt):
        environment.unseal(b"key", bytes(row))


def test_what_lives_is_counted(opened: Opened) -> None:
    """Live bytes grow with what is put and shrink with what is deleted, as the file does not."""
    made, dbs = opened
    with made.begin(write=True) as raw:
        before = environment.count_live_bytes(raw, dbs)
        Txn(raw, dbs).put(Db.TASKS, b"k", bytes(1_000_000))
        assert environment.count_live_bytes(raw, dbs) > before + 1_000_000
        Txn(raw, dbs).delete(Db.TASKS, b"k")
        assert environment.count_live_bytes(raw, dbs) == before


def test_a_failed_write_without_room_is_as_if_it_had_never_been(
    synced: Opened, tmp_path: Path
) -> None:
    """LMDB goes on where the pages found no room: no quota of the disk has to say so."""
    made, dbs = synced
    no_space = pytest.raises(environment.Error, match="No space left")
    with no_space as caught, no_room(tmp_path), made.begin(write=True) as raw:
        Txn(raw, dbs).put(Db.TASKS, b"k", b"1")
    assert environment.finds_no_room(made, tmp_path, caught.value)
    with made.begin(write=True) as raw:
        assert Txn(raw, dbs).get(Db.TASKS, b"k") is None
        Txn(raw, dbs).put(Db.TASKS, b"k", b"2")
    with made.begin() as raw:
        assert Txn(raw, dbs).get(Db.TASKS, b"k") == b"2"


def test_a_meta_page_that_could_not_be_written_is_doubt(synced: Opened, tmp_path: Path) -> None:
    """Nobody knows which meta page a disk has then, full or not: that is no full disk."""
    made, dbs = synced
    no_space = pytest.raises(environment.Error, match="No space left")
    with no_space as caught, no_room(tmp_path, of_meta=True), made.begin(write=True) as raw:
        Txn(raw, dbs).put(Db.TASKS, b"k", b"1")
    assert not environment.finds_no_room(made, tmp_path, caught.value)


def test_half_a_write_is_a_full_disk_where_the_disk_is_full(
    synced: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB calls it an input/output error: the disk has the last word."""
    made, _ = synced
    half = error_of(errno.EIO)
    assert not environment.finds_no_room(made, tmp_path, half)
    assert "system's log" in environment.cannot_open(tmp_path, half).sentence
    monkeypatch.setattr(disk, "LOW_BYTES", 2**62)
    assert environment.finds_no_room(made, tmp_path, half)
    assert "make room" in environment.cannot_open(tmp_path, half).sentence


def test_a_backup_is_named_where_something_is_damaged() -> None:
    """And not where the system does not give what was asked for."""
    for error in (environment.Error("MDB_CORRUPTED"), error_of(-30_796), "its databases are odd"):
        assert "Restore it from a backup" in environment.cannot_open(Path("/x"), error).sentence
    for number in (errno.ENOSPC, errno.ENOMEM, errno.EACCES, errno.EROFS):
        assert "backup" not in environment.cannot_open(Path("/x"), error_of(number)).sentence


def test_who_reads_has_a_place_on_the_disk(tmp_path: Path) -> None:
    """LMDB's table of readers is there whole, and as large as LMDB would have made it."""
    environment.open_environment(tmp_path, MAP_BYTES).close()
    made = (tmp_path / "lock.mdb").stat()
    assert made.st_size == environment.LOCK_BYTES
    assert made.st_blocks * 512 >= environment.LOCK_BYTES
    (tmp_path / "lock.mdb").unlink()
    its_own = lmdb.open(str(tmp_path), max_readers=environment.READERS_MAX)
    assert (tmp_path / "lock.mdb").stat().st_size == environment.LOCK_BYTES
    its_own.close()
