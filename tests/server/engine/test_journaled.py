"""The engine with a journal: durable before visible, whole or not at all, as others decide.

That it does what every engine does: `test_base`, `tests/server/ledger/test_model.py`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resultd_server import limits
from resultd_server.engine import checkpoint, environment, journal, journaled, recovery
from resultd_server.engine.journaled import JournaledEngine
from resultd_server.engine.lmdb import HINTS_FIRST_MAX, LmdbEngine
from resultd_server.engine.overlay import Layer
from resultd_server.errors import Overloaded, RecordCorrupt, StoreFailed, StoreFull
from resultd_server.ledger import groups, keys, memberships, namespaces
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import TASK, Unit
from tests.support.abandoned import abandon
from tests.support.stores import HOUR_MS, MAP_BYTES, Clock, Store, disposition, make_report, task

MIB = limits.MIB


@asynccontextmanager
async def opened(
    clock: Clock, directory: Path, *, kill: bool = False, **settings: Any
) -> AsyncIterator[Store]:
    """The store in a directory; at the end closed, or dropped as by a kill."""
    engine = JournaledEngine(clock, directory, **{"max_db_bytes": MAP_BYTES, **settings})
    await engine.start()
    try:
        yield Store(engine, clock)
    finally:
        if kill:
            await abandon(engine)
        else:
            await engine.close()


def engine_of(store: Store) -> JournaledEngine:
    """The engine, as what it is."""
    assert isinstance(store.engine, JournaledEngine)
    return store.engine


async def test_what_was_stored_is_there_after_a_kill(clock: Clock, tmp_path: Path) -> None:
    """Records, tombstones, groups, logs, claims and wishes come back from the journal."""
    async with opened(clock, tmp_path, kill=True) as store:
        await store.put(
            [make_report("a", group="g"), make_report("b"), make_report("c", "STARTED")]
        )
        await store.create("g", task("a"), seal=True, scope="s")
        await store.claim("g", "token")
        await store.forget("b")
        await store.revoke("c")
    for kill in (True, False, False):
        async with opened(clock, tmp_path, kill=kill) as store:
            assert [await store.state(id_) for id_ in "abc"] == ["SUCCESS", "FORGOTTEN", "STARTED"]
            assert disposition(await store.report("b")) == "DUPLICATE"
            assert await store.log("g") == ["a"]
            assert await store.claim("g", "token") == "GRANTED"


async def test_what_a_kill_left_is_served_without_a_journal_too(
    clock: Clock, tmp_path: Path
) -> None:
    """The engine of several processes finds in LMDB what the journal had."""
    async with opened(clock, tmp_path, kill=True) as store:
        await store.report("t")
    direct = LmdbEngine(clock, tmp_path, max_db_bytes=MAP_BYTES)
    await direct.start()
    assert await Store(direct, clock).state("t") == "SUCCESS"
    await Store(direct, clock).report("u")
    await direct.close()
    async with opened(clock, tmp_path) as store:
        assert [await store.state(id_) for id_ in "tu"] == ["SUCCESS", "SUCCESS"]


async def test_a_damaged_journal_is_not_guessed_at(clock: Clock, tmp_path: Path) -> None:
    """A store whose journal lacks a commit in the middle does not start, and says what to do."""
    async with opened(clock, tmp_path, kill=True) as store:
        for number in range(3):
            await store.report(f"t{number}")
    path = tmp_path / journal.FILES[0]
    path.write_bytes(bytes(journal.BLOCK_BYTES) + path.read_bytes()[journal.BLOCK_BYTES :])
    for _ in range(2):
        with pytest.raises(StoreFailed, match="damaged"):
            async with opened(clock, tmp_path):
                pass


async def test_nothing_is_seen_before_it_is_on_disk(clock: Clock, tmp_path: Path) -> None:
    """While the journal is written, readers see nothing of the commit and nobody is hinted."""
    entered, go_on = threading.Event(), threading.Event()
    async with opened(clock, tmp_path) as store:
        engine = engine_of(store)
        append = engine._journal.append

        def held(entry: bytes, spare_bytes: int = 0) -> None:
            entered.set()
            go_on.wait(30)
            append(entry, spare_bytes)

        engine._journal.append = held  # type: ignore[method-assign]  # held up
        subscription = engine.subscribe("default")
        subscription.add(TASK, ["t"])
        write = asyncio.ensure_future(store.report("t"))
        await asyncio.to_thread(entered.wait, 30)
        assert await store.state("t") == "UNKNOWN"
        assert subscription.take() == []
        assert not write.done()
        together = [asyncio.ensure_future(store.report(f"u{n}")) for n in range(50)]
        await asyncio.sleep(0)
        before = engine.commits
        go_on.set()
        await asyncio.gather(write, *together)
        assert engine.commits - before == 2
        assert subscription.take() == [(TASK, "t")]
        assert await store.state("t") == "SUCCESS"
        subscription.close()


@pytest.mark.parametrize(("waiters", "first"), [(1, "waiter"), (HINTS_FIRST_MAX + 1, "caller")])
async def test_a_few_waiters_hear_before_the_caller(
    clock: Clock, tmp_path: Path, waiters: int, first: str
) -> None:
    """Whoever waits for a record is told before its storer; many do not hold up the answer."""
    order: list[str] = []

    async def wait() -> None:
        subscription = store.engine.subscribe("default")
        subscription.add(TASK, ["a"])
        await subscription.wait(10.0)
        order.append("waiter")

    async with opened(clock, tmp_path) as store:
        waiting = [asyncio.create_task(wait()) for _ in range(waiters)]
        await asyncio.sleep(0)
        await store.report("a")
        order.append("caller")
        await asyncio.gather(*waiting)
    assert order[0] == first
    assert sorted(order) == ["caller", *["waiter"] * waiters]


@pytest.mark.parametrize("size_bytes", [0, MIB])
async def test_an_operation_that_breaks_fails_alone(
    clock: Clock, tmp_path: Path, size_bytes: int
) -> None:
    """An unexpected exception is its caller's; the others of the commit are stored, once."""

    def broken(unit: Unit) -> None:
        unit.txn.put(Db.META, b"half done", b"")
        raise RuntimeError("a bug")

    def look(unit: Unit) -> bytes | None:
        return unit.txn.get(Db.META, b"half done")

    async with opened(clock, tmp_path) as store:
        engine = engine_of(store)
        before = asyncio.ensure_future(store.report("before", group="g"))
        failing = asyncio.ensure_future(engine._write(broken, size_bytes=size_bytes))
        after = asyncio.ensure_future(store.report("after", group="g"))
        await asyncio.gather(before, after)
        with pytest.raises(RuntimeError, match="a bug"):
            await failing
        assert await store.log("g") == ["before", "after"]
        assert await engine._write(look) is None
        with pytest.raises(RuntimeError, match="a bug"):
            await engine._write(broken)
        assert engine._failure is None


