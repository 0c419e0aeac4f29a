"""Checkpoints: what is above LMDB gets into it, by itself, in parts, and after trouble."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resultd_server.engine import checkpoint, environment, journal, journaled, recovery
from resultd_server.engine.journal import Journal
from resultd_server.engine.journaled import JournaledEngine
from resultd_server.engine.memory import MemoryEngine
from resultd_server.engine.overlay import Layer
from resultd_server.errors import StoreFailed, StoreFull
from resultd_server.ledger import consistency
from resultd_server.ledger.txn import Db
from tests.support.abandoned import abandon
from tests.support.full_disk import attempts_to_write, error_of, no_room
from tests.support.in_process import until
from tests.support.stores import HOUR_MS, MAP_BYTES, Clock, Store, ids, make_report


async def started(clock: Clock, directory: Path) -> Store:
    """A store with a journal."""
    engine = JournaledEngine(clock, directory, max_db_bytes=MAP_BYTES)
    await engine.start()
    return Store(engine, clock)


def checkpoints_of(store: Store) -> checkpoint.Checkpoints:
    """Its layers."""
    assert isinstance(store.engine, JournaledEngine)
    return store.engine._checkpoints


def may_be_copied(store: Store) -> bool:
    """Whether LMDB says of itself that it has no half of a commit."""
    target = checkpoints_of(store)._target
    with target.environment.begin() as txn:
        return recovery.between_checkpoints(target, txn)


def unfit(store: Store) -> list[object]:
    """What does not fit in LMDB alone, where a backup would copy it."""
    target = checkpoints_of(store)._target
    with target.environment.begin() as raw:
        if not recovery.between_checkpoints(target, raw):
            return []
        return [*consistency.check(environment.Txn(raw, target.dbs), store.clock())]


async def test_a_quiet_store_has_an_empty_journal(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after the last write everything is in LMDB, by itself."""
    monkeypatch.setattr(checkpoint, "BEGIN_AFTER_S", 0.01)
    store = await started(clock, tmp_path)
    for number in range(3):
        await store.report(f"t{number}")
        await until(lambda: checkpoints_of(store).layers() == ())
    assert await store.state("t0") == "SUCCESS"
    await store.engine.close()


@pytest.mark.parametrize("name", ["BEGIN_BYTES", "BEGIN_ROWS", "LAYER_ROWS_MAX"])
async def test_a_layer_with_much_in_it_does_not_wait(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Size, number of rows and age each begin a checkpoint."""
    monkeypatch.setattr(checkpoint, "BEGIN_AFTER_S", 3_600)
    monkeypatch.setattr(checkpoint, name, 5)
    store = await started(clock, tmp_path)
    for number in range(20):
        await store.report(f"t{number}")
    await until(lambda: checkpoints_of(store).live_bytes > 0)
    assert [await store.state(f"t{number}") for number in range(20)] == ["SUCCESS"] * 20
    await store.engine.close()


async def test_a_checkpoint_without_room_is_tried_again(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile what grows is STORE_FULL, the rest goes on; deletions reach LMDB first."""
    monkeypatch.setattr(checkpoint, "RETRY_S", 0.01)
    store = await started(clock, tmp_path)
    await store.put([make_report("a"), make_report("b"), make_report("c")])
    checkpoints, write = checkpoints_of(store), recovery.write
    attempts: list[dict[str, int]] = []

    def no_room(target: Any, layer: Any, progress: Any, **more: Any) -> int:
        values = layer.of(Db.TASKS).values.values()
        attempts.append({"put": sum(map(bool, values)), "gone": sum(not each for each in values)})
        if progress is None:
            return write(target, layer, progress, **more)
        raise environment.MapFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "write", no_room)
        assert not await checkpoints.write_all()
        assert checkpoints.stuck
        with pytest.raises(StoreFull):
            await store.report("d")
        assert await store.forget("b") == 1
        assert await store.state("a") == "SUCCESS"
        assert await store.state("b") == "FORGOTTEN"
        attempts.clear()
        await until(lambda: len(attempts) > 4)
        assert attempts[-2:] in ([{"put": 0, "gone": 1}, {"put": 2, "gone": 0}],
                                 [{"put": 2, "gone": 0}, {"put": 0, "gone": 1}])  # fmt: skip
    await until(lambda: not checkpoints.stuck)
    await store.report("d")
    await abandon(store.engine)  # type: ignore[arg-type]  # it is one
    store = await started(clock, tmp_path)
    states = [await store.state(id_) for id_ in "abcd"]
    assert states == ["SUCCESS", "FORGOTTEN", "SUCCESS", "SUCCESS"]
    await store.engine.close()


