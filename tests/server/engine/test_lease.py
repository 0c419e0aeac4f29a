"""Who may use a data directory: one server at a time, and none that cannot read it."""

from __future__ import annotations

import json
from pathlib import Path

import lmdb
import pytest

from resultd_server.engine import journal
from resultd_server.engine import lmdb as lmdb_engine
from resultd_server.engine.lease import DATA_FORMAT
from resultd_server.engine.lmdb import LmdbEngine
from resultd_server.errors import StoreFailed
from tests.support.stores import MAP_BYTES, Clock, opened
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
