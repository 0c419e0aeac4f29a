"""Checkpoints: what is above LMDB gets into it, by itself, in parts, and after trouble."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resultd_server.engine import checkpoint, environment, recovery
from resultd_server.engine.journaled import JournaledEngine
from resultd_server.engine.memory import MemoryEngine
from resultd_server.errors import StoreFailed, StoreFull
from resultd_server.ledger.txn import Db
from tests.support.abandoned import abandon
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
    st.sampled_from(["report", "report", "forget", "group", "sweep", "list"])
    | st.sampled_from(["checkpoint", "freeze", "kill", "close"]),
    min_size=1,
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck], database=None)
@given(steps=STEPS, data=st.data())
def test_checkpoints_kills_and_restarts_change_nothing(
    steps: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is done, in whatever state the layers are: it reads as the memory engine does."""
    asyncio.run(_history(steps, data, tmp_path_factory.mktemp("store")))


async def _history(steps: list[str], data: st.DataObject, directory: Path) -> None:
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
        elif step == "checkpoint":
            await checkpoints_of(store).write_all()
        elif step == "freeze" and len(checkpoints_of(store).layers()) == 1:
            checkpoints_of(store)._begin()
        else:
            for each in (store, reference):
                await _do(each, step, name, group, state)
            clock.advance(HOUR_MS // 2 if step == "sweep" else 0)
        assert await _seen(store, names, groups) == await _seen(reference, names, groups)
    await store.engine.close()


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