@pytest.mark.parametrize(
    ("size_bytes", "reports", "on_loop"),
    [
        (journaled.ON_LOOP_BYTES_OTHER, 0, True),
        (journaled.ON_LOOP_BYTES_OTHER + 1, 0, False),
        (journaled.ON_LOOP_BYTES, 1, True),
        (journaled.ON_LOOP_BYTES, journaled.ON_LOOP_OPERATIONS, True),
        (journaled.ON_LOOP_BYTES + 1, 1, False),
        (0, journaled.ON_LOOP_OPERATIONS + 1, False),
    ],
)
async def test_what_takes_long_runs_on_the_writers_thread(
    clock: Clock, tmp_path: Path, size_bytes: int, reports: int, on_loop: bool
) -> None:
    """And what is short on the event loop's: a batch by its reports, others by their bytes."""
    async with opened(clock, tmp_path) as store:
        where = await engine_of(store)._write(
            lambda _: threading.current_thread(), size_bytes=size_bytes, reports=reports
        )
        assert (where is threading.current_thread()) == on_loop


@pytest.mark.parametrize(("members", "on_loop"), [(60, True), (70, False)])
async def test_a_call_of_many_short_ids_is_not_short(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: int, on_loop: bool
) -> None:
    """Each of them is looked for in all groups that it is in."""
    ran: set[threading.Thread] = set()
    create = groups.create

    def created(*arguments: Any) -> Any:
        ran.add(threading.current_thread())
        return create(*arguments)

    monkeypatch.setattr(groups, "create", created)
    async with opened(clock, tmp_path) as store:
        await store.create("g", *(task(chr(number)) for number in range(0x4E00, 0x4E00 + members)))
    assert (ran == {threading.current_thread()}) == on_loop


