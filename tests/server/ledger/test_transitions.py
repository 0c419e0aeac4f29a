"""The transition table against the sentences it was made from, exhaustively."""

from __future__ import annotations

import itertools

import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2, task_pb2
from resultd_server.ledger.transitions import RANK, TERMINAL, Standing, content_digest, decide
from tests.support.stores import Store, disposition

RANKS = {
    "PENDING": 0,
    "RECEIVED": 1,
    "REJECTED": 1,
    "STARTED": 2,
    "CUSTOM": 3,
    "PROGRESS": 3,
    "RETRY": 4,
    "SUCCESS": 5,
    "FAILURE": 5,
    "REVOKED": 5,
    "IGNORED": 5,
}
ATTEMPTS = (0, 1, 2, 3)


def expected(stored: str, stored_attempt: int, said: str, attempt: int, same: bool) -> str:
    """The table of the design, read aloud. A report is (state, attempt), 0: not numbered."""
    stored_ended, ended = RANKS[stored] == 5, RANKS[said] == 5
    both_numbered = stored_attempt > 0 and attempt > 0
    # A report without a number repeats whatever attempt the record stands at.
    repeats = stored == said and same and attempt in (stored_attempt, 0)
    if stored_ended:
        if repeats:
            return "DUPLICATE"
        if stored == "SUCCESS" or not ended:
            return "SUPERSEDED"
        if not both_numbered or said == "SUCCESS" or attempt > stored_attempt:
            return "APPLIED"
        return "SUPERSEDED"
    if not both_numbered or said == "SUCCESS":
        return "APPLIED"
    if attempt != stored_attempt:
        return "APPLIED" if attempt > stored_attempt else "SUPERSEDED"
    return "APPLIED" if RANKS[said] >= RANKS[stored] else "SUPERSEDED"


def standing(state: str, attempt: int, content: bytes) -> Standing:
    """As much as the rule looks at."""
    return Standing(state_pb2.State.Value(f"STATE_{state}"), attempt, lambda: content)


@pytest.mark.parametrize("same", [True, False], ids=["same", "other"])
@pytest.mark.parametrize("stored", RANKS)
def test_the_table_says_what_the_design_says(stored: str, same: bool) -> None:
    """Every pair of states and attempts, with the same content and another, has its disposition."""
    for said, before, attempt in itertools.product(RANKS, ATTEMPTS, ATTEMPTS):
        found = decide(
            standing(stored, before, b"x"), standing(said, attempt, b"x" if same else b"y")
        )
        name = pb.Disposition.Name(found).removeprefix("DISPOSITION_")
        assert name == expected(stored, before, said, attempt, same), (said, before, attempt)


def test_every_state_has_a_rank() -> None:
    """Every state of the protocol but the unspecified one has a rank, and four are terminal."""
    ranks = {state_pb2.State.Name(state).removeprefix("STATE_"): RANK[state] for state in RANK}  # type: ignore[arg-type]  # the enum's numbers
    assert ranks == RANKS
    assert set(RANK) == {value.number for value in state_pb2.State.DESCRIPTOR.values} - {0}
    assert len(TERMINAL) == 4


def test_the_digest_tells_contents_apart() -> None:
    """State, value and failure make the digest; who said it and when does not."""
    meta = task_pb2.TaskMeta(task_id="t", state=state_pb2.STATE_SUCCESS)
    meta.value.data = b"1"
    digest = content_digest(meta)
    meta.worker, meta.attempt, meta.version = "w", 3, 7
    meta.done_time.seconds = 5
    assert content_digest(meta) == digest
    others = []
    for change in ("value.data", "value.content_type", "failure.message"):
        other = task_pb2.TaskMeta.FromString(meta.SerializeToString())
        part, field = change.split(".")
        there = getattr(other, part)
        setattr(there, field, b"2" if field == "data" else "2")
        others.append(content_digest(other))
    assert len({digest, *others}) == 4


async def test_a_later_attempt_follows_a_failure_only_to_an_end(store: Store) -> None:
    """FAILURE then STARTED of a later attempt is superseded; its SUCCESS is applied."""
    await store.report("t", "FAILURE", attempt=1)
    assert disposition(await store.report("t", "STARTED", attempt=2)) == "SUPERSEDED"
    assert await store.state("t") == "FAILURE"
    answer = await store.report("t", "SUCCESS", attempt=2)
    assert (disposition(answer), answer.version) == ("APPLIED", 2)
    assert (await store.meta("t")).attempt == 2
    assert disposition(await store.report("t", "FAILURE", attempt=9)) == "SUPERSEDED"


async def test_a_retry_is_followed_by_the_next_attempt(store: Store) -> None:
    """RETRY, then STARTED of the next attempt; what the last attempt says late is superseded."""
    await store.report("t", "RETRY", attempt=1)
    assert disposition(await store.report("t", "STARTED", attempt=2)) == "APPLIED"
    assert disposition(await store.report("t", "RETRY", attempt=1)) == "SUPERSEDED"
    assert disposition(await store.report("t", "RECEIVED", attempt=2)) == "SUPERSEDED"
    assert disposition(await store.report("t", "FAILURE", attempt=1)) == "SUPERSEDED"
    assert disposition(await store.report("t", "SUCCESS", attempt=1)) == "APPLIED"
    assert (await store.meta("t")).attempt == 2


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED", "IGNORED"])
@pytest.mark.parametrize("before", [0, 2])
async def test_an_unnumbered_terminal_report_repeated(
    store: Store, state: str, before: int
) -> None:
    """A terminal report without a number is a duplicate when repeated, whatever was before it."""
    await store.report("t", "STARTED", attempt=before)
    first = await store.report("t", state)
    assert disposition(first) == "APPLIED"
    for _ in range(2):
        again = await store.report("t", state)
        assert (disposition(again), again.version) == ("DUPLICATE", first.version)
