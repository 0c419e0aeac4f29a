"""The sweeper: a bounded step at a time, until told to stop."""

from __future__ import annotations

import asyncio

import pytest

from resultd_server import limits
from resultd_server.core import sweeper
from resultd_server.engine.base import Swept
from resultd_server.errors import DomainError, RecordCorrupt, StoreFailed, StoreFull
from tests.support.stores import SECOND_MS, Store, make_report


async def test_it_sweeps_in_steps_and_lets_others_have_their_turn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is due goes in bounded steps, between which the loop is free."""
    monkeypatch.setattr(limits, "SWEEP_ROWS", 5)
    await store.put([make_report(f"t{number}", ttl_ms=SECOND_MS) for number in range(23)])
    store.clock.advance(SECOND_MS)
    swept: list[Swept] = []
    turns = 0
    task = asyncio.create_task(sweeper.run(store.engine, swept.append, refused_none))
    while sum(each.expired for each in swept) < 23:
        turns += 1
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [each.steps for each in swept] == [5, 5, 5, 5, 3]
    assert turns >= 4


def refused_none(refusal: DomainError) -> None:
    """No refusal is expected."""
    raise refusal


async def test_nobody_waits_for_what_is_put_off(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an entry that led to damage the sweeper goes on; only what may pass is waited for."""
    answers: list[DomainError | Swept] = [
        RecordCorrupt("It is out of the way.", due="00"),
        Swept(3, 3, 0, more=True),
        RecordCorrupt("It is not."),
        StoreFull("full"),
        Swept(3, 3, 0),
        StoreFailed("failed"),
    ]
    slept: list[float] = []

    async def answer(_: int) -> Swept:
        said = answers.pop(0)
        if isinstance(said, Swept):
            return said
        raise said

    async def sleep(for_s: float) -> None:
        slept.append(for_s)

    monkeypatch.setattr(store.engine, "sweep", answer)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await sweeper.run(store.engine, lambda _: None, lambda _: None)
    assert slept == [0, 0, *[sweeper.EVERY_S] * 3]


async def test_it_stops_with_the_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that failed is swept no more; one that is full or damaged is tried again, and so
    is one with a row that nobody expected.
    """
    monkeypatch.setattr(sweeper, "EVERY_S", 0)
    answers = [StoreFull("full"), KeyError(7), StoreFull("full"), StoreFailed("failed")]

    async def refuse(_: int) -> Swept:
        raise answers.pop(0)

    monkeypatch.setattr(store.engine, "sweep", refuse)
    refused: list[DomainError] = []
    await sweeper.run(store.engine, lambda _: None, refused.append)
    assert [type(refusal) for refusal in refused] == [StoreFull, DomainError, StoreFull]
    assert "KeyError(7)" in refused[1].sentence
    assert answers == []
