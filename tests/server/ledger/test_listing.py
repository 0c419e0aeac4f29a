"""Pages of records and groups, filtered, in bounded steps."""

from __future__ import annotations

from typing import Any

import pytest

from resultd.v1 import group_pb2, group_service_pb2, state_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server import limits
from resultd_server.errors import FieldInvalid
from resultd_server.ledger import listing, records
from resultd_server.ledger.groups import Declaration
from resultd_server.ledger.times import set_ms
from tests.support.stores import HOUR_MS, Store, group, ids, make_report, task


async def results(store: Store, **wanted: Any) -> list[str]:
    """Every task id that a filter finds, page by page."""
    found, token = [], ""
    while True:
        request = pb.ListResultsRequest(page_token=token, **{"page_size": 3, **wanted})
        page = await store.engine.scan("default", request)
        found += ids(page.rows)
        token = page.next_token
        if not token:
            return found


async def groups(store: Store, **wanted: Any) -> list[str]:
    """Every group id that a filter finds, page by page."""
    found, token = [], ""
    while True:
        request = group_service_pb2.ListGroupsRequest(page_token=token, page_size=2, **wanted)
        page = await store.engine.group_list("default", request)
        found += [group_pb2.GroupMeta.FromString(row).group_id for row in page.rows]
        token = page.next_token
        if not token:
            return found


async def test_results_are_filtered(store: Store) -> None:
    """Records are found by state, name, group and time of the last report."""
    await store.report("a", name="add")
    await store.report("b", "FAILURE", name="add", group="g")
    store.clock.advance(HOUR_MS)
    since = pb.ListResultsRequest().since
    set_ms(since, store.clock.now_ms)
    await store.report("c", "STARTED", group="g", index=7)
    await store.report("d", ttl_ms=1)
    await store.create("g", group("h"))
    store.clock.advance(1)
    success, failure = state_pb2.STATE_SUCCESS, state_pb2.STATE_FAILURE
    assert await results(store) == ["a", "b", "c"]
    assert await results(store, states=[success, failure]) == ["a", "b"]
    assert await results(store, name="add") == ["a", "b"]
    assert await results(store, since=since) == ["c"]
    assert await results(store, group_id="g") == ["b", "c"]
    assert await results(store, group_id="g", name="add", since=since) == []
    assert await results(store, group_id="nobody") == []


async def test_pages_are_bounded_in_bytes(store: Store) -> None:
    """A page ends before a record that would take it over the limit; every record comes once."""
    names = [f"t{number}" for number in range(6)]
    await store.put([make_report(name, value=bytes(800_000), group="g") for name in names])
    for wanted in ({}, {"group_id": "g"}):
        assert await results(store, page_size=100, **wanted) == names


async def test_steps_are_bounded_in_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may be empty and have a next one: a step looks at so many rows."""
    monkeypatch.setattr(limits, "READ_ROWS_MAX", 4)
    names = [f"t{number:02}" for number in range(12)]
    await store.put([make_report(name, "STARTED", group="g") for name in names])
    await store.report("t10")
    only = {"states": [state_pb2.STATE_SUCCESS]}
    for wanted in (only, {**only, "group_id": "g"}):
        request = pb.ListResultsRequest(page_size=10, **wanted)
        page = await store.engine.scan("default", request)
        assert (page.rows, bool(page.next_token)) == ([], True)
        assert await results(store, **wanted) == ["t10"]
    for number in range(6):
        await store.create(f"g{number}", scope="s" if number == 5 else "")
    assert await groups(store, claim_scope="s") == ["g5"]


async def test_steps_are_bounded_in_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of what is read and not wanted; a record of a page is read once."""
    monkeypatch.setattr(limits, "READ_BYTES_MAX", 10_000)
    names = [f"t{number:02}" for number in range(12)]
    await store.put([make_report(name, value=bytes(4_000), group="g") for name in names])
    await store.report("t13", "FAILURE")
    read: list[int] = []
    whole = records.read_row

    def counted(*row: Any) -> Any:
        read.append(len(row[-1]))
        return whole(*row)

    monkeypatch.setattr(records, "read_row", counted)
    anywhere: dict[str, Any] = {}
    for wanted in (anywhere, {"group_id": "g"}):
        failed = {**wanted, "states": [state_pb2.STATE_FAILURE]}
        page = await store.engine.scan("default", pb.ListResultsRequest(page_size=10, **failed))
        assert (page.rows, bool(page.next_token)) == ([], True)
        assert 10_000 < sum(read) < 15_000
        read.clear()
        assert await results(store, page_size=10, **failed) == ["t13"] * (not wanted)
        assert len(read) == len(names) + (not wanted)
        assert await results(store, page_size=10, **wanted) == names + ["t13"] * (not wanted)
        read.clear()
    said = group_pb2.GroupMeta(labels={"name": "x" * 3_000})
    for number in range(10):
        declared = Declaration(f"g{number}", [], said, 0, seal=True, new_epoch=False)
        await store.engine.group_create("default", declared)
    request = group_service_pb2.ListGroupsRequest(page_size=10, incomplete=True)
    page = await store.engine.group_list("default", request)
    assert bool(page.next_token)
    assert await groups(store, incomplete=True) == ["g"]
    assert len(await groups(store)) == 11


