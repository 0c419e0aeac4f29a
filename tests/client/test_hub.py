"""The hub: a state machine, driven by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from resultd import errors
from resultd._hub import IDS_MAX, Fate, Hub
from resultd.errors import ResultdError
from resultd.v1 import result_service_pb2, state_pb2, stream_pb2, task_pb2


class Someone:
    """A waiter that keeps what it is told."""

    def __init__(self, transitions: bool = False) -> None:
        self.transitions = transitions
        self.told: list[str] = []

    def deliver(self, metas: list[task_pb2.TaskMeta]) -> None:
        """Keep ids."""
        self.told += [meta.task_id for meta in metas]

    def fail(self, error: ResultdError) -> None:
        """Never called: the hub tells of records."""
        raise error


def frame(*ids: str, terminal: bool = True) -> result_service_pb2.WatchResponse:
    """A frame with records of these ids."""
    state = state_pb2.STATE_SUCCESS if terminal else state_pb2.STATE_STARTED
    response = result_service_pb2.WatchResponse()
    for task_id in ids:
        response.events.add().task.MergeFrom(
            task_pb2.TaskMeta(task_id=task_id, state=state, terminal=terminal)
        )
    return response


def control(kind: int, **fields: object) -> result_service_pb2.WatchResponse:
    """A frame that says something else."""
    made = stream_pb2.Control(kind=kind, **fields)  # type: ignore[arg-type]  # as named
    return result_service_pb2.WatchResponse(control=made)


def give(hub: Hub, response: result_service_pb2.WatchResponse) -> None:
    """Carry a frame's deliveries to whom they are for."""
    for waiter, metas in hub.received(response, 0.0).deliveries:
        waiter.deliver(metas)


def sent(hub: Hub) -> list[result_service_pb2.WatchRequest]:
    """Send what there is to send."""
    return list(hub.take_requests())


def test_nothing_is_sent_while_no_stream_is_open() -> None:
    """What was added before is sent when it opens, with the first message's fields."""
    hub, one = Hub(heartbeat=7), Someone()
    hub.add(one, ["a", "b", "a"])
    assert sent(hub) == []
    hub.opened(0.0)
    (request,) = sent(hub)
    assert list(request.add_task_ids) == ["a", "b"]
    assert request.on_gone == result_service_pb2.ON_GONE_WAIT
    assert request.heartbeat.seconds == 7
    assert request.sequence == 1
    assert not request.transitions
    assert sent(hub) == []


def test_an_id_is_asked_for_once_however_many_wait() -> None:
    """And taken back when the last one leaves."""
    hub, one, two = Hub(), Someone(), Someone()
    hub.opened(0.0)
    hub.add(one, ["a"])
    assert list(sent(hub)[0].add_task_ids) == ["a"]
    hub.add(two, ["a"])
    assert sent(hub) == []
    hub.discard(one)
    assert sent(hub) == []
    hub.discard(two)
    assert list(sent(hub)[0].remove_task_ids) == ["a"]
    hub.discard(two)
    assert not hub.wanted


def test_an_id_that_was_never_sent_is_not_taken_back() -> None:
    """Added and removed between two messages, it is not mentioned."""
    hub, one = Hub(), Someone()
    hub.opened(0.0)
    hub.add(one, ["a"])
    hub.discard(one)
    assert sent(hub) == []


def test_an_id_removed_and_added_again_is_asked_for_again() -> None:
    """In two messages, in this order: its event may be on its way already."""
    hub, one = Hub(), Someone()
    hub.opened(0.0)
    hub.add(one, ["a"])
    sent(hub)
    hub.discard(one)
    hub.add(one, ["a"])
    first, second = sent(hub)
    assert (list(first.remove_task_ids), list(first.add_task_ids)) == (["a"], [])
    assert (list(second.remove_task_ids), list(second.add_task_ids)) == ([], ["a"])


def test_ids_are_sent_in_messages_of_ten_thousand() -> None:
    """25,000 ids are three messages, numbered."""
    hub = Hub()
    hub.add(Someone(), [str(n) for n in range(25_000)])
    hub.opened(0.0)
    requests = sent(hub)
    assert [len(r.add_task_ids) for r in requests] == [10_000, 10_000, 5_000]
    assert [r.sequence for r in requests] == [1, 2, 3]


