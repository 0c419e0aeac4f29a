"""Who is to stop: kept a day."""

from __future__ import annotations

from resultd.v1 import worker_service_pb2
from resultd_server import limits
from tests.support.stored import times_filed
from tests.support.stores import HOUR_MS, NEVER, Store


async def test_a_wish_is_kept_a_day(store: Store) -> None:
    """A wish goes a day after it was last said."""
    await store.report("t", "STARTED", ttl_ms=7 * limits.REVOCATION_MS)
    await store.revoke("t", reason="first")
    store.clock.advance(HOUR_MS)
    await store.revoke("t", reason="second")
    store.clock.advance(limits.REVOCATION_MS - HOUR_MS)
    await store.sweep()
    (wish,) = await store.engine.revoked("default", ["t"])
    assert wish is not None
    assert worker_service_pb2.Revocation.FromString(wish).reason == "second"
    store.clock.advance(HOUR_MS)
    await store.sweep()
    assert await store.engine.revoked("default", ["t"]) == [None]
    await store.revoke("t")
    store.clock.advance(limits.REVOCATION_MS)
    assert (await store.sweep()).steps == 1


async def test_a_wish_is_filed_once(store: Store) -> None:
    """However often it is said."""
    await store.report("t", "STARTED", ttl_ms=NEVER)
    for _ in range(5):
        store.clock.advance(1)
        await store.revoke("t")
    assert times_filed(store.engine) == [store.clock.now_ms + limits.REVOCATION_MS]
