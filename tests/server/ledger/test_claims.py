"""The exclusive right to act on a complete group."""

from __future__ import annotations

from typing import Any

import pytest

from resultd.v1 import group_pb2
from resultd.v1 import group_service_pb2 as pb
from resultd_server import limits
from resultd_server.ledger.claiming import ClaimRequest
from resultd_server.ledger.usage import Allowance
from tests.support.stored import usage_of
from tests.support.stores import HOUR_MS, Store, task


async def complete(store: Store, group_id: str = "g", scope: str = "") -> None:
    """A complete group."""
    await store.create(group_id, seal=True, scope=scope)


async def test_only_a_complete_group_can_be_claimed(store: Store) -> None:
    """A claim on a group that is not complete answers INCOMPLETE."""
    await store.create("g", task("a"), seal=True)
    assert await store.claim("g", "me") == "INCOMPLETE"
    await store.report("a")
    assert await store.claim("g", "me") == "GRANTED"


async def test_a_claim_is_exclusive(store: Store) -> None:
    """While one token holds the claim another is told so; the same token renews it."""
    await complete(store)
    assert await store.claim("g", "me", lease_ms=1_000) == "GRANTED"
    assert await store.claim("g", "you") == "HELD"
    store.clock.advance(900)
    assert await store.claim("g", "me", lease_ms=1_000) == "GRANTED"
    store.clock.advance(900)
    assert await store.claim("g", "you") == "HELD"
    claim = (await store.group("g")).claim
    assert (claim.holder, claim.state) == ("holder of me", group_pb2.CLAIM_STATE_HELD)


async def test_a_claimant_that_dies_loses_the_claim(store: Store) -> None:
    """A lease that ran out passes the claim on, and the late word of the dead answers LOST."""
    await complete(store)
    await store.claim("g", "dead", lease_ms=1_000)
    store.clock.advance(1_000)
    assert await store.claim("g", "heir") == "GRANTED"
    assert await store.claim("g", "dead", "DONE") == "LOST"
    assert await store.claim("g", "dead", "RELEASE") == "LOST"
    assert await store.claim("g", "dead") == "HELD"
    assert await store.claim("g", "heir", "DONE") == "GRANTED"


async def test_a_late_word_counts_while_nobody_took_over(store: Store) -> None:
    """A holder whose lease ran out still finishes, as long as nobody else took the claim."""
    await complete(store)
    await store.claim("g", "me", lease_ms=1_000)
    store.clock.advance(HOUR_MS)
    assert (await store.group("g")).claim.state == group_pb2.CLAIM_STATE_UNSPECIFIED
    assert await store.claim("g", "me", "DONE") == "GRANTED"


async def test_done_is_for_good(store: Store) -> None:
    """Once done, nobody gets the claim; the one who finished may say so again."""
    await complete(store)
    assert await store.claim("g", "me", "DONE") == "LOST"
    await store.claim("g", "me")
    assert await store.claim("g", "me", "DONE") == "GRANTED"
    assert await store.claim("g", "me", "DONE") == "GRANTED"
    assert await store.claim("g", "you", "DONE") == "DONE"
    assert await store.claim("g", "me", "RELEASE") == "DONE"
    assert await store.claim("g", "you") == "DONE"
    assert (await store.group("g")).claim.state == group_pb2.CLAIM_STATE_DONE


async def test_a_claim_given_back_is_free(store: Store) -> None:
    """RELEASE gives the claim to whoever asks next."""
    await complete(store)
    await store.claim("g", "me")
    assert await store.claim("g", "me", "RELEASE") == "GRANTED"
    assert await store.claim("g", "you") == "GRANTED"


async def test_the_first_to_claim_is_told_so(store: Store) -> None:
    """Until another token has had the claim on this run, lease run out or given back."""
    first = pb.CLAIM_ACTION_ACQUIRE

    async def claim(token: str, action: pb.ClaimAction.ValueType = first) -> bool:
        said = ClaimRequest("g", action, token, "", 1_000)
        return (await store.engine.group_claim(store.namespace, said)).first

    await complete(store)
    assert await claim("me")
    assert await claim("me")
    assert not await claim("you")
    store.clock.advance(1_000)
    assert not await claim("you")
    store.clock.advance(1_000)
    assert not await claim("me")
    await store.create("g", seal=True, new_epoch=True)
    assert await claim("you")
    await claim("you", pb.CLAIM_ACTION_RELEASE)
    assert not await claim("you")


async def test_reports_of_the_scope_hear_of_claimable_groups(store: Store) -> None:
    """A report names the free complete groups of its scope: not held, done or foreign ones."""
    for name in ("free", "held", "done"):
        await complete(store, name, "s")
    await complete(store, "foreign", "other")
    await complete(store, "prefix", "s2")
    await store.create("incomplete", task("x"), scope="s")
    await store.claim("held", "me", lease_ms=1_000)
    await store.claim("done", "me")
    await store.claim("done", "me", "DONE")
    assert (await store.report("t", scope="s")).claimable_group_ids == ["free"]
    store.clock.advance(1_000)
    assert (await store.report("t", scope="s")).claimable_group_ids == ["free", "held"]
    assert (await store.report("t")).claimable_group_ids == []


async def test_the_claimable_groups_of_an_answer_are_bounded(store: Store) -> None:
    """An answer names at most eight claimable groups."""
    for number in range(10):
        await complete(store, f"g{number}", "s")
    assert len((await store.report("t", scope="s")).claimable_group_ids) == 8


async def test_the_search_for_claimable_groups_is_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held claims are passed over up to a bound, so that a report stays cheap."""
    monkeypatch.setattr(limits, "CLAIMABLE_SCANNED", 2)
    for name in ("a", "b", "c"):
        await complete(store, name, "s")
    await store.claim("a", "me")
    await store.claim("b", "me")
    assert (await store.report("t", scope="s")).claimable_group_ids == []


async def test_a_group_that_goes_is_not_claimable(store: Store) -> None:
    """Deleted or expired, a group is offered to nobody."""
    await complete(store, "deleted", "s")
    await store.create("expired", seal=True, scope="s", ttl_ms=1_000)
    await store.delete_group("deleted")
    store.clock.advance(1_000)
    assert (await store.report("t", scope="s")).claimable_group_ids == []
    await store.sweep()
    assert (await store.report("t", scope="s")).claimable_group_ids == []


async def test_a_claim_takes_room_and_is_never_refused(store: Store) -> None:
    """It is counted; where a quota is exceeded its holder is not named, and nobody is refused."""
    await complete(store)
    held = usage_of(store.engine)
    engine: Any = store.engine
    engine.allowance = Allowance(bytes_max=held[1])
    assert await store.claim("g", "me") == "GRANTED"
    assert (await store.group("g")).claim.holder == ""
    one = usage_of(store.engine)
    engine.allowance = Allowance()
    assert await store.claim("g", "me") == "GRANTED"
    assert (await store.group("g")).claim.holder == "holder of me"
    assert held < one < usage_of(store.engine)
    await store.claim("g", "me", "RELEASE")
    await store.delete_group("g")
    store.clock.advance(HOUR_MS)
    await store.sweep()
    assert usage_of(store.engine) == (0, 0)