def test_more_than_one_stream_can_carry_is_refused() -> None:
    """With the remedy, and without keeping any of it."""
    hub = Hub()
    with pytest.raises(errors.InvalidArgumentError, match="use client"):
        hub.add(Someone(), map(str, range(IDS_MAX + 1)))
    assert not hub.wanted


@pytest.mark.parametrize("unfit", ["", "x" * 256, "é" * 128, "a\nb", "\x85", "\ud800", 5, b"b"])
def test_an_unfit_id_is_refused_before_it_reaches_the_stream(unfit: Any) -> None:
    """The server would end the stream over it, and with it the waits of everybody."""
    hub, one = Hub(), Someone()
    hub.add(one, ["a", "é" * 127])
    with pytest.raises(errors.InvalidArgumentError, match="a task's id"):
        hub.add(Someone(), ["b", unfit])
    assert set(hub._ids) == {one}
    hub.opened(0.0)
    (request,) = sent(hub)
    assert list(request.add_task_ids) == ["a", "é" * 127]


def test_a_terminal_event_is_told_once_to_each() -> None:
    """Then nobody waits for the id, and a repeat is told to nobody."""
    hub, one, two = Hub(), Someone(), Someone()
    hub.add(one, ["a", "b"])
    hub.add(two, ["a"])
    hub.opened(0.0)
    sent(hub)
    give(hub, frame("a"))
    give(hub, frame("a"))
    assert (one.told, two.told) == (["a"], ["a"])
    assert set(hub._ids) == {one}
    hub.discard(one)
    assert list(sent(hub)[0].remove_task_ids) == ["b"]


def test_other_states_go_to_those_who_want_them() -> None:
    """Transitions are for on_message only; the wait goes on."""
    hub, curious, calm = Hub(), Someone(transitions=True), Someone()
    hub.add(curious, ["a"])
    hub.add(calm, ["a"])
    hub.opened(0.0)
    assert sent(hub)[0].transitions
    give(hub, frame("a", terminal=False))
    give(hub, frame("x", terminal=False))
    assert (curious.told, calm.told) == (["a"], [])
    assert curious in hub._ids


def test_a_stream_without_transitions_has_to_be_opened_again_for_them() -> None:
    """Whether states are sent is said in the first message only."""
    hub = Hub()
    hub.add(Someone(), ["a"])
    hub.opened(0.0)
    before = hub.needs_transitions
    hub.add(Someone(transitions=True), ["b"])
    between = hub.needs_transitions
    hub.opened(0.0)
    assert (before, between, hub.needs_transitions) == (False, True, False)


def test_after_a_break_everything_still_waited_for_is_asked_again() -> None:
    """And nothing that was answered."""
    hub, one = Hub(), Someone()
    hub.add(one, ["a", "b"])
    hub.opened(0.0)
    sent(hub)
    give(hub, frame("a"))
    assert hub.broken(errors.make("INTERNAL", "proxy")) is not None
    hub.opened(0.0)
    (request,) = sent(hub)
    assert list(request.add_task_ids) == ["b"]
    assert request.sequence == 1


@pytest.mark.parametrize("code", sorted(errors.FINAL_CODES))
def test_after_a_hard_error_nobody_tries_again(code: str) -> None:
    """Whoever drives the hub tells them, when it has given back its lock."""
    hub, one = Hub(), Someone()
    hub.add(one, ["a"])
    hub.opened(0.0)
    assert hub.broken(errors.make(code, "no")) is None
    assert hub.clear() == [one]
    assert not hub.wanted


