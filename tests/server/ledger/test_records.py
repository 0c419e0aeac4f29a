"""Records: merged, versioned, forgotten, and what a tombstone still knows."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from resultd.v1 import state_pb2, task_pb2
from resultd_server import limits
from resultd_server.errors import ValueTooLarge
from tests.support.stored import times_filed
from tests.support.stores import (
    DAY_MS,
    HOUR_MS,
    NEVER,
    SECOND_MS,
    Store,
    disposition,
    make_report,
    task,
)

ATTRIBUTES = {
    "name": "proj.add",
    "queue": "q",
    "retries": 2,
    "parent_id": "p",
    "root_id": "r",
    "labels": {"a": "1"},
}


async def test_versions_count_accepted_reports(store: Store) -> None:
    """The version is 1, 2, 3 … one for each report accepted; others leave it."""
    versions = [
        (await store.report("t", state)).version
        for state in ("RECEIVED", "STARTED", "SUCCESS", "SUCCESS", "FAILURE")
    ]
    assert versions == [1, 2, 3, 3, 3]


async def test_a_report_replaces_what_changes_and_fills_the_rest(store: Store) -> None:
    """State, value, failure, progress and worker are replaced; nothing else is ever cleared."""
    progress = task_pb2.TaskMeta().progress
    progress.current = 5
    await store.report("t", "PROGRESS", b"half", worker="w1", progress=progress, **ATTRIBUTES)
    await store.report("t", "FAILURE", labels={"b": "2"}, queue="q2")
    meta = await store.meta("t")
    assert [meta.HasField("value"), meta.HasField("progress"), meta.worker] == [False, False, ""]
    assert (meta.name, meta.retries, meta.parent_id, meta.root_id) == ("proj.add", 2, "p", "r")
    assert (meta.queue, dict(meta.labels)) == ("q2", {"a": "1", "b": "2"})
    await store.report("t", "SUCCESS")
    assert not (await store.meta("t")).HasField("failure")


async def test_outputs_of_a_report_are_ignored(store: Store) -> None:
    """What a report says in the server's own fields is not kept, first or later."""
    for state in ("STARTED", "SUCCESS"):
        lie: dict[str, Any] = {"version": 77, "terminal": state == "STARTED", "existence": 3}
        await store.report("t", state, **lie)
        meta = await store.meta("t")
        assert (meta.terminal, meta.existence) == (state == "SUCCESS", 1)
        assert meta.version in (1, 2)


async def test_times_are_filled_in_where_a_report_has_none(store: Store) -> None:
    """Received, started and done times are the server's, unless the report names them."""
    start_s = store.clock.now_ms // 1000
    await store.report("t", "RECEIVED")
    store.clock.advance(SECOND_MS)
    await store.report("t", "STARTED")
    store.clock.advance(SECOND_MS)
    said = task_pb2.TaskMeta().done_time
    said.seconds = 42
    await store.report("t", "FAILURE", done_time=said)
    meta = await store.meta("t")
    assert [meta.created_time.seconds, meta.received_time.seconds] == [start_s, start_s]
    assert [meta.started_time.seconds, meta.done_time.seconds] == [start_s + 1, 42]
    assert meta.updated_time.seconds == start_s + 2
    store.clock.advance(SECOND_MS)
    await store.report("t", "SUCCESS")
    meta = await store.meta("t")
    assert (meta.done_time.seconds, meta.created_time.seconds) == (start_s + 3, start_s)


async def test_expiry_is_shown(store: Store) -> None:
    """A record says when it may be deleted, and nothing where it never is."""
    await store.report("t", "STARTED", ttl_ms=HOUR_MS)
    assert (await store.meta("t")).expire_time.seconds == (store.clock.now_ms + HOUR_MS) // 1000
    await store.report("t", ttl_ms=NEVER)
    assert not (await store.meta("t")).HasField("expire_time")


