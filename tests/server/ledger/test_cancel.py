"""Cancellation: what nobody started ends at once, the rest is asked of its worker."""

from __future__ import annotations

import pytest

from resultd.v1 import state_pb2, value_pb2
from resultd_server import limits
from tests.support.stores import DAY_MS, HOUR_MS, NEVER, Store, disposition, task


@pytest.mark.parametrize("state", [None, "PENDING", "RECEIVED", "RETRY", "REJECTED"])
async def test_what_nobody_started_is_revoked_at_once(store: Store, state: str | None) -> None:
    """A task without a worker, or without a record, becomes REVOKED, and counts in its groups."""
    await store.create("g", task("t"), seal=True)
    if state:
        await store.report("t", state, attempt=2)
    assert await store.revoke("t", reason="too late") == [state_pb2.STATE_REVOKED]
    meta = await store.meta("t")
    assert (meta.state, meta.failure.message) == (state_pb2.STATE_REVOKED, "too late")
    assert (meta.failure.module, meta.failure.type) == ("celery.exceptions", "TaskRevokedError")
    assert (await store.counts("g"))["revoked"] == 1


@pytest.mark.parametrize("state", ["STARTED", "PROGRESS", "CUSTOM"])
async def test_a_worker_is_asked(store: Store, state: str) -> None:
    """A task under way is left to its worker, who hears of it with each report."""
    await store.report("t", state)
    assert await store.revoke("t") == [0]
    answer = await store.report("t", "REVOKED", b"stopped")
    assert (disposition(answer), answer.cancel_requested) == ("APPLIED", True)


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED", "IGNORED"])
async def test_what_has_ended_is_left_alone(store: Store, state: str) -> None:
    """A terminal task answers its state; no wish is kept."""
    await store.report("t", state)
    assert await store.revoke("t") == [state_pb2.State.Value(f"STATE_{state}")]
    assert await store.engine.revoked("default", ["t"]) == [None]
    assert (await store.meta("t")).version == 1


async def test_a_late_success_of_a_revoked_task_counts(store: Store) -> None:
    """A worker that finished all the same has its result taken: SUCCESS sticks."""
    await store.revoke("t")
    assert disposition(await store.report("t")) == "APPLIED"
    assert await store.state("t") == "SUCCESS"


async def test_a_revoked_record_lives_as_long_as_it_was_to(store: Store) -> None:
    """Revoking keeps the time to live that the last report named; without one, a day."""
    for name, ttl_ms in (("ever", NEVER), ("week", 7 * DAY_MS), ("hour", HOUR_MS)):
        await store.report(name, "PENDING", ttl_ms=ttl_ms)
    store.clock.advance(HOUR_MS // 2)
    await store.revoke("ever", "week", "hour", "new")
    lives = {}
    for name in ("ever", "week", "hour", "new"):
        meta = await store.meta(name)
        lives[name] = meta.expire_time.seconds and (
            meta.expire_time.seconds * 1000 - store.clock.now_ms
        )
    assert lives == {"ever": 0, "week": 7 * DAY_MS, "hour": HOUR_MS, "new": DAY_MS}


async def test_a_record_too_full_for_the_word_is_left_to_its_worker(store: Store) -> None:
    """A record that has no room for REVOKED keeps the wish; the others of the call are revoked."""
    for name in ("before", "full", "after"):
        await store.report(name, "PENDING", b"")
    room = limits.RECORD_BYTES_MAX - (await store.meta("full")).ByteSize() - 32
    await store.report("full", "PENDING", b"", kwargs=value_pb2.Payload(data=bytes(room)))
    assert await store.revoke("before", "full", "after") == [
        state_pb2.STATE_REVOKED,
        0,
        state_pb2.STATE_REVOKED,
    ]
    assert await store.state("full") == "PENDING"
    assert await store.state("after") == "REVOKED"
    assert (await store.report("full", "PENDING", b"")).cancel_requested
