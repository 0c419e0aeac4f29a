"""The claim on a group, asked for by a report: what a call of its own would be answered."""

from __future__ import annotations

from typing import Any

import pytest

from resultd.v1 import group_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server import limits
from resultd_server.errors import RecordCorrupt
from tests.support.stores import (
    Store,
    asking,
    claim_outcome,
    group,
    make_report,
    membership,
    task,
)


def outcome(answer: pb.StoreResultResponse) -> str:
    """What came of the report's claim."""
    return claim_outcome(answer.claim)


async def test_the_last_report_takes_the_claim(store: Store) -> None:
    """Those before it are told nothing; the group comes whole, for the first to claim it."""
    await store.create("g", task("a"), task("b"), seal=True, continuation=b"body", scope="s")
    before = await store.report("a", group="g", index=0, claim="me")
    assert not before.HasField("claim")
    last = await store.report("b", group="g", index=1, claim="you", scope="s")
    assert (outcome(last), last.claim.first) == ("GRANTED", True)
    assert last.claim.group == await store.group("g")
    assert last.claim.group.continuation.data == b"body"
    assert last.claim.group.claim.holder == "holder of you"
    assert last.complete_group_ids == ["g"]
    assert not last.claimable_group_ids
    assert await store.claim("g", "you", "DONE") == "GRANTED"


async def test_it_is_what_a_call_of_its_own_would_have_been_answered(store: Store) -> None:
    """In every state of a claim, message for message."""
    for name in ("by report", "by call"):
        await store.create(name, task(f"of {name}"), seal=True, continuation=b"body")
        await store.report(f"of {name}", group=name)

    async def both(token: str) -> str:
        (said,) = await store.put([make_report("of by report", group="by report", claim=token)])
        assert isinstance(said, pb.StoreResultResponse)
        answer = await store.engine.group_claim(store.namespace, asking("by call", token))
        for each in (answer, said.claim):
            each.group.group_id = ""
        assert said.claim == answer
        return claim_outcome(answer)

    assert await both("me") == "GRANTED"
    assert await both("you") == "HELD"
    assert await both("me") == "GRANTED"
    store.clock.advance(30_000)
    assert await both("you") == "GRANTED"
    assert await both("me") == "HELD"
    for name in ("by report", "by call"):
        assert await store.claim(name, "you", "RELEASE") == "GRANTED"
    assert await both("me") == "GRANTED"
    for name in ("by report", "by call"):
        assert await store.claim(name, "me", "DONE") == "GRANTED"
    assert await both("me") == "DONE"
    assert await both("you") == "DONE"


async def test_a_repeat_has_the_claim_it_took(store: Store) -> None:
    """Whose answer was lost asks again under its token; another report finds it held."""
    await store.create("g", task("a"), seal=True)
    for _ in range(2):
        answer = await store.report("a", group="g", index=0, claim="me")
        assert (outcome(answer), answer.claim.first) == ("GRANTED", True)
    other = await store.report("a", group="g", index=0, claim="you")
    assert outcome(other) == "HELD"
    assert not other.claim.first
    assert other.claim.group.claim.state == group_pb2.CLAIM_STATE_HELD


async def test_only_members_claim(store: Store) -> None:
    """A stranger to the sealed group is told of its membership, and takes nothing."""
    await store.create("g", task("a"), seal=True)
    await store.report("a")
    for index, said in ((None, "SEALED"), (0, "INDEX_TAKEN")):
        stranger = await store.report("x", group="g", index=index, claim="me")
        assert (membership(stranger), outcome(stranger)) == (said, "UNSPECIFIED")
    assert await store.claim("g", "you") == "GRANTED"


async def test_only_the_group_it_names_is_claimed(store: Store) -> None:
    """Others that are complete with it are named, for calls of their own."""
    await store.create("other", task("a"), seal=True)
    await store.create("inner", task("a"), seal=True)
    await store.create("outer", group("inner"), seal=True)
    answer = await store.report("a", group="inner", claim="me")
    assert (outcome(answer), answer.claim.group.group_id) == ("GRANTED", "inner")
    assert set(answer.complete_group_ids) == {"other", "inner"}
    assert await store.claim("other", "you") == "GRANTED"
    assert await store.claim("outer", "you") == "GRANTED"


@pytest.mark.parametrize("singly", [False, True])
async def test_the_claims_of_a_batch_are_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch, singly: bool
) -> None:
    """Those that would not fit its answer are not taken, so that nothing is made for nobody.

    Nor where each report is stored by itself, for one of them meets a damaged record.
    """
    if singly:
        write = store.engine._write  # type: ignore[attr-defined]  # of every engine there is

        async def damaged(*operation: Any, **said: Any) -> Any:
            if said.get("reports", 0) > 1:
                raise RecordCorrupt("A record does not match its checksum: restore a backup.")
            return await write(*operation, **said)

        monkeypatch.setattr(store.engine, "_write", damaged)
    await store.create("g", task("a"), seal=True, continuation=b"x" * (2 * limits.MIB))
    reports = [make_report("a", group="g", claim="me")] * 100
    answers = await store.engine.put(store.namespace, reports)
    assert sum(len(each) for each in answers if isinstance(each, bytes)) < 5 * limits.MIB
    said = [pb.StoreResultResponse.FromString(each) for each in answers if isinstance(each, bytes)]
    assert [outcome(each) for each in said] == ["GRANTED"] * 2 + ["UNSPECIFIED"] * 98
    assert all(each.complete_group_ids == ["g"] for each in said)


async def test_reports_of_a_batch_claim_each_for_itself(store: Store) -> None:
    """The first that finds the group complete has it; those after it in the batch do not."""
    await store.create("g", task("a"), task("b"), seal=True)
    reports = [("a", "1"), ("b", "2"), ("a", "3")]
    said = await store.put([make_report(id_, group="g", claim=token) for id_, token in reports])
    found = [outcome(each) for each in said if isinstance(each, pb.StoreResultResponse)]
    assert found == ["UNSPECIFIED", "GRANTED", "HELD"]