async def test_a_record_over_the_limit_is_refused_whole(store: Store) -> None:
    """A report that would make the record too large changes nothing, alone or by what it adds."""
    half = bytes(limits.RECORD_BYTES_MAX // 2 + 100)
    await store.report("t", "STARTED", labels={"a": half.decode()})
    with pytest.raises(ValueTooLarge, match="'t' would take"):
        await store.report("t", value=half)
    meta = await store.meta("t")
    assert (meta.state, meta.version) == (state_pb2.STATE_STARTED, 1)


async def test_every_record_that_was_taken_can_be_read_back(store: Store) -> None:
    """A record just below the limit is stored and read whole."""
    await store.report("t", value=bytes(limits.RECORD_BYTES_MAX - 100))
    assert len((await store.meta("t")).value.data) == limits.RECORD_BYTES_MAX - 100


async def test_a_late_repeat_of_a_forgotten_report_revives_nothing(store: Store) -> None:
    """The very same report after forgetting is a DUPLICATE; any other begins a new record."""
    await store.report("t", "FAILURE", b"no", attempt=2)
    await store.forget("t")
    for attempt in (2, 0):
        again = await store.report("t", "FAILURE", b"no", attempt=attempt)
        assert (disposition(again), again.version, again.state) == ("DUPLICATE", 1, 9)
        assert await store.state("t") == "FORGOTTEN"
    other = await store.report("t", "FAILURE", b"no", attempt=1)
    assert (disposition(other), other.version) == ("APPLIED", 2)


def at(nanos: int) -> Timestamp:
    """A moment that a worker names."""
    return Timestamp(seconds=1_700_000_000, nanos=nanos)


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED", "IGNORED"])
@pytest.mark.parametrize("expired", [False, True], ids=["forgotten", "expired"])
async def test_another_run_is_no_late_repeat(store: Store, state: str, expired: bool) -> None:
    """A task done at another time has a result again, of the same value; told by a nanosecond."""
    await store.report("t", state, done_time=at(1), ttl_ms=HOUR_MS)
    if expired:
        store.clock.advance(HOUR_MS)
    else:
        await store.forget("t")
    repeats: tuple[dict[str, Any], ...] = ({"done_time": at(1)}, {})
    for same in repeats:
        assert disposition(await store.report("t", state, **same)) == "DUPLICATE"
    assert await store.state("t") == ("EXPIRED" if expired else "FORGOTTEN")
    again = await store.report("t", state, done_time=at(2))
    assert (disposition(again), again.version) == ("APPLIED", 2)
    assert await store.state("t") == state


async def test_a_run_that_names_its_time_repeats_none_that_did_not(store: Store) -> None:
    """The time that the server filled in is nobody's word: a later one is another run's."""
    await store.report("t")
    await store.forget("t")
    assert disposition(await store.report("t", done_time=at(1))) == "APPLIED"


async def test_another_run_counts_in_its_group(store: Store) -> None:
    """A member that is run again under its id, and comes to the same, is waited for no longer."""
    await store.report("t", done_time=at(1))
    await store.forget("t")
    await store.create("g", task("t"), seal=True)
    answer = await store.report("t", done_time=at(2), group="g")
    assert list(answer.complete_group_ids) == ["g"]


async def test_while_there_is_a_record_its_run_said_again_is_a_duplicate(store: Store) -> None:
    """Two that ran the same task and came to the same: the first one's word stands."""
    await store.report("t", done_time=at(1))
    assert disposition(await store.report("t", done_time=at(2))) == "DUPLICATE"
    assert (await store.meta("t")).done_time == at(1)


@pytest.mark.parametrize("said", [("STARTED", b"1"), ("SUCCESS", b"2")])
async def test_a_new_record_goes_on_from_the_tombstones_version(
    store: Store, said: tuple[str, bytes]
) -> None:
    """A forgotten task that reports anew has a record whose version goes on, and nothing else."""
    await store.report("t", "RECEIVED", name="old")
    await store.report("t")
    await store.forget("t")
    answer = await store.report("t", *said)
    assert (disposition(answer), answer.version) == ("APPLIED", 3)
    assert (await store.meta("t")).name == ""


async def test_a_late_repeat_of_an_expired_report_revives_nothing(store: Store) -> None:
    """An expired record answers its repeat like a forgotten one, swept or not."""
    for swept in (False, True):
        name = f"t{swept}"
        await store.report(name, ttl_ms=HOUR_MS)
        store.clock.advance(HOUR_MS)
        if swept:
            await store.sweep()
        assert disposition(await store.report(name)) == "DUPLICATE"
        assert await store.state(name) == "EXPIRED"
        assert disposition(await store.report(name, "STARTED")) == "APPLIED"


async def test_after_the_tombstone_everything_is_new(store: Store) -> None:
    """When its tombstone is gone too, a task begins at version 1."""
    await store.report("t")
    await store.forget("t")
    store.clock.advance(limits.TOMBSTONE_MS)
    answer = await store.report("t")
    assert (disposition(answer), answer.version) == ("APPLIED", 1)


async def test_the_answer_names_what_stands(store: Store) -> None:
    """An answer carries the record's state and version now, custom states by name."""
    await store.report("t", "CUSTOM", custom_state="CALIBRATING", attempt=2)
    late = await store.report("t", "STARTED", attempt=1)
    assert (disposition(late), late.state, late.custom_state, late.version) == (
        "SUPERSEDED",
        state_pb2.STATE_CUSTOM,
        "CALIBRATING",
        1,
    )
    done = await store.report("t", attempt=2)
    assert (done.state, done.custom_state) == (state_pb2.STATE_SUCCESS, "")


async def test_reports_of_one_task_at_every_size_of_batch(store: Store) -> None:
    """A batch in which a task lives its whole life ends in its terminal state."""
    states = ("RECEIVED", "STARTED", "PROGRESS", "RETRY", "STARTED", "SUCCESS")
    await store.put([make_report("t", state) for state in states])
    assert (await store.meta("t")).version == len(states)


async def test_a_record_is_filed_once(store: Store) -> None:
    """However often its life is changed: longer, shorter, given, taken; it stands where it ends."""
    for ttl_ms in (DAY_MS, 2 * DAY_MS, HOUR_MS, NEVER, HOUR_MS, HOUR_MS - 1):
        store.clock.advance(1)
        await store.report("t", "STARTED", ttl_ms=ttl_ms)
        due = [store.clock.now_ms + ttl_ms] if ttl_ms else []
        assert times_filed(store.engine) == due


async def test_what_is_forgotten_again_and_again_is_filed_once(store: Store) -> None:
    """A record's entry goes with it, and its tombstone's when it comes back."""
    for number in range(5):
        store.clock.advance(1)
        await store.report("t", value=b"%d" % number, ttl_ms=DAY_MS)
        assert times_filed(store.engine) == [store.clock.now_ms + DAY_MS]
        await store.forget("t")
        assert times_filed(store.engine) == [store.clock.now_ms + limits.TOMBSTONE_MS]