async def test_groups_are_filtered(store: Store) -> None:
    """Groups are found by being incomplete, claimable, unchanged, and by their scope."""
    await store.create("complete", seal=True, scope="s")
    await store.create("held", seal=True)
    await store.claim("held", "me", lease_ms=HOUR_MS // 2)
    await store.create("open", scope="s")
    await store.create("expired", ttl_ms=1)
    before = group_service_pb2.ListGroupsRequest().unchanged_since
    set_ms(before, store.clock.now_ms)
    store.clock.advance(1)
    await store.create("short", task("a"), seal=True)
    assert await groups(store) == ["complete", "held", "open", "short"]
    assert await groups(store, incomplete=True) == ["open", "short"]
    assert await groups(store, claimable=True) == ["complete"]
    assert await groups(store, unchanged_since=before) == ["complete", "held", "open"]
    assert await groups(store, claim_scope="s") == ["complete", "open"]
    store.clock.advance(HOUR_MS)
    assert await groups(store, claimable=True) == ["complete", "held"]


async def test_what_a_scope_may_claim_is_found_among_any_number_of_groups(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claimable groups of a scope come by age, in one step however many others there are."""
    for number in range(12):
        await store.create(f"g{number:02}", seal=number % 2 == 0, scope="other")
    await store.create("z", seal=True, scope="s")
    await store.create("held", seal=True, scope="s")
    await store.claim("held", "me", lease_ms=HOUR_MS)
    await store.create("open", scope="s")
    await store.create("a", seal=True, scope="s")
    monkeypatch.setattr(limits, "READ_ROWS_MAX", 4)
    request = group_service_pb2.ListGroupsRequest(page_size=10, claimable=True, claim_scope="s")
    page = await store.engine.group_list("default", request)
    found = [group_pb2.GroupMeta.FromString(row).group_id for row in page.rows]
    assert (found, page.next_token) == (["z", "a"], "")
    assert await groups(store, claimable=True, claim_scope="s", incomplete=True) == []
    monkeypatch.setattr(limits, "READ_ROWS_MAX", 1)
    assert await groups(store, claimable=True, claim_scope="s") == ["z", "a"]


async def claimable(store: Store, token: str = "", **said: Any) -> tuple[list[str], str]:
    """A page of two: its groups, and where the next one begins."""
    request = group_service_pb2.ListGroupsRequest(
        page_size=2, claimable=True, claim_scope="s", page_token=token, **said
    )
    page = await store.engine.group_list(store.namespace, request)
    return [group_pb2.GroupMeta.FromString(row).group_id for row in page.rows], page.next_token


async def test_a_page_of_claimable_groups_tells_nothing_of_other_tenants(store: Store) -> None:
    """Where the next one begins is said in the same bytes, whatever others have made between."""
    other = Store(store.engine, store.clock, "other")
    tokens = []
    for tenant, between in ((store, 0), (Store(store.engine, store.clock, "third"), 5)):
        for name in "abc":
            await tenant.create(name, seal=True, scope="s")
            for number in range(between):
                await other.create(f"{name}{number}", seal=True, scope="s")
        found, token = await claimable(tenant)
        assert (found, await claimable(tenant, token)) == (["a", "b"], (["c"], ""))
        tokens.append(token)
    assert tokens[0] == tokens[1]


async def test_a_page_goes_on_though_its_first_group_was_taken(store: Store) -> None:
    """Acted on meanwhile: what follows it. Gone, or run again: from the start, nothing skipped."""
    for name in "abcde":
        await store.create(name, seal=True, scope="s")
    _, token = await claimable(store)
    await store.claim("c", "me", lease_ms=HOUR_MS)
    assert await claimable(store, token) == (["d", "e"], "")
    await store.create("c", seal=True, scope="s", new_epoch=True)
    assert (await claimable(store, token))[0] == ["a", "b"]
    await store.engine.group_delete("default", "c")
    assert (await claimable(store, token))[0] == ["a", "b"]


@pytest.mark.parametrize("cursor", [b"x", bytes(8), bytes(8) + b"\xff", bytes(8) + b"x" * 256])
async def test_a_token_that_names_no_claimable_group_is_refused(
    store: Store, cursor: bytes
) -> None:
    """As other tokens are that are not ours."""
    with pytest.raises(FieldInvalid, match="pass the next_page_token"):
        await claimable(store, listing.encode_token(cursor))


async def test_pages_of_groups_are_bounded_in_bytes(store: Store) -> None:
    """A page of groups stays under the limit however much their labels carry."""
    for number in range(5):
        said = group_pb2.GroupMeta(labels={"a": "x" * 1_000_000})
        await store.engine.group_create(
            "default", Declaration(f"g{number}", [], said, HOUR_MS, False, False)
        )
    request = group_service_pb2.ListGroupsRequest(page_size=1000)
    page = await store.engine.group_list("default", request)
    assert sum(map(len, page.rows)) < limits.RESPONSE_BYTES_MAX
    assert await groups(store) == [f"g{number}" for number in range(5)]


async def test_members_say_what_they_count_as(store: Store) -> None:
    """A member's row has its index, id, kind, place in the log and the state it counts as."""
    await store.create("g", task("a"), group("h"))
    await store.report("a", "FAILURE")
    members = await store.members("g")
    assert [(each.index, each.id, each.kind, each.position, each.state) for each in members] == [
        (0, "a", 1, 1, state_pb2.STATE_FAILURE),
        (1, "h", 2, 0, state_pb2.STATE_UNSPECIFIED),
    ]