async def test_a_checkpoint_over_quota_is_tried_again(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's word is enough, whatever the disk has left; and the disk is named."""
    monkeypatch.setattr(checkpoint, "RETRY_S", 0.01)
    store = await started(clock, tmp_path)
    await store.report("a")
    with no_room(tmp_path):
        assert not await checkpoints_of(store).write_all()
        with pytest.raises(StoreFull, match="The disk of the store is full"):
            await store.report("b")
        assert await store.forget("a") == 1
    await until(lambda: not checkpoints_of(store).stuck)
    await store.report("b")
    await store.engine.close()


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("killed", [False, True])
async def test_deletions_ahead_of_their_commit_are_half_of_it(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: bool, killed: bool
) -> None:
    """LMDB says so until it has all of that commit; those of the checkpoint's own are soon whole.

    `later`: it is a commit after those that the checkpoint was begun for.
    """
    monkeypatch.setattr(checkpoint, "RETRY_S", 0.01)
    monkeypatch.setattr(checkpoint, "BEGIN_AFTER_S", 3_600)
    store = await started(clock, tmp_path)
    await store.put([make_report("a"), make_report("b")])
    assert await checkpoints_of(store).write_all()
    await store.report("c")
    if not later:
        await store.forget("a")
    attempts = attempts_to_write(monkeypatch)
    with no_room(tmp_path):
        assert not await checkpoints_of(store).write_all()
        if later:
            await store.forget("a")
        begun = attempts() + 2  # one was on its way, perhaps
        await until(lambda: attempts() >= begun)
    await until(lambda: not checkpoints_of(store).stuck)
    assert may_be_copied(store) is not later
    assert await store.state("a") == "FORGOTTEN"
    if killed:
        await abandon(store.engine)  # type: ignore[arg-type]  # it is one
        store = await started(clock, tmp_path)
    assert await checkpoints_of(store).write_all()
    assert may_be_copied(store)
    assert unfit(store) == []
    assert [await store.state(id_) for id_ in "abc"] == ["FORGOTTEN", "SUCCESS", "SUCCESS"]
    await store.engine.close()


async def test_a_row_that_was_deleted_early_is_missing_though_it_is_put_again(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time there is room nothing above LMDB may be deleted: what LMDB lacks, it lacks."""
    monkeypatch.setattr(checkpoint, "RETRY_S", 0.01)
    monkeypatch.setattr(checkpoint, "BEGIN_AFTER_S", 3_600)
    store = await started(clock, tmp_path)
    checkpoints, write = checkpoints_of(store), recovery.write
    key, there, deleted = b"key", Layer(), Layer()
    there.of(Db.GARBAGE).values[key] = b"value"
    deleted.of(Db.GARBAGE).values[key] = None

    def in_lmdb() -> bool:
        with checkpoints._target.environment.begin() as raw:
            return environment.Txn(raw, checkpoints._target.dbs).get(Db.GARBAGE, key) is not None

    def no_room(target: Any, layer: Any, progress: Any, **more: Any) -> int:
        if progress is None:
            return write(target, layer, progress, **more)
        raise environment.MapFull("no room")

    checkpoints.add(there)
    assert await checkpoints.write_all()
    assert in_lmdb()
    await store.report("a")
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "write", no_room)
        assert not await checkpoints.write_all()
        checkpoints.add(deleted)
        await until(lambda: not in_lmdb())
        checkpoints.add(there)
    await until(lambda: not checkpoints.stuck)
    assert not in_lmdb()
    assert not may_be_copied(store)
    assert await checkpoints.write_all()
    assert in_lmdb()
    assert may_be_copied(store)
    await store.engine.close()


@pytest.mark.parametrize("error", [environment.Error("EIO"), OSError(5, "EIO"), ValueError("bug")])
async def test_a_checkpoint_that_fails_stops_the_store(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A broken disk under a checkpoint is as final as under a commit; nothing is lost."""
    store = await started(clock, tmp_path)
    await store.report("t")
    told: list[BaseException] = []
    store.engine.on_failure = told.append

    def fails(*_: Any, **__: Any) -> int:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "write", fails)
        checkpoints_of(store)._begin()
        await until(lambda: told != [])
    with pytest.raises(StoreFailed):
        await store.report("u")
    await store.engine.close()
    assert told == [error]
    store = await started(clock, tmp_path)
    assert await store.state("t") == "SUCCESS"
    await store.engine.close()


STEPS = st.lists(
    st.sampled_from(["report"] * 4 + ["forget", "forget", "group", "sweep", "list"])
    | st.sampled_from(["checkpoint", "freeze", "close", "kill", "kill"])
    | st.sampled_from(["kill", "full", "full", "room"]),
    min_size=10,
    max_size=40,
)


class Disk:
    """One that is full at times: no file grows then, and LMDB gets part of a checkpoint written."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.full = False
        fill, write = Journal._fill, recovery.write

        def filled(journal: Journal, end: int) -> None:
            if self.full and journal._filled[journal._segment] < end:
                raise OSError(errno.ENOSPC, "No space left on device")
            fill(journal, end)

        def written(target: Any, layer: Layer, progress: Any, **more: Any) -> int:
            if not self.full:
                return write(target, layer, progress, **more)
            some = Layer()
            for db in list(layer.dbs)[::2]:
                some.of(db).values.update(layer.dbs[db].values)
            write(target, some, None, whole=False)
            raise error_of(errno.ENOSPC)

        patch.setattr(Journal, "_fill", filled)
        patch.setattr(recovery, "write", written)
        patch.setattr(checkpoint, "RETRY_S", 0.001)
        patch.setattr(journal, "FIRST_BYTES", 8 * journal.BLOCK_BYTES)
        patch.setattr(journaled, "SPARE_BYTES", 2 * journal.BLOCK_BYTES)


@settings(max_examples=50, deadline=None, suppress_health_check=[*HealthCheck], database=None)
@given(steps=STEPS, data=st.data())
def test_checkpoints_kills_restarts_and_a_full_disk_change_nothing(
    steps: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is done, in whatever state the layers are: it reads as the memory engine does.

    What is refused because the disk is full is as if it had not been asked for. A server that is
    killed or stopped meanwhile starts again, full or not. What LMDB has alone is whole commits, or
    it says that it is not.
    """
    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(_history(steps, data, tmp_path_factory.mktemp("store"), Disk(patch)))


async def _history(steps: list[str], data: st.DataObject, directory: Path, disk: Disk) -> None:
    clock = Clock()
    reference = Store(MemoryEngine(clock), clock)
    store = await started(clock, directory)
    names, groups = ["a", "b", "c", "d"], ["g", "h"]
    for step in steps:
        name, group = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(groups))
        state = data.draw(st.sampled_from(["STARTED", "SUCCESS", "FAILURE"]))
        if step in ("kill", "close"):
            assert isinstance(store.engine, JournaledEngine)
            await (abandon(store.engine) if step == "kill" else store.engine.close())
            store = await started(clock, directory)
        elif step in ("full", "room"):
            disk.full = step == "full"
            if not disk.full:
                await _unstuck(checkpoints_of(store))
        elif step == "checkpoint":
            await checkpoints_of(store).write_all()
        elif step == "freeze" and len(checkpoints_of(store).layers()) == 1:
            if checkpoints_of(store).frozen is None:
                checkpoints_of(store)._begin()
        else:
            try:
                await _do(store, step, name, group, state)
            except StoreFull:
                assert disk.full
            else:
                await _do(reference, step, name, group, state)
            clock.advance(HOUR_MS // 2 if step == "sweep" else 0)
        assert await _seen(store, names, groups) == await _seen(reference, names, groups)
        assert unfit(store) == []
    await store.engine.close()


async def _unstuck(checkpoints: checkpoint.Checkpoints) -> None:
    # One that found no room may not have come back yet to say so.
    await until(lambda: checkpoints.frozen is None)


async def _do(store: Store, step: str, name: str, group: str, state: str) -> None:
    if step == "report":
        await store.report(name, state, group=group, ttl_ms=HOUR_MS)
    elif step == "forget":
        await store.forget(name)
    elif step == "group":
        await store.delete_group(group)
    elif step == "sweep":
        await store.sweep()


async def _seen(store: Store, names: list[str], groups: list[str]) -> list[object]:
    """What a caller can see."""
    records = await store.engine.get("default", names)
    listed = [await store.members(group) if await store.existence(group) == "KNOWN" else []
              for group in groups]  # fmt: skip
    counts = [await store.counts(group) for group in groups]
    return [ids(record.wire for record in records), records, listed, counts]
