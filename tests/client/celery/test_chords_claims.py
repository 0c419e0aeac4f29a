"""The claim that a chord's last part takes: had by its report, asked for where it is not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import states
from celery.exceptions import SoftTimeLimitExceeded

from resultd.celery._finishing import Claim
from resultd.celery._parts_ahead import ChordAhead
from resultd.errors import UnavailableError, make
from resultd.v1 import group_service_pb2
from tests.client.celery.conftest import MakeApp
from tests.support.celery_backend import published
from tests.support.celery_chord import Chord, NewId
from tests.support.results import until


class Asked:
    """The calls a backend makes, and what it reports: by method, in order."""

    def __init__(self, app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.methods: list[str] = []
        operations = app.backend.client.operations
        call = operations.call

        def noting(method: str, request: Any, **how: Any) -> Any:
            if method == "ClaimGroup":
                action = group_service_pb2.ClaimAction.Name(request.action)
                self.methods.append(action.replace("CLAIM_ACTION_", "ClaimGroup "))
            else:
                self.methods.append(method)
            return call(method, request, **how)

        monkeypatch.setattr(operations, "call", noting)


@pytest.fixture
def asked(app: Any, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the app's backend calls, beside reports."""
    return Asked(app, monkeypatch)


def without_room(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have claims taken whose answers could not say so, as of a batch with large ones."""
    send = app.backend.send

    def answered(store: Any) -> Any:
        answer = send(store)
        if answer.HasField("claim"):
            answer.ClearField("claim")
            answer.ClearField("complete_group_ids")
            answer.groups_omitted = True
        return answer

    monkeypatch.setattr(app.backend, "send", answered)


@pytest.mark.parametrize("ignored", [False, True])
def test_the_last_part_brings_claim_and_parts(
    app: Any, chord: Chord, asked: Asked, new_id: NewId, ignored: bool
) -> None:
    """Then nothing is called but that it is done; with an ignored part it is forgotten."""
    chord.size(2)
    chord.done(new_id(), 0, 0)
    asked.methods.clear()
    chord.done(new_id(), 1, 1, ignore_result=ignored)
    assert published(app) == [("body", chord.body_id, [0, 1])]
    assert asked.methods == ["ClaimGroup DONE", "ForgetResults"][: 1 + ignored]


def test_a_failed_part_brings_them_too(app: Any, chord: Chord, asked: Asked, new_id: NewId) -> None:
    """The body fails without a further question."""
    chord.size(1)
    asked.methods.clear()
    chord.failed(new_id(), KeyError("k"))
    assert "k" in str(chord.error())
    assert "ClaimGroup ACQUIRE" not in asked.methods


def test_a_server_that_does_not_know_of_it_is_asked(
    app: Any,
    chord: Chord,
    asked: Asked,
    new_id: NewId,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As before there were claims in reports: an older one reads past the field."""
    send = app.backend.send

    def to_an_older_one(store: Any) -> Any:
        store.ClearField("claim")
        return send(store)

    monkeypatch.setattr(app.backend, "send", to_an_older_one)
    chord.size(2)
    chord.done(new_id(), 0, 0)
    asked.methods.clear()
    chord.done(new_id(), 1, 1)
    assert published(app) == [("body", chord.body_id, [0, 1])]
    assert asked.methods == ["ClaimGroup ACQUIRE", "ClaimGroup DONE"]


def test_an_answer_without_room_is_asked_after(
    app: Any,
    chord: Chord,
    asked: Asked,
    new_id: NewId,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The claim was taken, and the answer to the batch could not say so."""
    without_room(app, monkeypatch)
    chord.size(1)
    asked.methods.clear()
    chord.done(new_id(), 0, 0)
    assert published(app) == [("body", chord.body_id, [0])]
    assert asked.methods == ["ClaimGroup ACQUIRE", "ClaimGroup DONE"]


@pytest.mark.parametrize("ignored", [False, True])
def test_a_claim_whose_answer_was_lost_is_had_by_trying_again(
    make_app: MakeApp,
    new_id: NewId,
    monkeypatch: pytest.MonkeyPatch,
    ignored: bool,
) -> None:
    """With `result_backend_always_retry`: the second report has the first one's token."""
    app = make_app(result_backend_always_retry=True)
    app.backend.base_sleep_between_retries_ms = 1
    chord = Chord(app, new_id)
    chord.size(1)
    send, claims = app.backend.send, []

    def losing(store: Any) -> Any:
        answer = send(store)
        claims.append(answer.claim)
        if len(claims) == 1:
            raise make("UNAVAILABLE", "the answer is lost")
        return answer

    monkeypatch.setattr(app.backend, "send", losing)
    chord.done(new_id(), 0, 0, ignore_result=ignored)
    granted = group_service_pb2.CLAIM_OUTCOME_GRANTED
    assert [claim.outcome for claim in claims] == [granted, granted]
    assert published(app) == [("body", chord.body_id, [0])]


def test_a_report_that_is_cut_off_gives_back_what_it_may_have_taken(
    app: Any, chord: Chord, asked: Asked, new_id: NewId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part that returns after that, of the same task, publishes the body."""
    task_id = new_id()
    chord.size(1)
    send = app.backend.send

    def cut_off(store: Any) -> None:
        assert send(store).claim.outcome == group_service_pb2.CLAIM_OUTCOME_GRANTED
        raise SoftTimeLimitExceeded

    with monkeypatch.context() as patch:
        patch.setattr(app.backend, "send", cut_off)
        with pytest.raises(SoftTimeLimitExceeded):
            chord.done(task_id, 0, 0)
    assert asked.methods[-1] == "ClaimGroup RELEASE"
    assert published(app) == []
    chord.done(task_id, 0, 0)
    assert published(app) == [("body", chord.body_id, [0])]


def test_a_claim_that_had_no_room_is_given_back(
    app: Any, chord: Chord, asked: Asked, new_id: NewId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a part that Celery does not return: it may have been granted."""
    chord.size(1)
    asked.methods.clear()
    with monkeypatch.context() as patch:
        without_room(app, patch)
        patch.setattr(app.backend, "on_chord_part_return", lambda *_: None)
        chord.done(new_id(), 0, 0)
    assert asked.methods == ["ClaimGroup RELEASE"]
    assert app.backend._chords.finish(chord.id)


def test_a_part_that_does_not_claim_gives_nothing_back(
    app: Any, chord: Chord, asked: Asked, new_id: NewId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was answered and not returned, of a chord that is not complete."""
    monkeypatch.setattr(app.backend, "on_chord_part_return", lambda *_: None)
    chord.size(2)
    asked.methods.clear()
    chord.done(new_id(), 0, 0)
    assert asked.methods == []


def test_a_chord_that_the_answer_does_not_name_is_finished(
    app: Any, chord: Chord, new_id: NewId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer names 64 groups at most; the claim says that this one is complete."""
    send = app.backend.send

    def naming_others(store: Any) -> Any:
        answer = send(store)
        answer.ClearField("complete_group_ids")
        return answer

    monkeypatch.setattr(app.backend, "send", naming_others)
    chord.size(1)
    chord.done(new_id(), 0, 0)
    assert published(app) == [("body", chord.body_id, [0])]


def test_a_part_that_cannot_be_counted_leaves_nothing_behind(
    app: Any, chord: Chord, new_id: NewId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread whose parts never reach a server does not gather their claims."""

    def away(store: Any) -> Any:
        raise make("UNAVAILABLE", "no server")

    monkeypatch.setattr(app.backend, "send", away)
    with pytest.raises(UnavailableError):
        app.backend.on_chord_part_return(chord.request(new_id(), 0), states.SUCCESS, 1)
    assert app.backend._chords._returning.claims == {}


def test_threads_whose_reports_share_a_call_read_the_parts(
    app: Any, new_id: NewId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch grants claims and brings no parts: many chords end at once, each as it should."""
    chords = [Chord(app, new_id) for _ in range(24)]
    ids = {chord.id: [new_id() for _ in range(3)] for chord in chords}
    for chord in chords:
        chord.size(3)
        for index in (0, 1):
            chord.done(ids[chord.id][index], index, index)
    start = threading.Barrier(len(chords))
    reporter = app.backend.client._open()._reporter
    call, methods = reporter._call, []

    def after_others_wait(effect: Any) -> Any:
        methods.append(effect.method)
        if len(methods) == 1:
            until(lambda: len(methods) > 1 or len(reporter._waiting) > 1)
        return call(effect)

    def end(chord: Chord) -> None:
        start.wait(10)
        chord.done(ids[chord.id][2], 2, 2)

    monkeypatch.setattr(reporter, "_call", after_others_wait)
    with ThreadPoolExecutor(len(chords)) as threads:
        list(threads.map(end, chords))
    assert "BatchStoreResults" in methods
    assert sorted(published(app)) == sorted(("body", chord.body_id, [0, 1, 2]) for chord in chords)


def test_what_celery_does_not_return_is_given_back(
    app: Any,
    chord: Chord,
    asked: Asked,
    new_id: NewId,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A part that was stored and not returned leaves the claim to others, at once."""
    with monkeypatch.context() as patch:
        patch.setattr(app.backend, "on_chord_part_return", lambda *_: None)
        chord.size(1)
        asked.methods.clear()
        chord.done(new_id(), 0, 0)
    assert asked.methods == ["ClaimGroup RELEASE"]
    assert published(app) == []
    assert app.backend._chords.finish(chord.id)
    assert published(app) == [("body", chord.body_id, [0])]


def test_who_is_told_that_another_has_it_asks_no_more(
    app: Any, chord: Chord, asked: Asked, new_id: NewId
) -> None:
    """A part that comes twice, while the first one's return finishes the chord."""
    task_id = new_id()
    chord.size(1)
    claim = Claim(app.backend, chord.id)
    store = app.backend.part_report(task_id, 0, states.SUCCESS, chord.request(task_id, 0))
    store.meta.group_id = chord.id
    claim.ask_with(store, ChordAhead(app.backend.codec))
    claim.hear(app.backend.send(store))
    assert claim.granted
    asked.methods.clear()
    chord.done(task_id, 0, 0)
    assert asked.methods == []
    assert published(app) == []
