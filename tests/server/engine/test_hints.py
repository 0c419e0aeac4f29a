"""Hints: who waits for what, and that nothing waited for is ever missed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resultd_server.engine.hints import Hub, Subscription
from resultd_server.ledger.unit import GROUP, TASK


@pytest.fixture
def hub() -> Hub:
    """A hub nobody uses yet."""
    return Hub()


@pytest.fixture
def waiter(hub: Hub) -> Iterator[Subscription]:
    """Somebody who waits for task "a"."""
    subscription = hub.subscribe("n")
    subscription.add(TASK, ["a"])
    yield subscription
    subscription.close()


def test_a_hint_reaches_whoever_waits_for_its_key(hub: Hub, waiter: Subscription) -> None:
    """A change is taken by those who wait for it: same namespace, same kind, same id."""
    strangers = [("m", TASK, "a"), ("n", GROUP, "a"), ("n", TASK, "b")]
    hub.publish(strangers)
    assert waiter.take() == []
    hub.publish([("n", TASK, "a")])
    hub.publish([("n", TASK, "a")])
    assert waiter.take() == [(TASK, "a")]
    assert waiter.take() == []


@pytest.mark.parametrize("number", [2, 3])
def test_a_hint_reaches_everybody(hub: Hub, waiter: Subscription, number: int) -> None:
    """All who wait for a key are hinted; who left is not, and the others stay."""
    others = [hub.subscribe("n") for _ in range(number - 1)]
    for other in others:
        other.add(TASK, ["a"])
        other.add(TASK, ["a"])
    hub.publish([("n", TASK, "a")])
    assert [each.take() for each in (waiter, *others)] == [[(TASK, "a")]] * number
    others[0].discard(TASK, ["a", "nobody"])
    hub.publish([("n", TASK, "a")])
    assert others[0].take() == []
    assert waiter.take() == [(TASK, "a")]
    for other in others:
        other.close()
    assert hub.counts() == (1, 1)


def test_what_is_discarded_is_not_taken(waiter: Subscription) -> None:
    """A key given up is not taken, even if its hint had come."""
    waiter.notice((TASK, "a"))
    waiter.discard(TASK, ["a"])
    waiter.discard(GROUP, ["a"])
    assert waiter.take() == []


def test_a_loss_covers_everything(hub: Hub, waiter: Subscription) -> None:
    """After a loss every key waited for is to be read again, once."""
    waiter.add(GROUP, ["g"])
    waiter.notice((TASK, "a"))
    hub.lose()
    assert waiter.take() == [(TASK, "a"), (GROUP, "g")]
    assert waiter.take() == []


def test_closing_frees_everything(hub: Hub) -> None:
    """After closing nothing is kept of a subscription."""
    for _ in range(2):
        subscription = hub.subscribe("n")
        subscription.add(TASK, map(str, range(100)))
        assert hub.counts() == (1, 100)
        subscription.close()
        assert hub.counts() == (0, 0)
        assert hub._waiting == {}


async def test_a_wait_ends_with_a_hint(hub: Hub, waiter: Subscription) -> None:
    """Who sleeps is woken by a hint, by a loss, and by a plain wake."""
    for wake in (lambda: hub.publish([("n", TASK, "a")]), hub.lose, waiter.wake):
        asyncio.get_running_loop().call_soon(wake)
        assert await waiter.wait(30)
        waiter.take()


async def test_a_wait_does_not_sleep_over_what_has_come(hub: Hub, waiter: Subscription) -> None:
    """A hint or a loss that came before the wait ends it at once."""
    hub.publish([("n", TASK, "a")])
    assert await waiter.wait(30)
    waiter.take()
    hub.lose()
    assert await waiter.wait(30)


async def test_a_wait_ends_by_itself(waiter: Subscription) -> None:
    """Without a hint a wait is over after its time; a past time is no time."""
    assert not await waiter.wait(0)
    assert not await waiter.wait(-5)


IDS = st.sampled_from("abc")
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "discard", "publish", "close"]), st.integers(0, 2), IDS)
)


@given(STEPS)
def test_the_hub_knows_exactly_who_waits(steps: list[tuple[str, int, str]]) -> None:
    """Whatever comes and goes, a hint reaches those who wait for it then, and no others."""
    hub = Hub()
    waiters = [hub.subscribe("n") for _ in range(3)]
    expected: list[set[str]] = [set(), set(), set()]
    for step, who, id_ in steps:
        if step == "add":
            waiters[who].add(TASK, [id_])
            expected[who].add(id_)
        elif step == "discard":
            waiters[who].discard(TASK, [id_])
            expected[who].discard(id_)
        elif step == "close":
            waiters[who].close()
            waiters[who], expected[who] = hub.subscribe("n"), set()
        hub.publish([("n", TASK, id_)])
        for waiter, ids in zip(waiters, expected, strict=True):
            assert waiter.take() == ([(TASK, id_)] if id_ in ids else [])
    assert hub.counts() == (3, len(set().union(*expected)))


def test_a_hint_carries_when_its_change_was_committed() -> None:
    """The first one's moment is kept until whoever times wakes sets it back."""
    hub = Hub()
    subscription = hub.subscribe("n")
    subscription.add(TASK, ["a", "b"])
    for at_s, id_ in ((5.0, "a"), (6.0, "b")):
        hub.announce([("n", TASK, id_)], at_s)
    assert subscription.committed_s == 5.0
    subscription.committed_s = 0.0
    hub.announce([("n", TASK, "a")], 7.0)
    assert subscription.committed_s == 7.0
    hub.lose()
    assert hub.lost == 1


def test_waiters_are_counted_by_key() -> None:
    """Those of a commit's keys, in its namespace and of its kinds: nobody else."""
    hub = Hub()
    for ids in (["a"], ["a", "b"], ["c"]):
        hub.subscribe("n").add(TASK, ids)
    hub.subscribe("other").add(TASK, ["a"])
    assert hub.waiting([]) == 0
    assert hub.waiting([("n", TASK, "a")]) == 2
    assert hub.waiting([("n", TASK, "a"), ("n", TASK, "b"), ("n", GROUP, "c")]) == 3


def test_what_is_closed_waits_for_nothing_more(hub: Hub) -> None:
    """Keys added after the end are in nobody's way, and stay nowhere."""
    subscription = hub.subscribe("n")
    subscription.add(TASK, ["a"])
    subscription.close()
    subscription.add(TASK, ["a", "b"])
    assert subscription.noted == {}
    assert hub.counts() == (0, 0)
    assert hub.waiting([("n", TASK, "a"), ("n", TASK, "b")]) == 0
