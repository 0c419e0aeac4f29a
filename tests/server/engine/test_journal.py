"""The journal: what was appended is read again, what was cut short is not, damage is said."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from resultd_server import limits
from resultd_server.engine import journal
from resultd_server.engine.journal import BLOCK_BYTES, DATABASES, FILES, Journal
from resultd_server.engine.overlay import Layer
from resultd_server.errors import StoreFailed
from resultd_server.ledger.txn import Db

RUN = b"run of 8"
SEGMENT = 512 * limits.KIB


def layer(**rows: bytes | None) -> Layer:
    """Rows of one database."""
    made = Layer()
    for key, value in rows.items():
        made.of(Db.TASKS).values[key.encode()] = value
    return made


def opened(directory: Path, run: bytes = RUN) -> Journal:
    """A small one."""
    return Journal(directory, run, SEGMENT)


def append(to: Journal, **rows: bytes | None) -> None:
    """One commit."""
    to.append(to.encode(layer(**rows)))


def found(directory: Path, after: int = 0, run: bytes = RUN) -> tuple[int, dict[str, bytes | None]]:
    """The last entry and the rows of one database."""
    entry, read = journal.read(directory, run, after)
    return entry, {key.decode(): value for key, value in read.of(Db.TASKS).values.items()}


def test_every_database_has_a_number() -> None:
    """No database's rows are lost for want of a place in the format."""
    assert sorted(db.value for db in DATABASES) == sorted(db.value for db in Db)


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    """Rows of all databases, deleted ones too, come back as the last commit left them."""
    written = opened(tmp_path)
    everything = Layer()
    for number, db in enumerate(Db):
        everything.of(db).values.update({bytes([number]): db.value, b"": b"", b"gone": None})
    written.append(written.encode(everything))
    append(written, a=b"1", b=b"x" * 10_000)
    append(written, a=None)
    written.close()
    entry, read = journal.read(tmp_path, RUN, 0)
    assert entry == 3
    everything.of(Db.TASKS).values.update({b"a": None, b"b": b"x" * 10_000})
    assert {db: rows.values for db, rows in read.dbs.items()} == {
        db: rows.values for db, rows in everything.dbs.items()
    }


def test_reading_twice_says_the_same(tmp_path: Path) -> None:
    """Reading changes nothing; what LMDB has already is left out."""
    written = opened(tmp_path)
    for number in range(5):
        append(written, **{f"k{number}": b"v"})
    written.close()
    assert found(tmp_path) == found(tmp_path)
    assert found(tmp_path, after=3) == (5, {"k3": b"v", "k4": b"v"})
    assert found(tmp_path, after=5) == (5, {})


def test_another_run_is_not_read(tmp_path: Path) -> None:
    """What an earlier process, or another store, wrote never passes for this run's."""
    written = opened(tmp_path)
    append(written, a=b"1")
    written.close()
    assert found(tmp_path, run=b"other ru") == (0, {})
    again = opened(tmp_path, b"other ru")
    append(again, b=b"2")
    again.close()
    assert found(tmp_path, run=b"other ru") == (1, {"b": b"2"})


def test_an_earlier_use_of_a_file_is_not_read(tmp_path: Path) -> None:
    """Files are written in turn; what is left of an earlier use stays out."""
    written = opened(tmp_path)
    for number in range(6):
        append(written, **{f"old{number}": b"v"})
    written.rotate()
    append(written, middle=b"v")
    written.rotate()  # LMDB has 1 to 6 by now: it is over the first ones
    append(written, new=b"v")
    written.close()
    assert found(tmp_path, after=6) == (8, {"middle": b"v", "new": b"v"})


