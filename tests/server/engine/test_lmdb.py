"""What the embedded engine promises beyond the contract: durability, refusals, group commit."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import lmdb
import pytest

from resultd_server import limits
from resultd_server.engine import environment
from resultd_server.engine import lmdb as lmdb_engine
from resultd_server.engine.journaled import JournaledEngine
from resultd_server.engine.lmdb import GATHER_TURNS, LmdbEngine
from resultd_server.errors import (
    Overloaded,
    RecordCorrupt,
    StoreFailed,
    StoreFull,
)
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import TASK, Unit
from tests.support.full_disk import no_room
from tests.support.stored import damage
from tests.support.stores import (
    DAY_MS,
    HOUR_MS,
    MAP_BYTES,
    Clock,
    Store,
    disposition,
    make_report,
    opened,
    task,
)

MIB = limits.MIB


def lmdb_of(store: Store) -> LmdbEngine:
    """The engine, as what it is."""
    assert isinstance(store.engine, LmdbEngine)
    return store.engine


async def test_what_was_stored_is_there_after_a_restart(clock: Clock, tmp_path: Path) -> None:
    """Records, tombstones, groups, logs, claims and wishes survive closing and opening."""
    async with opened(clock, tmp_path) as store:
        await store.put(
            [make_report("a", group="g"), make_report("b"), make_report("c", "STARTED")]
        )
        await store.create("g", task("a"), seal=True, scope="s")
        await store.claim("g", "token")
        await store.forget("b")
        await store.revoke("c")
        store_id = store.engine.store_id
    async with opened(clock, tmp_path) as store:
        assert store.engine.store_id == store_id
        assert [await store.state(id_) for id_ in "abc"] == ["SUCCESS", "FORGOTTEN", "STARTED"]
        assert disposition(await store.report("b")) == "DUPLICATE"
        assert await store.log("g") == ["a"]
        assert await store.claim("g", "other") == "HELD"
        assert await store.claim("g", "token", "DONE") == "GRANTED"
        assert (await store.report("c", "STARTED")).cancel_requested


CHILD = """
import asyncio, sys
from pathlib import Path
from tests.support.stores import Clock, LmdbEngine, MAP_BYTES, Store

async def main():
    engine = LmdbEngine(Clock(), Path(sys.argv[1]), max_db_bytes=MAP_BYTES)
    await engine.start()
    store = Store(engine, Clock())
    await store.create("g")
    for number in range(10_000):
        await store.report(f"t{number}", group="g")
        print(number, flush=True)

asyncio.run(main())
"""


async def test_what_was_answered_survives_a_kill(clock: Clock, tmp_path: Path) -> None:
    """A report answered before SIGKILL is there afterwards, counted and logged."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert child.stdout is not None
    with child:
        acknowledged = 0
        for line in child.stdout:
            acknowledged = int(line)
            if acknowledged == 20:
                child.send_signal(signal.SIGKILL)
    async with opened(clock, tmp_path) as store:
        log = await store.log("g")
        assert log[: acknowledged + 1] == [f"t{number}" for number in range(acknowledged + 1)]
        assert [await store.state(id_) for id_ in log] == ["SUCCESS"] * len(log)


async def test_what_a_disk_returns_wrong_is_refused(clock: Clock, tmp_path: Path) -> None:
    """A record that does not match its checksum raises RecordCorrupt; others are read."""
    async with opened(clock, tmp_path, sync=False) as store:
        await store.put([make_report("good"), make_report("bad")])
        damage(store.engine, Db.TASKS, b"bad")
        with pytest.raises(RecordCorrupt, match="backup"):
            await store.meta("bad")
        assert await store.state("good") == "SUCCESS"
        outcomes = await store.put([make_report("x"), make_report("bad"), make_report("y")])
        assert [isinstance(outcome, RecordCorrupt) for outcome in outcomes] == [False, True, False]
        assert [await store.state(id_) for id_ in "xy"] == ["SUCCESS", "SUCCESS"]


async def test_a_report_that_meets_damage_is_stored_whole_or_not_at_all(
    clock: Clock, tmp_path: Path
) -> None:
    """Where a group's numbers cannot be read, the report is refused and its record unchanged."""
    async with opened(clock, tmp_path, sync=False) as store:
        await store.report("t", "STARTED", group="g")
        damage(store.engine, Db.COUNTERS, b"")
        with pytest.raises(RecordCorrupt):
            await store.report("t")
        assert await store.state("t") == "STARTED"


