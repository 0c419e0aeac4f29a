"""Copies of a store in use, and stores made of them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resultd_server.engine import audit, backup, checkpoint, environment, lease, recovery
from resultd_server.engine.journaled import JournaledEngine
from resultd_server.engine.overlay import Layer
from resultd_server.engine.recovery import Progress
from resultd_server.errors import StoreFailed
from resultd_server.ledger.txn import Db
from tests.support.full_disk import attempts_to_write, no_room
from tests.support.in_process import until
from tests.support.stores import Clock, Store, make_engine, make_report, task


async def opened(directory: Path, clock: Clock, name: str = "journaled") -> Store:
    """A store in a directory, served."""
    engine = make_engine(name, clock, directory)
    await engine.start()
    return Store(engine, clock)


async def copy_apart(directory: Path, into: Path) -> str:
    """A backup taken by another process, as LMDB wants it; the id of the store it is of."""
    program = (
        "import sys; from pathlib import Path; from resultd_server.engine import backup;"
        "print(backup.back_up(Path(sys.argv[1]), Path(sys.argv[2])).store_id)"
    )
    copying = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(directory), str(into), stdout=subprocess.PIPE
    )
    said, _ = await copying.communicate()
    assert copying.returncode == 0
    return said.decode().strip()


@pytest.mark.parametrize("name", ["journaled", "lmdb"])
async def test_a_copy_has_what_was_acknowledged(name: str, tmp_path: Path, clock: Clock) -> None:
    """Records that are in the journal only, groups and all: the copy is a whole store."""
    store = await opened(tmp_path / "store", clock, name)
    await store.create("g", task("t1"), task("t2"), seal=True)
    await store.report("t1", value=b"one")
    store_id = await copy_apart(tmp_path / "store", tmp_path / "b")
    await store.report("t2")
    await store.engine.close()
    found = backup.restore(tmp_path / "b", tmp_path / "again", clock())
    assert (found.count, store_id) == (0, store.engine.store_id)
    again = await opened(tmp_path / "again", clock, name)
    assert (await again.meta("t1")).value.data == b"one"
    assert await again.state("t2") == "UNKNOWN"
    assert (await again.counts("g"))["done"] == 1
    assert again.engine.store_id != store_id
    await again.engine.close()


async def test_a_store_that_nobody_serves_is_copied_with_its_journal(
    tmp_path: Path, clock: Clock
) -> None:
    """What a killed server left in the journal is in the copy; a directory gets a new file."""
    store = await opened(tmp_path / "store", clock)
    assert isinstance(store.engine, JournaledEngine)
    await store.report("t1")
    store.engine._checkpoints._begin_later()
    (tmp_path / "left").mkdir()
    for file in (tmp_path / "store").iterdir():
        (tmp_path / "left" / file.name).write_bytes(file.read_bytes())
    await store.engine.close()
    copied = backup.back_up(tmp_path / "left", tmp_path)
    assert copied.path.parent == tmp_path
    assert copied.path.suffix == ".backup"
    backup.restore(copied.path, tmp_path / "again", clock())
    again = await opened(tmp_path / "again", clock)
    assert await again.state("t1") == "SUCCESS"
    await again.engine.close()


def test_half_a_checkpoint_is_never_copied(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the transactions of a checkpoint there are halves of commits: nobody copies them."""
    asyncio.run(_one_record(tmp_path, clock))
    env = environment.open_environment(tmp_path, 2**28)
    target = recovery.open_target(env, environment.open_databases(env, tmp_path))
    layer = Layer()
    for number in range(200):
        layer.of(Db.LOG).values[b"%03d" % number] = b""
    seen: list[bool] = []

    def pause() -> None:
        with env.begin() as txn:
            seen.append(recovery.between_checkpoints(target, txn))

    recovery.write(target, layer, Progress(b"run of 8", 1), txn_rows=128, pause=pause)
    assert seen == [True, False, False]  # in the first transaction, and twice in the second
    recovery.write(target, layer, None, whole=False)
    env.close()
    monkeypatch.setattr(backup, "CATCH_UP_S", 0.01)
    with pytest.raises(StoreFailed, match="has not written its journal"):
        backup.back_up(tmp_path, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    env = environment.open_environment(tmp_path, 2**28)
    target = recovery.open_target(env, environment.open_databases(env, tmp_path))
    recovery.write(target, Layer(), Progress(b"run of 8", 2))
    env.close()
    assert backup.back_up(tmp_path, tmp_path / "b").path.exists()


STEP_BY_STEP = """
import sys
from pathlib import Path
from resultd_server.engine import backup

def wait(_):
    print("waits", flush=True)
    sys.stdin.readline()

backup.time.sleep = wait
backup.back_up(Path(sys.argv[1]), Path(sys.argv[2]))
"""


async def test_what_a_full_disk_has_deleted_early_is_never_copied(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of commits that came after a backup was asked for: it waits until LMDB has them whole.

    What was there when it was asked for is in LMDB before, and no checkpoint is under way.
    """
    monkeypatch.setattr(checkpoint, "RETRY_S", 0.01)
    monkeypatch.setattr(checkpoint, "BEGIN_AFTER_S", 3_600)
    store = await opened(tmp_path / "store", clock)
    assert isinstance(store.engine, JournaledEngine)
    checkpoints, names = store.engine._checkpoints, [f"t{n}" for n in range(10)]
    await store.put([make_report(name) for name in names])
    assert await checkpoints.write_all()
    await store.report("before")
    attempts = attempts_to_write(monkeypatch)
    with no_room(tmp_path / "store"):
        assert not await checkpoints.write_all()
        copying = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STEP_BY_STEP, str(tmp_path / "store"), str(tmp_path / "b"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert copying.stdout is not None
        assert await copying.stdout.readline() == b"waits\n"
        assert await store.forget(*names) == 10
        begun = attempts() + 2  # one was on its way, perhaps
        await until(lambda: attempts() >= begun)
    await until(lambda: not checkpoints.stuck)
    assert copying.stdin is not None
    copying.stdin.write(b"\n")
    waits = await copying.stdout.readline()
    assert await checkpoints.write_all()
    await copying.communicate(b"\n")
    assert copying.returncode == 0
    await store.engine.close()
    assert backup.restore(tmp_path / "b", tmp_path / "again", clock()).damages == []
    assert waits == b"waits\n"
    again = await opened(tmp_path / "again", clock)
    assert await again.state("before") == "SUCCESS"
    assert {await again.state(name) for name in names} == {"FORGOTTEN"}
    await again.engine.close()


async def _one_record(directory: Path, clock: Clock) -> None:
    store = await opened(directory, clock)
    await store.report("t1")
    await store.engine.close()


@pytest.fixture
async def copy(tmp_path: Path, clock: Clock) -> Path:
    """A backup."""
    store = await opened(tmp_path / "store", clock)
    await store.put([make_report(f"t{n}", value=bytes(500)) for n in range(100)])
    await store.engine.close()
    return backup.back_up(tmp_path / "store", tmp_path / "b").path


def test_a_damaged_backup_makes_no_store(copy: Path, tmp_path: Path, clock: Clock) -> None:
    """Cut, flipped or foreign: refused with a reason, and the directory stays empty."""
    whole = copy.read_bytes()
    flipped = bytearray(whole)
    flipped[5000] ^= 1
    noted = whole.replace(b'"data_bytes"', b'"data_bites"')
    for content in (whole[:-1], whole[4096:], bytes(flipped), noted, b"", b"something"):
        copy.write_bytes(content)
        with pytest.raises(backup.BackupDamaged, match="cannot be restored"):
            backup.restore(copy, tmp_path / "again", clock())
        assert not (tmp_path / "again").exists() or not any((tmp_path / "again").iterdir())


def test_a_backup_of_another_format_says_so(
    copy: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not damaged: the version that made it restores it."""
    monkeypatch.setattr(lease, "DATA_FORMAT", lease.DATA_FORMAT + 1)
    with pytest.raises(StoreFailed, match="restore it with the version that made it") as caught:
        backup.restore(copy, tmp_path / "again", clock())
    assert not isinstance(caught.value, backup.BackupDamaged)


def test_nothing_is_written_over(copy: Path, tmp_path: Path, clock: Clock) -> None:
    """A file that is there is not replaced, a directory that has something not restored into."""
    with pytest.raises(StoreFailed, match="is there already"):
        backup.back_up(tmp_path / "store", copy)
    with pytest.raises(StoreFailed, match="is not empty"):
        backup.restore(copy, tmp_path / "store", clock())
    assert audit.verify(tmp_path / "store", clock()).count == 0


def test_a_backup_with_rows_that_do_not_fit_makes_no_store(
    copy: Path, tmp_path: Path, clock: Clock
) -> None:
    """It was taken of a store that was damaged before: its verdict is told."""
    opened_again = environment.open_environment(tmp_path / "store", 2**28)
    with opened_again.begin(write=True) as txn:
        txn.drop(opened_again.open_db(b"expiry", txn), delete=False)
    opened_again.close()
    bad = backup.back_up(tmp_path / "store", tmp_path / "bad").path
    assert backup.restore(bad, tmp_path / "again", clock()).count == 100
    assert list((tmp_path / "again").iterdir()) == []


def test_copying_ends_before_the_store_is_full(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file grows and little of its map is left there is no copy, nor part of one."""
    check = backup._Growth.check

    def grows(growth: backup._Growth) -> None:
        growth._before -= 1
        check(growth)

    monkeypatch.setattr(backup, "ROOM_BYTES_MIN", 2**40)
    monkeypatch.setattr(backup._Growth, "check", grows)
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(StoreFailed, match="would be full before it was copied"):
        backup.back_up(tmp_path / "store", tmp_path / "c")
    assert {file.name for file in tmp_path.iterdir()} == before


def back_up_apart(directory: Path, into: Path, before: str = "") -> int:
    """A backup taken by another process, which does something before; its exit code."""
    code = "import os, sys; from pathlib import Path; from resultd_server.engine import backup\n"
    code += f"{before}\nbackup.back_up(Path(sys.argv[1]), Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(directory), str(into)]
    return subprocess.run(command, check=False).returncode


@pytest.fixture
async def stored(tmp_path: Path, clock: Clock) -> Path:
    """A store that nobody serves, with a record in it."""
    store = await opened(tmp_path / "store", clock)
    await store.report("t1")
    await store.engine.close()
    return tmp_path / "store"


def test_two_backups_at_once_do_not_harm_each_other(
    stored: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that copy to one name the first to end has it; the other says so, and leaves it."""
    into, stream = tmp_path / "b", backup._stream

    def held_up(*arguments: Any) -> Iterator[bytes]:
        assert back_up_apart(stored, into) == 0
        yield from stream(*arguments)

    monkeypatch.setattr(backup, "_stream", held_up)
    with pytest.raises(StoreFailed, match="is there already: name another file"):
        backup.back_up(stored, into)
    assert backup.restore(into, tmp_path / "again", clock()).count == 0
    assert {path.name for path in tmp_path.iterdir()} == {"store", "b", "again"}


def test_what_a_killed_backup_left_is_in_nobodys_way(stored: Path, tmp_path: Path) -> None:
    """It stays where it is, for whoever deletes old ones; the next backup to the name is made."""
    into = tmp_path / "into" / "resultd-1.backup"
    into.parent.mkdir()
    assert back_up_apart(stored, into, "backup._Growth.check = lambda self: os._exit(9)") == 9
    [left] = into.parent.iterdir()
    assert left.match(".resultd-*.partial"), left  # as the units look for it
    backup.back_up(stored, into)
    assert {*into.parent.iterdir()} == {left, into}


def test_where_a_backup_cannot_go_is_said_with_a_remedy(
    stored: Path, tmp_path: Path, clock: Clock
) -> None:
    """A directory that is missing, or none, and a file that is to be restored and is not there."""
    for into, said in (
        (tmp_path / "none" / "b", "No such file or directory: make the directory that is missing"),
        (stored / "data.mdb" / "b", "Not a directory: name another"),
    ):
        with pytest.raises(StoreFailed, match=said) as caught:
            backup.back_up(stored, into)
        assert str(into.parent) in caught.value.sentence
    with pytest.raises(StoreFailed, match=r"The backup .* cannot be used: No such file"):
        backup.restore(tmp_path / "b", tmp_path / "again", clock())