@pytest.mark.parametrize(("size_bytes", "every"), [(10, 1), (BLOCK_BYTES, 97)])
def test_a_torn_end_is_no_entry_and_takes_nothing_along(
    tmp_path: Path, size_bytes: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at whatever byte, the last commit is there whole or not at all; the others are."""
    monkeypatch.setattr(journal, "FIRST_BYTES", 4 * BLOCK_BYTES)
    written = opened(tmp_path)
    append(written, a=b"1")
    append(written, b=b"2")
    last = written.encode(layer(c=b"3" * size_bytes, d=None))
    written.append(last)
    written.close()
    path = tmp_path / FILES[0]
    whole = path.read_bytes()
    at = 2 * BLOCK_BYTES
    payload = len(last.rstrip(b"\0"))
    for cut in range(0, payload + 8, every):
        path.write_bytes(whole[: at + cut] + bytes(len(last) - cut))
        entry, rows = found(tmp_path)
        assert (rows["a"], rows["b"]) == (b"1", b"2")
        assert entry == (3 if cut >= payload else 2)
        assert ("c" in rows) == (entry == 3) == ("d" in rows)
        # The other way round: the end was written first.
        path.write_bytes(whole[:at] + bytes(cut) + whole[at + cut :])
        assert found(tmp_path)[0] == (2 if cut else 3)


@pytest.mark.parametrize("byte", [0, 5, 10, 20, 30, 45])
def test_damage_in_the_middle_is_said(tmp_path: Path, byte: int) -> None:
    """A commit that cannot be read before one that can is no torn end: nothing is guessed."""
    written = opened(tmp_path)
    for number in range(4):
        append(written, **{f"k{number}": b"v"})
    written.close()
    path = tmp_path / FILES[0]
    damaged = bytearray(path.read_bytes())
    damaged[BLOCK_BYTES + byte] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(StoreFailed, match=r"entry 2 cannot be read.*backup.*journal\.0"):
        journal.read(tmp_path, RUN, 0)
    assert found(tmp_path, after=2)[0] == 4


def test_a_file_that_is_gone_is_damage(tmp_path: Path) -> None:
    """Without the first of two files the second's entries are not taken for all."""
    written = opened(tmp_path)
    append(written, a=b"1")
    written.rotate()
    append(written, b=b"2")
    written.close()
    (tmp_path / FILES[0]).unlink()
    with pytest.raises(StoreFailed, match="entry 1 cannot be read"):
        journal.read(tmp_path, RUN, 0)


def test_an_entry_taken_back_is_none(tmp_path: Path) -> None:
    """What was refused is not read later, and the next commit stands in its place."""
    written = opened(tmp_path)
    append(written, a=b"1")
    refused = written.encode(layer(b=b"2"))
    written._write(refused, BLOCK_BYTES)  # whole on disk, though the call failed
    written.take_back()
    assert found(tmp_path) == (1, {"a": b"1"})
    written.rotate()
    append(written, c=b"3")
    written.close()
    assert found(tmp_path) == (2, {"a": b"1", "c": b"3"})


def test_a_full_disk_is_met_before_an_entry_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file cannot grow, what is there is used up, but for the spare, and not more."""
    monkeypatch.setattr(journal, "FIRST_BYTES", 2 * BLOCK_BYTES)
    written = opened(tmp_path)
    append(written, a=b"1")
    write = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if offset + len(data) > 2 * BLOCK_BYTES:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    entry = written.encode(layer(b=b"2"))
    with pytest.raises(OSError, match="No space"):
        written.append(entry, spare_bytes=BLOCK_BYTES)
    written.take_back()
    assert not written.has_room(entry, BLOCK_BYTES)
    assert written.has_room(entry)
    written.append(entry)
    assert not written.has_room(entry)
    written.rotate()
    assert written.has_room(entry, BLOCK_BYTES)
    written.close()
    assert found(tmp_path) == (2, {"a": b"1", "b": b"2"})


def test_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that the kernel took in part is continued."""
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:100], at))
    monkeypatch.setattr(journal, "FIRST_BYTES", BLOCK_BYTES)
    written = opened(tmp_path)
    append(written, a=b"1" * 1000)
    written.close()
    assert found(tmp_path) == (1, {"a": b"1" * 1000})


def test_its_size_is_bounded(tmp_path: Path) -> None:
    """An entry fits a file or none; files grow no further than their bound."""
    written = opened(tmp_path)
    assert not written.fits(bytes(SEGMENT))
    block = bytes(100_000)
    entry = written.encode(layer(a=block))
    assert written.fits(entry)
    appended = 0
    while written.has_room(entry := written.encode(layer(a=block))):
        written.append(entry)
        appended += 1
    assert appended == SEGMENT // len(entry)
    assert all((tmp_path / name).stat().st_size <= SEGMENT for name in FILES)
    written.close()


def test_both_files_are_there_before_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes room later has its own, and a disk that is full already is no error here."""
    written = opened(tmp_path)
    written.reserve()
    assert [(tmp_path / name).stat().st_size for name in FILES] == [SEGMENT, SEGMENT]
    assert written.has_room(bytes(SEGMENT))
    written.close()

    def refuses(number: int) -> Journal:
        def refuse(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "pwrite", refuse)
        (tmp_path / str(number)).mkdir()
        return opened(tmp_path / str(number))

    refuses(errno.EDQUOT).reserve()
    with pytest.raises(OSError, match="Input/output"):
        refuses(errno.EIO).reserve()


def test_where_an_entry_ends_is_found(tmp_path: Path) -> None:
    """In the file that has it, though the other has older ones and both have torn ends."""
    written = opened(tmp_path)
    assert journal.end_of(tmp_path, RUN, 1) is None
    append(written, a=b"1")
    append(written, b=b"2" * BLOCK_BYTES)
    written.rotate()
    append(written, c=b"3")
    torn = written.encode(layer(d=b"4" * BLOCK_BYTES))
    written._write(torn[:BLOCK_BYTES], BLOCK_BYTES)
    assert journal.end_of(tmp_path, RUN, 2) == (0, 3 * BLOCK_BYTES)
    assert journal.end_of(tmp_path, RUN, 3) == (1, BLOCK_BYTES)
    assert journal.end_of(tmp_path, RUN, 4) is None
    assert journal.end_of(tmp_path, b"another.", 3) is None
    written.close()


def test_it_goes_on_over_a_torn_entry(tmp_path: Path) -> None:
    """The next one has the torn one's number, in its place or in the other file."""
    written = opened(tmp_path)
    append(written, a=b"1")
    written._write(written.encode(layer(x=b"x" * BLOCK_BYTES))[:BLOCK_BYTES], BLOCK_BYTES)
    written.close()
    again = opened(tmp_path)
    again.go_on(1, journal.end_of(tmp_path, RUN, 1))
    append(again, b=b"2")
    again.rotate()
    append(again, c=b"3")
    again.close()
    assert found(tmp_path) == (3, {"a": b"1", "b": b"2", "c": b"3"})