async def test_a_damaged_record_does_not_stop_expiry(clock: Clock, tmp_path: Path) -> None:
    """A due row that cannot be read is said once and put off a day; what is behind it goes."""
    async with opened(clock, tmp_path, sync=False) as store:
        await store.put([make_report("bad", ttl_ms=HOUR_MS), make_report("good", ttl_ms=DAY_MS)])
        damage(store.engine, Db.TASKS, b"bad")
        store.clock.advance(DAY_MS)
        with pytest.raises(RecordCorrupt):
            await store.sweep()
        assert (await store.sweep()).expired == 1
        assert await store.state("good") == "EXPIRED"
        store.clock.advance(DAY_MS)
        with pytest.raises(RecordCorrupt):
            await store.sweep()


async def test_a_damaged_record_of_a_group_does_not_stop_expiry(
    clock: Clock, tmp_path: Path
) -> None:
    """What the group kept and cannot be read is put off a day; the others go at once."""
    async with opened(clock, tmp_path, sync=False) as store:
        await store.create("g", task("bad"), task("kept"))
        await store.put([make_report(id_, ttl_ms=HOUR_MS) for id_ in ("bad", "kept", "other")])
        damage(store.engine, Db.TASKS, b"bad")
        await store.delete_group("g")
        store.clock.advance(2 * HOUR_MS)
        with suppress(RecordCorrupt):  # its own entry was due, too
            await store.sweep()
        for _ in range(3):
            await store.sweep()
        assert [await store.state(id_) for id_ in ("kept", "other")] == ["EXPIRED", "EXPIRED"]


async def fill(store: Store, value: bytes) -> int:
    """Stores records that live an hour until the store is full; how many."""
    for number in range(100):
        try:
            await store.report(f"t{number}", value=value, ttl_ms=HOUR_MS)
        except StoreFull:
            return number
    raise AssertionError("never full")


async def test_a_full_store_takes_no_more_and_recovers(clock: Clock, tmp_path: Path) -> None:
    """A full store refuses what grows; reading, forgetting and expiry go on and make room."""
    block = bytes(256 * limits.KIB)
    async with opened(clock, tmp_path, max_db_bytes=4 * MIB, sync=False) as store:
        stored = await fill(store, block)
        with pytest.raises(StoreFull):
            await store.create("g")
        assert (await store.meta("t0")).value.data == block
        assert await store.forget("t0", "t1", "t2", "t3") == 4
        await store.report("again")
        clock.advance(HOUR_MS)
        assert (await store.sweep()).expired == stored - 4
        for number in range(10):
            await store.report(f"later{number}", value=block)


async def test_a_full_store_lets_claims_end(clock: Clock, tmp_path: Path) -> None:
    """Who has acted on a group can say so while the store is full: else it is done again."""
    async with opened(clock, tmp_path, max_db_bytes=4 * MIB, sync=False) as store:
        await store.create("g", seal=True)
        assert await store.claim("g", "mine") == "GRANTED"
        await fill(store, bytes(256 * limits.KIB))
        with pytest.raises(StoreFull):
            await store.claim("g", "mine")
        assert await store.claim("g", "mine", "DONE") == "GRANTED"


async def test_a_full_map_refuses_one_write_and_not_its_neighbours(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the map itself is full, each write of the commit is tried by itself."""
    monkeypatch.setattr(environment, "HEADROOM_BYTES_MIN", 1 * MIB)
    async with opened(clock, tmp_path, max_db_bytes=2 * MIB, sync=False) as store:
        large = make_report("large", value=bytes(limits.RECORD_BYTES_MAX - 1000))
        refused, small, forgotten = await asyncio.gather(
            store.put([large]), store.put([make_report("small")]), store.forget("nobody"),
            return_exceptions=True,
        )  # fmt: skip
        assert isinstance(refused, StoreFull)
        assert not isinstance(small, BaseException)
        assert forgotten == 0
        assert await store.state("small") == "SUCCESS"
        assert await store.state("large") == "UNKNOWN"


class Gate:
    """An operation that holds the writer until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, _: Unit) -> None:
        """Says that it has begun, and waits."""
        self.entered.set()
        self.open.wait(30)


@asynccontextmanager
async def writer_held(store: Store) -> AsyncIterator[None]:
    """While inside, writes queue up; they are committed together afterwards."""
    gate = Gate()
    held = asyncio.ensure_future(lmdb_of(store)._write(gate))
    await asyncio.to_thread(gate.entered.wait, 30)
    try:
        yield
    finally:
        gate.open.set()
        await held