async def test_only_the_event_loops_thread_looks_which_layers_there_are(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes them: in the middle of another's look what is acknowledged would be gone."""
    looked: set[threading.Thread] = set()
    look = checkpoint.Checkpoints.layers

    def layers(checkpoints: checkpoint.Checkpoints) -> tuple[Layer, ...]:
        looked.add(threading.current_thread())
        return look(checkpoints)

    monkeypatch.setattr(checkpoint.Checkpoints, "layers", layers)
    async with opened(clock, tmp_path) as store:
        long = [make_report(f"t{n}") for n in range(journaled.ON_LOOP_OPERATIONS + 1)]
        await store.put(long)
        await store.report("t0", state="FAILURE")
        assert await store.state("t0") == "SUCCESS"
    assert looked == {threading.current_thread()}


async def test_what_was_not_short_after_all_is_followed_by_a_pause(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop's thread runs nothing for a hundred times as long as it was held up."""

    async def on_loop(engine: JournaledEngine, took_s: float) -> bool:
        def operation(_: Unit) -> threading.Thread:
            now_s[0] += took_s
            return threading.current_thread()

        return await engine._write(operation) is threading.current_thread()

    now_s = [1_000.0]
    async with opened(clock, tmp_path) as store:
        engine = engine_of(store)
        monkeypatch.setattr(journaled, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
        assert await on_loop(engine, journaled.ON_LOOP_S * 0.9)
        assert await on_loop(engine, 0.2)
        assert not await on_loop(engine, 0.0)
        now_s[0] += 0.2 / journaled.ON_LOOP_SHARE - 0.01
        assert not await on_loop(engine, 0.0)
        now_s[0] += 0.02
        assert await on_loop(engine, 0.0)


async def test_short_operations_together_may_be_long(clock: Clock, tmp_path: Path) -> None:
    """What shares a commit counts together."""
    async with opened(clock, tmp_path) as store:
        half = journaled.ON_LOOP_OPERATIONS // 2
        for more, on_loop in ((0, True), (1, False)):
            where = await asyncio.gather(
                *(
                    engine_of(store)._write(lambda _: threading.current_thread(), reports=each)
                    for each in (half, half + more)
                )
            )
            assert [each is threading.current_thread() for each in where] == [on_loop] * 2


async def test_what_a_disk_returns_wrong_is_refused(clock: Clock, tmp_path: Path) -> None:
    """A row in LMDB that does not match its checksum is RecordCorrupt; its neighbours go on."""
    async with opened(clock, tmp_path) as store:
        await store.put([make_report("good"), make_report("bad")])
    async with opened(clock, tmp_path) as store:
        engine = engine_of(store)
        with engine._env.begin(write=True, db=engine._dbs[Db.TASKS]) as txn:
            ((key, value),) = [(k, v) for k, v in txn.cursor() if b"bad" in k]
            txn.put(key, bytes([value[0] ^ 1]) + value[1:])
        with pytest.raises(RecordCorrupt, match="backup"):
            await store.meta("bad")
        outcomes = await store.put([make_report("x"), make_report("bad"), make_report("y")])
        assert [isinstance(outcome, RecordCorrupt) for outcome in outcomes] == [False, True, False]
        assert await store.state("good") == "SUCCESS"


def failing(monkeypatch: pytest.MonkeyPatch, number: int, *, after: int = 0) -> None:
    """From the n-th write on the journal's disk answers with an error, after writing all."""
    write, count = os.pwrite, 0

    def fails(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal count
        count += 1
        written = write(descriptor, data, offset)
        if count > after:
            raise OSError(number, os.strerror(number))
        return written

    monkeypatch.setattr(os, "pwrite", fails)


async def test_a_failed_write_stops_the_store(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After EIO nothing is read or written any more, nobody is told OK, the owner is told once."""
    async with opened(clock, tmp_path) as store:
        told: list[BaseException] = []
        store.engine.on_failure = told.append
        await store.report("before")
        with monkeypatch.context() as patch:
            failing(patch, errno.EIO)
            writes = [store.report(f"t{number}") for number in range(3)]
            results = await asyncio.gather(*writes, return_exceptions=True)
        assert all(isinstance(result, StoreFailed) for result in results)
        with pytest.raises(StoreFailed, match="stopping"):
            await store.report("after")
        with pytest.raises(StoreFailed):
            await store.meta("before")
        await asyncio.sleep(0)
        assert [type(error) for error in told] == [OSError]
    async with opened(clock, tmp_path) as store:
        assert await store.state("before") == "SUCCESS"


def fill_disk(patch: pytest.MonkeyPatch) -> None:
    """Lets no write of anything find room."""
    write = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        written = write(descriptor, data, offset)
        if data.strip(b"\0"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    patch.setattr(os, "pwrite", full)


async def test_a_full_disk_refuses_and_is_left(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that found no room is STORE_FULL, is never seen, not after a kill either."""
    async with opened(clock, tmp_path, kill=True) as store:
        await store.report("before")
        with monkeypatch.context() as patch:
            fill_disk(patch)
            with pytest.raises(StoreFull):
                await store.report("refused")
        assert await store.state("refused") == "UNKNOWN"
        await store.report("after")
    async with opened(clock, tmp_path) as store:
        states = [await store.state(id_) for id_ in ("before", "refused", "after")]
        assert states == ["SUCCESS", "UNKNOWN", "SUCCESS"]


async def test_what_makes_room_has_its_own_before_the_disk_is_full(
    clock: Clock, tmp_path: Path
) -> None:
    """Whichever file of the journal is in use then: forgetting is written into it."""
    async with opened(clock, tmp_path) as store:
        written = engine_of(store)._journal
        sizes = [os.fstat(descriptor).st_size for descriptor in written._descriptors]
        assert sizes == [journal.FIRST_BYTES, journal.FIRST_BYTES]


async def test_a_disk_that_cannot_take_it_back_either_is_broken(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a refused entry may still be read later, the store stops."""
    async with opened(clock, tmp_path) as store:
        await store.report("before")
        with monkeypatch.context() as patch:
            failing(patch, errno.ENOSPC)
            with pytest.raises(StoreFailed):
                await store.report("t")


async def answered(work: Awaitable[object]) -> str:
    """The reason of its refusal; empty where there is none."""
    try:
        await work
    except StoreFull as refusal:
        return refusal.reason_name
    return ""


async def test_a_full_store_takes_no_more_and_recovers(clock: Clock, tmp_path: Path) -> None:
    """A full store refuses what grows; reading, forgetting and expiry go on and make room."""
    block = bytes(256 * limits.KIB)
    async with opened(clock, tmp_path, max_db_bytes=4 * MIB) as store:
        reports = [make_report(f"t{n}", value=block, ttl_ms=HOUR_MS) for n in range(30)]
        outcomes = [await answered(store.put([report])) for report in reports]
        stored = outcomes.index("STORE_FULL")
        assert set(outcomes[stored:]) == {"STORE_FULL"}
        with pytest.raises(StoreFull):
            await store.create("g")
        assert (await store.meta("t0")).value.data == block
        assert await store.forget("t0", "t1", "t2", "t3") == 4
        await store.report("again")
        clock.advance(HOUR_MS)
        assert (await store.sweep()).expired == stored - 4
        for number in range(10):
            await store.report(f"later{number}", value=block)


async def test_what_makes_room_is_not_refused_with_what_grows(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk: a call to forget has what was spared, also beside a report in one commit."""
    async with opened(clock, tmp_path, kill=True) as store:
        await store.put([make_report("a"), make_report("b")])
        engine = engine_of(store)
        await engine._checkpoints.write_all()
        room_bytes = engine._journal._offset + journal.SPARE_BYTES // 2
        with monkeypatch.context() as patch:
            patch.setattr(engine._checkpoints, "stuck", True)
            patch.setattr(engine._checkpoints, "frozen", Layer())
            patch.setattr(engine._journal, "_capacity_bytes", room_bytes)
            before = engine.commits
            said = await asyncio.gather(
                answered(store.forget("a")),
                answered(store.report("c")),
                answered(store.forget("b")),
                answered(store.create("g")),
            )
            assert [*said] == ["", "STORE_FULL", "", "STORE_FULL"]
            assert engine.commits == before + 1
        states = [await store.state(id_) for id_ in ("a", "b", "c")]
        assert states == ["FORGOTTEN", "FORGOTTEN", "UNKNOWN"]


def small_journal(directory: Path, run: bytes, *, sync: bool) -> journal.Journal:
    """A journal of two files of 1 MiB."""
    return journal.Journal(directory, run, MIB, sync=sync)


async def test_what_is_too_large_for_the_journal_is_stored_all_the_same(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit beyond a file's size goes to LMDB, after what came before it, and survives."""
    monkeypatch.setattr(journaled, "Journal", small_journal)
    large = bytes(limits.RECORD_BYTES_MAX - 1_000)
    async with opened(clock, tmp_path, kill=True) as store:
        await store.report("small", group="g")
        reports = [make_report("small", "FAILURE"), make_report("large", value=large, group="g")]
        both = [store.put([each]) for each in reports]
        await asyncio.gather(*both, store.report("other", group="g"))
        await store.report("after", group="g")
    async with opened(clock, tmp_path) as store:
        assert (await store.meta("large")).value.data == large
        assert set(await store.log("g")) == {"small", "large", "other", "after"}


async def test_a_map_too_full_for_the_large_refuses_it(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where LMDB's map cannot take a large commit, it is STORE_FULL, and the store lives."""
    monkeypatch.setattr(journaled, "Journal", small_journal)
    monkeypatch.setattr(environment, "HEADROOM_BYTES_MIN", MIB)
    async with opened(clock, tmp_path, max_db_bytes=2 * MIB) as store:
        with pytest.raises(StoreFull):
            await store.report("large", value=bytes(limits.RECORD_BYTES_MAX - 1_000))
        await store.report("small")
        assert await store.state("large") == "UNKNOWN"


async def test_the_queue_of_writes_is_bounded(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a checkpoint cannot keep up writes wait, reads go on, and too many are refused."""
    entered, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(journaled, "Journal", small_journal)
    block = bytes(300 * limits.KIB)
    async with opened(clock, tmp_path) as store:
        write = recovery.write

        def held(*given: Any, **more: Any) -> Any:
            entered.set()
            go_on.wait(30)
            return write(*given, **more)

        monkeypatch.setattr(recovery, "write", held)
        monkeypatch.setattr(limits, "WRITES_QUEUED_MAX", 8)
        # Two of them fit a file: the fifth waits.
        writes = [asyncio.ensure_future(store.report(f"t{n}", value=block)) for n in range(8)]
        await asyncio.to_thread(entered.wait, 30)
        await asyncio.wait(writes[:4])
        waiting = [asyncio.ensure_future(store.report(f"u{n}")) for n in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await store.report("more")
        assert await store.state("t0") == "SUCCESS"
        assert not any(each.done() for each in (*writes[4:], *waiting))
        go_on.set()
        await asyncio.gather(*writes, *waiting)


async def test_closing_leaves_nothing_in_the_journal(clock: Clock, tmp_path: Path) -> None:
    """After `close` LMDB has everything: the journal's files may be removed."""
    async with opened(clock, tmp_path) as store:
        await store.report("t")
    for name in journal.FILES:
        (tmp_path / name).unlink()
    async with opened(clock, tmp_path) as store:
        assert await store.state("t") == "SUCCESS"


async def test_closing_twice_or_before_the_start_does_nothing(clock: Clock, tmp_path: Path) -> None:
    """`close` may be called whatever came before it."""
    engine = JournaledEngine(clock, tmp_path, max_db_bytes=MAP_BYTES)
    await engine.close()
    await engine.start()
    await engine.close()
    await engine.close()
    with pytest.raises(StoreFailed, match="closed"):
        await Store(engine, clock).report("late")


async def test_a_refused_commit_has_emptied_nothing(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group whose end found no room counts its members: what saw it gone is forgotten."""
    async with opened(clock, tmp_path) as store:
        await store.create("g", task("a"), task("b"), seal=True)
        await store.create("old", task("z"))
        await store.delete_group("old")  # the sweeper has something to do
        with monkeypatch.context() as patch:
            fill_disk(patch)
            asked = (store.delete_group("g"), store.engine.sweep(100), store.report("x"))
            refusals = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(refusal) for refusal in refusals] == [StoreFull] * 3
        await store.report("a")
        assert (await store.report("b")).complete_group_ids == ["g"]
        assert await store.log("g") == ["a", "b"]


@pytest.mark.parametrize(
    ("breaks", "size_bytes"), [(True, 1), (False, limits.RECORD_BYTES_MAX - 1_000)]
)
async def test_a_unit_that_is_not_kept_has_emptied_nothing(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: bool, size_bytes: int
) -> None:
    """Nor one that broke or was too large, whose operations run again and then do less."""
    monkeypatch.setattr(journaled, "Journal", small_journal)
    runs: list[Unit] = []

    def remove_at_first(unit: Unit) -> None:
        runs.append(unit)
        if len(runs) == 1:
            for key, _ in list(unit.txn.scan(Db.MEMBERSHIPS, b"", keys.ALL)):
                unit.txn.remove(Db.MEMBERSHIPS, key)
            where = namespaces.find(unit.txn, "default")
            assert where is not None
            assert memberships.of(unit, where, keys.TASK, "a") == []
            if breaks:
                raise RuntimeError("a bug")

    async with opened(clock, tmp_path) as store:
        await store.create("g", task("a"), seal=True)
        beside = store.report("x", value=bytes(size_bytes))
        await asyncio.gather(engine_of(store)._write(remove_at_first), beside)
        assert len(runs) == 2
        assert (await store.report("a")).complete_group_ids == ["g"]
