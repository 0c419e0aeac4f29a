"""`audit.verify`: a store is looked at whole, and nothing in it is changed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from resultd_server.engine import audit, environment, journal
from resultd_server.engine.journaled import JournaledEngine
from resultd_server.engine.lmdb import LmdbEngine
from resultd_server.errors import StoreFailed
from resultd_server.ledger import keys
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Unit
from tests.campaigns import flips
from tests.support.stores import Clock, Store, make_engine, task


@pytest.fixture
async def left(tmp_path: Path, clock: Clock) -> AsyncIterator[Path]:
    """A store as a killed server leaves it: t1 in LMDB, t2 and its group in the journal."""
    directory = tmp_path / "store"
    engine = make_engine("journaled", clock, directory)
    assert isinstance(engine, JournaledEngine)
    await engine.start()
    store = Store(engine, clock)
    await store.report("t1")
    await engine._checkpoints.write_all()
    await store.create("g", task("t2"), seal=True)
    await store.report("t2")
    shutil.copytree(directory, tmp_path / "left")
    yield tmp_path / "left"
    await engine.close()


def contents(directory: Path) -> dict[str, str]:
    """A digest of every file."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in directory.iterdir()
        if file.suffix != ".lock" and file.name != "lock.mdb"
    }


def test_a_whole_store_is_looked_at_and_left_as_it_was(left: Path, clock: Clock) -> None:
    """Rows and journal entries are counted, no damage is found, no byte is changed."""
    before = contents(left)
    found = audit.verify(left, clock())
    assert (found.count, found.damages, found.unchecked, found.notes) == (0, [], "", [])
    assert found.entries == 2
    assert found.rows >= 5
    assert contents(left) == before


def test_a_row_that_fits_no_other_is_named(left: Path, clock: Clock) -> None:
    """What no checksum can see: a row whose fellow is gone, by its database and key."""
    opened = environment.open_environment(left, 2**28)
    tasks = opened.open_db(b"expiry")
    with opened.begin(write=True) as txn:
        txn.drop(tasks, delete=False)
    opened.close()
    (found,) = audit.verify(left, clock()).damages
    assert (found.where, found.what) == ("tasks", "expires and is not filed to")
    assert bytes.fromhex(found.key).endswith(b"t1")


async def test_entries_for_what_is_gone_are_noted(tmp_path: Path, clock: Clock) -> None:
    """What earlier versions left in the lists of what expires is told, and no damage."""
    engine = make_engine("lmdb", clock, tmp_path)
    assert isinstance(engine, LmdbEngine)
    await engine.start()
    await Store(engine, clock).report("t")
    space = Namespace("default", keys.U64.pack(1))

    def plant(unit: Unit) -> None:
        for id_ in ("t", "gone"):
            unit.txn.put(Db.EXPIRY, keys.expiry(clock(), keys.TASK, space, id_), b"")

    await engine._write(plant)
    await engine.close()
    found = audit.verify(tmp_path, clock())
    assert (found.count, len(found.notes)) == (0, 1)
    assert found.notes[0].startswith("2 entries of the expiry lists are for what is not there")


def test_a_flipped_value_is_named_by_its_key(left: Path, clock: Clock) -> None:
    """A bit of a value: its row, and the rest is not vouched for."""
    data = left / "data.mdb"
    content = bytearray(data.read_bytes())
    at = content.rindex(b"t1") + 20
    content[at] ^= 1
    data.write_bytes(content)
    found = audit.verify(left, clock())
    assert found.count >= 1
    assert found.unchecked


def test_a_journal_entry_that_is_missing_is_found(left: Path, clock: Clock) -> None:
    """An entry that cannot be read before one that can is damage; the last one is a note."""
    (name,) = [name for name in journal.FILES if b"t2" in (left / name).read_bytes()]
    whole = (left / name).read_bytes()
    for block, count, notes in ((0, 1, 0), (1, 0, 1)):
        content = bytearray(whole)
        content[block * journal.BLOCK_BYTES + 60] ^= 1
        (left / name).write_bytes(content)
        found = audit.verify(left, clock())
        assert (found.count, len(found.notes)) == (count, notes)


def test_data_that_does_not_know_its_journal_is_damaged(left: Path, clock: Clock) -> None:
    """Made anew beside it, or put back from elsewhere: what the journal has was acknowledged."""
    (left / "data.mdb").unlink()
    environment.make(left)
    found = audit.verify(left, clock())
    assert [(each.where, each.what) for each in found.damages] == [
        ("data.mdb", "does not know the journal, of which there is journal.0 and journal.1")
    ]
    assert found.unchecked == "journal"


async def test_a_store_in_use_is_not_looked_at(tmp_path: Path, clock: Clock) -> None:
    """Its server is named as the reason."""
    engine = make_engine("journaled", clock, tmp_path)
    await engine.start()
    with pytest.raises(OSError, match="A server uses"):
        audit.verify(tmp_path, clock())
    await engine.close()


def test_what_is_no_store_is_refused(tmp_path: Path, clock: Clock) -> None:
    """Nothing is made where there is nothing."""
    with pytest.raises(StoreFailed, match="There is no store"):
        audit.verify(tmp_path / "nothing", clock())
    assert not (tmp_path / "nothing").exists()


def test_flipped_bits_never_make_another_value() -> None:
    """The campaign `flips`, small: each damage is harmless, refused, or found by verify."""
    tally = flips.run(flips.Plan(25), seed=5)
    assert tally.faults == []
    assert tally.counts["found by verify"] > 5


def test_values_that_nobody_checks_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without checksums the campaign reads values that nobody has stored."""
    monkeypatch.setattr(environment, "crc32", lambda *_: environment._RESIDUE)
    faults = flips.run(flips.Plan(40), seed=5).faults
    assert any("a wrong value was read" in fault for fault in faults), faults