async def test_writes_that_come_together_share_a_commit(clock: Clock, tmp_path: Path) -> None:
    """Everything that queued while the last commit ran goes into the next one."""
    async with opened(clock, tmp_path, sync=False) as store:
        before = lmdb_of(store).commits
        async with writer_held(store):
            writes = [asyncio.ensure_future(store.report(f"t{n}")) for n in range(500)]
            await asyncio.sleep(0)
        await asyncio.gather(*writes)
        assert lmdb_of(store).commits - before == 2


@pytest.mark.parametrize("engine", [LmdbEngine, JournaledEngine])
async def test_what_is_much_work_takes_several_commits(
    clock: Clock, tmp_path: Path, engine: type[LmdbEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of operations that come together those that follow much work wait for the next commit. Each
    commit is counted as one.
    """
    store = Store(engine(clock, tmp_path, max_db_bytes=MAP_BYTES, sync=False), clock)
    await store.engine.start()
    names = [f"t{number}" for number in range(5)]
    await store.create("g", *map(task, names))
    monkeypatch.setattr(limits, "COMMIT_WORK_US", 1)
    before, counted = lmdb_of(store).commits, store.engine.stats().commit_operations.count
    said = await asyncio.gather(*map(store.report, [*names, "alone", "too"]))
    assert [disposition(each) for each in said] == ["APPLIED"] * 7
    commits = lmdb_of(store).commits - before
    assert commits in (6, 7), "who was first may have gone alone"
    stats = store.engine.stats()
    assert stats.commit_operations.count - counted == commits
    assert stats.commit_operations.count == stats.commit_seconds.count
    assert await store.log("g") == names
    await store.engine.close()


async def commits_of(store: Store, *task_ids: str) -> int:
    """How many commits writes take that begin a few turns of the event loop apart."""
    before = lmdb_of(store).commits
    writes = []
    for task_id in task_ids:
        writes.append(asyncio.ensure_future(store.report(task_id)))
        for _ in range(GATHER_TURNS // 2):
            await asyncio.sleep(0)
    await asyncio.gather(*writes)
    return lmdb_of(store).commits - before


@pytest.mark.parametrize("engine", [LmdbEngine, JournaledEngine])
async def test_a_commit_waits_for_who_is_on_the_way(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: type[LmdbEngine]
) -> None:
    """Where writes came together lately, those that follow at once share a commit too."""
    monkeypatch.setattr(lmdb_engine, "GATHER_S", 60.0)  # turns decide, however slow the machine
    store = Store(engine(clock, tmp_path, max_db_bytes=MAP_BYTES, sync=False), clock)
    await store.engine.start()
    try:
        await asyncio.gather(store.report("a"), store.report("b"))
        assert await commits_of(store, "c", "d", "e") == 1
        for number in range(3):  # each by itself, one after the other: forgotten by then
            await store.report(f"alone-{number}")
        assert await commits_of(store, "f", "g", "h") > 1
    finally:
        await store.engine.close()


async def test_an_operation_that_breaks_fails_alone(clock: Clock, tmp_path: Path) -> None:
    """An unexpected exception is its caller's; the others of the commit are stored."""

    def broken(unit: Unit) -> None:
        unit.txn.put(Db.META, b"half done", b"")
        raise RuntimeError("a bug")

    def look(unit: Unit) -> bytes | None:
        return unit.txn.get(Db.META, b"half done")

    async with opened(clock, tmp_path, sync=False) as store:
        engine = lmdb_of(store)
        async with writer_held(store):
            before = asyncio.ensure_future(store.report("before", group="g"))
            failing = asyncio.ensure_future(engine._write(broken))
            after = asyncio.ensure_future(store.report("after", group="g"))
            await asyncio.sleep(0)
        await asyncio.gather(before, after)
        with pytest.raises(RuntimeError, match="a bug"):
            await failing
        assert await store.log("g") == ["before", "after"]
        assert await engine._write(look) is None
        assert engine._failure is None


class BrokenEnvironment:
    """An environment whose transactions fail, as on a broken disk."""

    def __init__(
        self, env: Any, error: BaseException, *, on_commit: bool = False, on_read: bool = False
    ) -> None:
        self._env = env
        self._error = error
        self._on_commit = on_commit
        self._on_read = on_read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def begin(self, *, write: bool = False) -> Any:
        """Fails here, or with the commit."""
        if not write and not self._on_read:
            return self._env.begin()
        if not self._on_commit:
            raise self._error
        return self._failing_commit()

    def _failing_commit(self) -> Any:
        error, txn = self._error, self._env.begin(write=True)

        class Failing:
            def __enter__(self) -> Any:
                return txn

            def __exit__(self, *_: object) -> None:
                txn.abort()
                raise error

        return Failing()


@contextmanager
def broken(store: Store, error: BaseException, **when: bool) -> Iterator[list[BaseException]]:
    """The store's disk fails while inside; what the owner is told of it."""
    engine: Any = store.engine
    told: list[BaseException] = []
    engine.on_failure = told.append
    whole = engine._env
    engine._env = BrokenEnvironment(whole, error, **when)
    yield told
    engine._env = whole


@pytest.mark.parametrize("on_commit", [False, True])
@pytest.mark.parametrize("error", [lmdb.Error("Input/output error"), OSError(5, "EIO")])
async def test_a_failed_commit_stops_the_store(
    clock: Clock, tmp_path: Path, error: Exception, on_commit: bool
) -> None:
    """After a failed commit nothing is read or written any more, and the owner is told once."""
    async with opened(clock, tmp_path, sync=False) as store:
        await store.report("before")
        with broken(store, error, on_commit=on_commit) as told:
            writes = [store.report(f"t{number}") for number in range(3)]
            results = await asyncio.gather(*writes, return_exceptions=True)
            assert all(isinstance(result, StoreFailed) for result in results)
        with pytest.raises(StoreFailed, match="stopping"):
            await store.report("after")
        with pytest.raises(StoreFailed):
            await store.meta("before")
        await asyncio.sleep(0)
        assert told == [error]


async def test_a_full_disk_is_not_a_broken_one(clock: Clock, tmp_path: Path) -> None:
    """Where the system says there is no room the write is refused, whatever the disk has left."""
    async with opened(clock, tmp_path) as store:
        with no_room(tmp_path):
            with pytest.raises(StoreFull, match="The disk of the store is full"):
                await store.report("t")
            assert await store.state("t") == "UNKNOWN"
        await store.report("t")
        assert await store.state("t") == "SUCCESS"


async def test_a_meta_page_without_room_stops_the_store(clock: Clock, tmp_path: Path) -> None:
    """Which of two meta pages the disk has is not known then: no full disk explains it."""
    async with opened(clock, tmp_path) as store:
        with no_room(tmp_path, of_meta=True), pytest.raises(StoreFailed, match="No space left"):
            await store.report("t")
        with pytest.raises(StoreFailed):
            await store.report("t")


async def test_a_disk_that_answers_nothing_is_a_broken_one(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a commit fails and the disk will not even say whether it is full, the store stops."""

    def gone(_: object) -> None:
        raise OSError(5, "EIO")

    async with opened(clock, tmp_path, sync=False) as store:
        error = lmdb.Error("Input/output error")
        with broken(store, error, on_commit=True) as told, monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", gone)
            with pytest.raises(StoreFailed):
                await asyncio.wait_for(store.report("t"), 5)
        await asyncio.sleep(0)
        assert told == [error]


async def test_a_failed_read_stops_the_store(clock: Clock, tmp_path: Path) -> None:
    """A read that LMDB refuses is as final as a failed write."""
    async with opened(clock, tmp_path, sync=False) as store:
        error = lmdb.PanicError("the environment is poisoned")
        with broken(store, error, on_read=True) as told:
            with pytest.raises(StoreFailed):
                await store.meta("t")
            await asyncio.sleep(0)
            assert told == [error]


async def test_the_queue_of_writes_is_bounded(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More writes than may queue are refused with Overloaded, by number and by size."""
    async with opened(clock, tmp_path, sync=False) as store:
        async with writer_held(store):
            monkeypatch.setattr(limits, "WRITES_QUEUED_MAX", 5)
            # One is with the writer, which is held: L with these, and then up to 10 L.
            queued = [asyncio.ensure_future(store.report(f"a{number}")) for number in range(4)]
            await asyncio.sleep(0)
            for _ in range(45):
                with pytest.raises(Overloaded, match="later"):
                    await store.report("b")
        await asyncio.gather(*queued)
        monkeypatch.setattr(limits, "WRITES_QUEUED_BYTES_MAX", 100)
        with pytest.raises(Overloaded):
            await store.report("c", value=bytes(200))
        await store.report("d")


@pytest.mark.parametrize(
    ("more", "taken"),
    [(-1, True), (0, True), (1, False), (9 * limits.WRITES_QUEUED_BYTES_MAX, False)],
)
async def test_the_bytes_of_queued_writes_are_bounded(
    clock: Clock, tmp_path: Path, more: int, taken: bool
) -> None:
    """Beside a write under way another is queued that makes L-1 or L bytes with it, not more."""
    async with opened(clock, tmp_path, sync=False) as store, writer_held(store):
        engine = lmdb_of(store)
        room = limits.WRITES_QUEUED_BYTES_MAX - engine.stats().writes_queued_bytes
        # What a write says it carries is what counts: nobody has to carry it.
        write = asyncio.ensure_future(engine._write(lambda _: None, size_bytes=room + more))
        await asyncio.sleep(0)
        assert write.done() is not taken
        if not taken:
            with pytest.raises(Overloaded):
                await write


async def test_every_write_takes_its_room_in_the_queue(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members, wishes to stop and ids to forget count as the bytes they are, as reports do."""
    async with opened(clock, tmp_path, sync=False) as store:
        await store.create("g")
        monkeypatch.setattr(limits, "WRITES_QUEUED_BYTES_MAX", 1_000)
        ids = [f"{number:0>200}" for number in range(10)]
        for refused in (
            store.create("h", *map(task, ids)),
            store.add("g", *map(task, ids)),
            store.revoke(*ids),
            store.forget(*ids),
        ):
            with pytest.raises(Overloaded):
                await refused
        await store.add("g", task("t"))


async def test_an_answer_nobody_waits_for_is_dropped(clock: Clock, tmp_path: Path) -> None:
    """A caller that was cancelled does not keep its write from being stored and hinted."""
    async with opened(clock, tmp_path, sync=False) as store:
        subscription = store.engine.subscribe("default")
        subscription.add(TASK, ["t"])
        async with writer_held(store):
            write = asyncio.ensure_future(store.report("t"))
            await asyncio.sleep(0)
            write.cancel()
        assert await subscription.wait(10)
        assert await store.state("t") == "SUCCESS"
        subscription.close()


async def test_a_closed_store_answers_what_was_queued_and_takes_no_more(
    clock: Clock, tmp_path: Path
) -> None:
    """Writes queued before `close` are stored; those after it are refused, not left waiting."""
    async with opened(clock, tmp_path, sync=False) as store:
        engine = store.engine
        failures: list[BaseException] = []
        engine.on_failure = failures.append
        async with writer_held(store):
            queued = asyncio.ensure_future(store.report("t"))
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(engine.close())
            await asyncio.sleep(0)
            with pytest.raises(StoreFailed, match="closed"):
                await store.report("late")
        await closing
        assert disposition(await queued) == "APPLIED"
        with pytest.raises(StoreFailed, match="closed"):
            await store.meta("t")
        await asyncio.sleep(0)
        assert failures == []


async def test_closing_twice_or_before_the_start_does_nothing(clock: Clock, tmp_path: Path) -> None:
    """`close` may be called whatever came before it."""
    engine = LmdbEngine(clock, tmp_path, max_db_bytes=MAP_BYTES)
    await engine.close()
    await engine.start()
    await engine.close()
    await engine.close()


async def test_what_is_queued_and_how_long_the_writer_has_been_at_it(
    clock: Clock, tmp_path: Path
) -> None:
    """While a commit hangs, `writing_s` grows and the queue shows; afterwards both are 0."""
    async with opened(clock, tmp_path, sync=False) as store:
        async with writer_held(store):
            write = asyncio.ensure_future(store.report("t"))
            await asyncio.sleep(0)
            before_s = store.engine.stats().writing_s
            stats = store.engine.stats()
            assert stats.writing_s > before_s > 0
            assert stats.writes_queued >= 1
            assert stats.writes_queued_bytes > 0
        await write
        assert store.engine.stats()[2:5] == (0, 0, 0.0)


async def test_an_old_reader_is_seen(clock: Clock, tmp_path: Path) -> None:
    """A read transaction that stays open is as old as what was committed since."""
    async with opened(clock, tmp_path, sync=False) as store:
        await store.report("t")
        reader = lmdb_of(store)._env.begin()  # as one that hangs
        for number in range(5):
            await store.report(f"t{number}")
        space = store.engine.stats().space
        assert space is not None
        assert space.oldest_reader_transactions == 5
        assert 0 < space.readers <= space.readers_limit
        reader.abort()
        space = store.engine.stats().space
        assert space is not None
        assert space.oldest_reader_transactions == 0
    assert store.engine.stats().space is None  # closed
