"""Where a group is kept, and how it is shown."""

from __future__ import annotations

import pytest

from resultd_server.ledger import group_rows
from resultd_server.ledger.unit import Unit
from tests.server.ledger.test_txn import empty_txn
from tests.support.stores import HOUR_MS, Store, task


async def test_a_group_shows_what_its_creator_said(store: Store) -> None:
    """A group is read with its payloads, numbers, times and claim."""
    await store.create("g", task("a"), seal=True, scope="s", continuation=b"c", ttl_ms=HOUR_MS)
    start_s = store.clock.now_ms // 1000
    store.clock.advance(1_000)
    await store.report("a")
    await store.claim("g", "token")
    meta = await store.group("g")
    assert (meta.group_id, meta.claim_scope, meta.continuation.data) == ("g", "s", b"c")
    assert (meta.created_time.seconds, meta.completed_time.seconds) == (start_s, start_s + 1)
    assert meta.updated_time.seconds == start_s + 1
    assert meta.expire_time.seconds == start_s + 1 + HOUR_MS // 1000
    assert meta.claim.lease_expire_time.seconds == start_s + 31


async def test_an_absent_group_says_why(store: Store) -> None:
    """UNKNOWN, FORGOTTEN, EXPIRED before and after the sweep: with the id and nothing else."""
    await store.create("deleted")
    await store.delete_group("deleted")
    await store.create("expired", ttl_ms=1)
    store.clock.advance(1)
    for _ in range(2):
        names = ("nobody", "deleted", "expired")
        found = [await store.existence(name) for name in names]
        assert found == ["UNKNOWN", "FORGOTTEN", "EXPIRED"]
        await store.sweep()
    meta = await store.group("deleted")
    assert {field.name for field, _ in meta.ListFields()} == {"group_id", "existence"}


def test_a_run_without_numbers_is_a_bug() -> None:
    """Asking for the numbers of a run that is not there raises KeyError."""
    with pytest.raises(KeyError):
        group_rows.raw_counters(Unit(empty_txn(), 0), 7)
