"""Who is to stop: kept a day."""

from __future__ import annotations

from resultd.v1 import worker_service_pb2
from resultd_server import limits
from tests.support.stores import HOUR_MS, Store


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
