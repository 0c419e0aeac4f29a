"""Who may use a data directory: one server at a time, and none that cannot read it."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from resultd_server.engine import audit, backup, journal, lease, recount
from resultd_server.engine import lmdb as lmdb_engine
from resultd_server.engine.lease import DATA_FORMAT, Lease
from resultd_server.engine.lmdb import LmdbEngine
from resultd_server.errors import StoreFailed
from tests.support.stores import MAP_BYTES, Clock, opened, restarted
from tests.tooling.repository import ROOT


async def test_a_second_server_is_kept_off(clock: Clock, tmp_path: Path) -> None:
    """A directory serves one engine at a time; the second is told what to do."""
    async with opened(clock, tmp_path):
        with pytest.raises(OSError, match=r"A server uses .*: stop it, or name another"):
            async with opened(clock, tmp_path):
                pass
    async with opened(clock, tmp_path):
        pass


async def test_a_foreign_environment_is_refused(clock: Clock, tmp_path: Path) -> None:
    """An LMDB environment that is not ours is not written to."""
    lmdb.open(str(tmp_path), lib_version=0).close()
    for _ in range(2):
        with pytest.raises(StoreFailed, match="not ours: name another directory"):
            async with opened(clock, tmp_path):
                pass


@pytest.mark.parametrize("said", [{"format": 99}, {"lmdb": "1.0.0"}])
async def test_a_newer_format_is_refused(
    clock: Clock, tmp_path: Path, said: dict[str, object]
) -> None:
    """A store that a later version wrote is left to that version."""
    async with opened(clock, tmp_path):
        pass
    note = tmp_path / "resultd.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), **said}))
    with pytest.raises(StoreFailed, match="use the version that wrote it"):
        async with opened(clock, tmp_path):
            pass


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"format": 1}', "\udcff"])
async def test_a_damaged_note_is_refused(clock: Clock, tmp_path: Path, note: str) -> None:
    """A store whose note cannot be read says so in a sentence."""
    async with opened(clock, tmp_path):
        pass
    (tmp_path / "resultd.json").write_bytes(note.encode(errors="surrogateescape"))
    with pytest.raises(StoreFailed, match=r"resultd\.json .*backup"):
        async with opened(clock, tmp_path):
            pass


def test_the_pages_name_the_format_of_this_version() -> None:
    """Whoever upgrades can tell from them whether it changes."""
    assert f"the data format, {DATA_FORMAT} now" in (ROOT / "docs/operating.md").read_text()
    assert f"The data format is {DATA_FORMAT}." in (ROOT / "CHANGELOG.md").read_text()


async def test_a_new_stores_file_is_on_disk_with_its_name(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB syncs what it writes into its file, and nobody that there is one: a power cut."""
    synced: list[tuple[Path, set[str]]] = []

    def sync(directory: Path) -> None:
        synced.append((directory, {path.name for path in directory.iterdir()}))

    monkeypatch.setattr(lmdb_engine, "sync_directory", sync)
    monkeypatch.setattr(journal, "sync_directory", sync)
    where = tmp_path / "new"
    engine = LmdbEngine(clock, where, max_db_bytes=MAP_BYTES)
    await engine.start()
    await engine.close()
    assert (tmp_path, {"new"}) in synced
    directory, files = synced[-1]
    assert directory == where
    assert "data.mdb" in files


def tell(directory: Path) -> dict[str, bytes]:
    """What lies in a directory, its locks aside."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if "lock" not in path.name}


@pytest.mark.parametrize("journaled", [True, False])
@pytest.mark.parametrize("how", ["missing", "empty"])
async def test_a_store_without_its_data_is_none(
    clock: Clock, tmp_path: Path, how: str, *, journaled: bool
) -> None:
    """What was stored is gone: nobody makes an empty store of that, and nothing is written, so
    that the second try and whoever looks for damage see what the first one saw.
    """
    where, into = tmp_path / "store", tmp_path / "backup"
    async with restarted("journaled" if journaled else "lmdb", clock, where) as store:
        await store.report("t")
    (where / "data.mdb").unlink()
    if how == "empty":
        (where / "data.mdb").touch()
    before = tell(where)
    for _ in range(2):
        for attempt in (lambda: Lease(where), lambda: backup.back_up(where, into)):
            with pytest.raises(StoreFailed, match=rf"data\.mdb is {how}\. Restore it from a"):
                attempt()
        with pytest.raises(StoreFailed, match=rf"data\.mdb is {how}\. Restore it from a"):
            recount.repair(where)
        assert audit.verify(where, clock()).count == 1
    assert tell(where) == before
    assert not into.exists()


async def test_a_worker_makes_no_store_of_its_own(clock: Clock, tmp_path: Path) -> None:
    """One that starts again, where the others' data was removed, would serve another store."""
    Lease(tmp_path).close()
    (tmp_path / "data.mdb").unlink()
    engine = LmdbEngine(clock, tmp_path, max_db_bytes=MAP_BYTES, shared=True)
    with pytest.raises(StoreFailed, match=r"data\.mdb is missing"):
        await engine.start()
    assert not (tmp_path / "data.mdb").exists()


def killed_starts(parent: Path) -> list[Path]:
    """Directories as first starts left them that were killed."""
    command = [sys.executable, "-m", "tests.support.killed_start", str(parent)]
    subprocess.run(command, check=True, cwd=ROOT)
    return sorted(parent.iterdir())


@pytest.mark.slow
async def test_a_first_start_may_be_killed_anywhere(clock: Clock, tmp_path: Path) -> None:
    """Before each call that changes something on disk: the next start makes a store, or finds it.
    Until there is one whoever wants to look at it is told so.
    """
    states = set()
    for directory in killed_starts(tmp_path):
        found = directory / "resultd.json"
        new = found.exists() and "new" in json.loads(found.read_text())
        states.add((new, *sorted(path.name for path in directory.iterdir())))
        if new:
            with pytest.raises(StoreFailed, match=r"no store in .* yet"):
                audit.verify(directory, clock())
        async with restarted("journaled", clock, directory) as store:
            await store.report("t")
        assert audit.verify(directory, clock()).count == 0
    locks = ("resultd.json", "resultd.lock", "workers.lock")
    assert {
        (True, *locks),
        (True, "data.mdb", "lock.mdb", *locks),
        (False, "data.mdb", "lock.mdb", *locks),
        (False, "data.mdb", *journal.FILES, "lock.mdb", *locks),
    } <= states


@pytest.mark.parametrize("size_bytes", [0, 100, mmap.PAGESIZE])
async def test_a_first_start_may_end_within_lmdb(
    clock: Clock, tmp_path: Path, size_bytes: int
) -> None:
    """It makes its file, and then writes two pages: the disk may be full in between."""
    lease.write_note(tmp_path, new=True)
    (tmp_path / "data.mdb").write_bytes(b"x" * size_bytes)
    async with restarted("journaled", clock, tmp_path) as store:
        await store.report("t")
    assert audit.verify(tmp_path, clock()).count == 0


def test_a_store_that_is_not_made_yet_is_none(tmp_path: Path) -> None:
    """Its server may be making it just now, or have ended before it had: both are said."""
    lease.write_note(tmp_path, new=True)
    with pytest.raises(
        StoreFailed, match=r"no store in .* yet: its server is making one, or ended"
    ):
        lease.check_there(tmp_path)