def test_breaks_in_a_row_wait_longer_until_a_stream_has_done_its_work() -> None:
    """Up to the cap; SYNCED ends the row."""
    hub = Hub()
    hub.add(Someone(), ["a"])
    gone = errors.make("UNAVAILABLE", "gone")
    worst = 0.0
    for _ in range(30):
        hub.opened(0.0)
        pause = hub.broken(gone)
        assert pause is not None
        worst = max(worst, pause)
    assert 0.5 < worst <= 5.0
    hub.opened(0.0)
    sent(hub)
    before = hub.synced
    hub.received(control(stream_pb2.CONTROL_KIND_SYNCED, sequence=1), 0.0)
    assert (before, hub.synced) == (False, True)
    pause = hub.broken(gone)
    assert pause is not None
    assert pause <= 0.05


def test_silence_is_measured_from_the_last_frame() -> None:
    """2.5 heartbeats after it the stream is dead."""
    hub = Hub(heartbeat=2)
    hub.opened(10.0)
    assert hub.silence_left(11.0) == 4.0
    hub.received(control(stream_pb2.CONTROL_KIND_HEARTBEAT), 12.0)
    assert hub.silence_left(12.0) == 5.0
    assert hub.silence_left(99.0) == 0.0


def test_an_end_in_order_is_resumed_when_the_server_says() -> None:
    """At once after MAX_AGE, after the delay when it drains; a group's end is not the stream's."""
    hub = Hub()
    hub.add(Someone(), ["a"])
    hub.opened(0.0)
    end = stream_pb2.CONTROL_KIND_END
    outcome = hub.received(control(end, end_reason=stream_pb2.END_REASON_MAX_AGE), 0.0)
    assert (outcome.fate, outcome.delay) == (Fate.RESUME, 0.0)
    hub.opened(0.0)
    draining = control(end, end_reason=stream_pb2.END_REASON_DRAINING)
    draining.control.retry_delay.seconds = 2
    outcome = hub.received(draining, 0.0)
    assert outcome.fate is Fate.RESUME
    assert 2.0 <= outcome.delay <= 3.0
    hub.opened(0.0)
    assert hub.received(control(end, group_id="g"), 0.0).fate is Fate.GOES_ON


class HubAgainstAServer(RuleBasedStateMachine):
    """A hub and a model of the server, with breaks, re-adds and events in any order."""

    waiters = Bundle("waiters")

    def __init__(self) -> None:
        super().__init__()
        self.hub = Hub()
        self.server: set[str] | None = None
        self.terminal: set[str] = set()
        self.expected: dict[Someone, set[str]] = {}

    @rule(target=waiters, ids=st.sets(st.sampled_from("abcdef"), min_size=1))
    def begin(self, ids: set[str]) -> Someone:
        """Somebody waits."""
        waiter = Someone()
        self.expected[waiter] = set(ids)
        self.hub.add(waiter, sorted(ids))
        self.carry()
        return waiter

    @rule(waiter=waiters)
    def leave(self, waiter: Someone) -> None:
        """Somebody waits no longer."""
        self.hub.discard(waiter)
        self.expected[waiter] &= set(waiter.told)
        self.carry()

    @rule(task_id=st.sampled_from("abcdef"))
    def finish(self, task_id: str) -> None:
        """A task becomes terminal."""
        self.terminal.add(task_id)
        self.carry()

    @rule()
    def open(self) -> None:
        """A stream is opened."""
        self.server = set()
        self.hub.opened(0.0)
        self.carry()

    @rule()
    def cut(self) -> None:
        """The stream breaks."""
        self.server = None
        self.hub.broken(errors.make("UNAVAILABLE", "cut"))

    def carry(self) -> None:
        """Be the server: take requests, send what is terminal, end those waits."""
        if self.server is None:
            return
        for request in self.hub.take_requests():
            self.server -= set(request.remove_task_ids)
            self.server |= set(request.add_task_ids)
        ready = sorted(self.server & self.terminal)
        self.server -= set(ready)
        if ready:
            give(self.hub, frame(*ready))

    @invariant()
    def everyone_is_told_of_each_once(self) -> None:
        """With an open stream nobody misses a terminal task, and nobody hears twice."""
        for waiter, ids in self.expected.items():
            assert len(waiter.told) == len(set(waiter.told))
            assert set(waiter.told) <= ids
            if self.server is not None:
                assert ids & self.terminal == set(waiter.told)


TestHubAgainstAServer = HubAgainstAServer.TestCase
