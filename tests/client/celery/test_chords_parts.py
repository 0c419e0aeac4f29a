"""Chords case by case: what is counted, what the body gets, whom a failure reaches."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import states
from celery.exceptions import ChordError
from celery.utils.functional import regen

from resultd.celery import _chords
from resultd.client import Client
from resultd.testing import Server
from resultd.v1 import state_pb2, value_pb2
from tests.client.celery.conftest import MakeApp
from tests.client.celery.test_records import raw
from tests.support.celery_backend import published, request_of
from tests.support.celery_chord import Chord, NewId


class TestCounting:
    def test_racing_threads_publish_the_body_once(
        self, app: Any, chord: Chord, new_id: NewId
    ) -> None:
        """Each returns every part; the body gets them in order."""
        ids = [new_id() for _ in range(5)]
        chord.size(5)
        start = threading.Barrier(20)

        def work(_: int) -> None:
            start.wait(10)
            for index, task_id in enumerate(ids):
                chord.done(task_id, index, index)

        with ThreadPoolExecutor(20) as threads:
            list(threads.map(work, range(20)))
        assert published(app) == [("body", chord.body_id, [0, 1, 2, 3, 4])]

    def test_one_task_at_two_places_counts_twice(
        self, app: Any, chord: Chord, new_id: NewId
    ) -> None:
        """And its value stands at both."""
        twice, other = new_id(), new_id()
        chord.size(3)
        chord.done(twice, "t", 0)
        chord.done(other, "o", 1)
        chord.done(other, "o", 1)
        assert published(app) == []
        chord.done(twice, "t", 2)
        assert published(app) == [("body", chord.body_id, ["t", "o", "t"])]

    @pytest.mark.parametrize("first", ["added", "adder"])
    def test_an_added_part_stands_beside_who_added_it(
        self, app: Any, chord: Chord, new_id: NewId, first: str
    ) -> None:
        """Whichever of the two returns first."""
        adder, added, last = new_id(), new_id(), new_id()
        chord.size(2)
        app.backend.add_to_chord(chord.id, app.AsyncResult(added))
        app.backend.add_to_chord(chord.id, app.AsyncResult(added))
        chord.done(last, "last", 1)
        order = [added, adder] if first == "added" else [adder, added]
        for task_id in order:
            assert published(app) == []
            chord.done(task_id, task_id, 0)
        assert published(app) == [("body", chord.body_id, [*order, "last"])]

    def test_parts_without_a_place_come_as_they_came(
        self, app: Any, chord: Chord, new_id: NewId
    ) -> None:
        """Messages of other publishers may not say it."""
        for number in range(3):
            chord.done(new_id(), number, None)
        chord.size(3)
        assert published(app) == [("body", chord.body_id, [0, 1, 2])]

    def test_what_belongs_to_no_chord_is_let_be(self, app: Any, new_id: NewId) -> None:
        """A request without group or id says nothing."""
        backend = app.backend
        for fields in ({"group": None}, {"group": "g", "id": None}):
            request = request_of(new_id(), chord={"task": "body"}, **fields)
            backend.on_chord_part_return(request, states.SUCCESS, 1)
        assert published(app) == []

    def test_other_states_are_no_parts(self, app: Any, chord: Chord, new_id: NewId) -> None:
        """A part that is started, or retried, is not back."""
        task_id = new_id()
        chord.size(1)
        request = chord.request(task_id, 0)
        app.backend.store_result(task_id, {}, states.STARTED, request=request)
        app.backend.mark_as_retry(task_id, ValueError("again"), request=request)
        assert published(app) == []
        chord.done(task_id, 1)
        assert published(app) == [("body", chord.body_id, [1])]

    def test_a_chord_of_nothing_but_its_size(self, app: Any, chord: Chord) -> None:
        """Is complete at once."""
        chord.size(0)
        assert published(app) == [("body", chord.body_id, [])]


class TestApplying:
    def test_a_generator_is_left_to_whoever_draws_from_it(self, app: Any, new_id: NewId) -> None:
        """Its tasks are published as they are drawn."""
        drawn: list[int] = []

        def header() -> Iterator[Any]:
            for number in range(3):
                drawn.append(number)
                yield app.AsyncResult(str(number))

        Chord(app, new_id, header())
        assert drawn == []

    def test_again_before_it_is_complete_goes_on(
        self, app: Any, chord: Chord, new_id: NewId
    ) -> None:
        """A retried publication of the same chord loses nothing."""
        first = new_id()
        chord.done(first, 0, 0)
        chord.apply()
        chord.size(2)
        chord.done(new_id(), 1, 1)
        assert published(app) == [("body", chord.body_id, [0, 1])]

    def test_again_after_it_was_complete_runs_again(
        self, app: Any, chord: Chord, new_id: NewId
    ) -> None:
        """A frozen chord may be applied as often as one likes."""
        ids = [new_id(), new_id()]
        for _ in range(3):
            for index, task_id in enumerate(ids):
                chord.done(task_id, index, index)
            chord.size(2)
            assert published(app) == [("body", chord.body_id, [0, 1])]
            chord.apply()

    def test_groups_within_are_lists_within(self, app: Any, new_id: NewId) -> None:
        """The body gets the shape of the header, groups of one and of none included."""
        leaves = [app.AsyncResult(new_id()) for _ in range(4)]
        header = [
            app.GroupResult("outer", [app.GroupResult("inner", leaves[:2]), leaves[2]]),
            app.GroupResult("none", []),
            leaves[3],
        ]
        chord = Chord(app, new_id, header)
        for index, leaf in enumerate(leaves):
            chord.done(leaf.id, index, index)
        chord.size(4)
        assert published(app) == [("body", chord.body_id, [[[0, 1], 2], [], 3])]


class TestIgnored:
    def test_parts_are_counted_and_not_seen(self, app: Any, chord: Chord, new_id: NewId) -> None:
        """PENDING for whoever looks; gone once the body was published."""
        task_id, other = new_id(), new_id()
        chord.size(2)
        chord.done(task_id, "v", 0, ignore_result=True)
        assert app.AsyncResult(task_id).state == states.PENDING
        assert app.AsyncResult(task_id).result is None
        assert not app.backend.task_result_exists(task_id)
        chord.done(other, "w", 1)
        assert published(app) == [("body", chord.body_id, ["v", "w"])]
        client = app.backend.client
        (left,) = client.run(client.operations.read([task_id]))
        assert left.existence == state_pb2.EXISTENCE_FORGOTTEN
        assert app.AsyncResult(other).state == states.SUCCESS

    def test_parts_may_have_results_afterwards(self, app: Any, chord: Chord, new_id: NewId) -> None:
        """Run once more by somebody who wants the result: it is seen, and goes to the body."""
        task_id = new_id()
        chord.done(task_id, "v", 0, ignore_result=True, store_result=False)
        chord.done(task_id, "w", 0)
        assert app.AsyncResult(task_id).get(timeout=5) == "w"
        chord.size(1)
        assert published(app) == [("body", chord.body_id, ["w"])]

    def test_parts_may_fail(self, app: Any, chord: Chord, new_id: NewId) -> None:
        """And fail the body."""
        task_id = new_id()
        chord.size(1)
        chord.failed(task_id, KeyError("ignored"), ignore_result=True, store_result=False)
        assert app.AsyncResult(task_id).state == states.PENDING
        error = chord.error()
        assert str(error) == f"Dependency {task_id} raised KeyError('ignored')"
        assert published(app) == []


class TestFailing:
    def test_a_failed_part_fails_the_body(self, app: Any, chord: Chord, new_id: NewId) -> None:
        """With the part's id and error, which is the cause too."""
        task_id = new_id()
        chord.size(2)
        chord.failed(task_id, KeyError("k"), 1)
        chord.done(new_id(), 0, 0)
        assert str(chord.error()) == f"Dependency {task_id} raised KeyError('k')"
        assert published(app) == []

    def test_errbacks_hear_of_it_with_its_cause(self, app: Any, new_id: NewId) -> None:
        """Those of the body."""
        heard: list[Any] = []

        def errback(request: Any, error: Any, traceback: Any) -> None:
            heard.append((request.id, error))

        task = app.task(name="errback", shared=False)(errback)
        chord = Chord(app, new_id)
        chord.body.link_error(task.s())
        chord.apply()
        chord.size(1)
        chord.failed(new_id(), KeyError("k"))
        ((body_id, error),) = heard
        assert body_id == chord.body_id
        assert isinstance(error, ChordError)
        assert isinstance(error.__cause__, KeyError)

    def test_the_first_of_the_header_is_named(self, app: Any, chord: Chord, new_id: NewId) -> None:
        """Of several."""
        first, second = new_id(), new_id()
        chord.failed(second, KeyError("second"), 1)
        chord.failed(first, KeyError("first"), 0)
        chord.size(2)
        assert first in str(chord.error())

    def test_a_revoked_part_fails_the_body(self, app: Any, chord: Chord, new_id: NewId) -> None:
        """It will never be back."""
        task_id = new_id()
        chord.size(1)
        request = chord.request(task_id, 0)
        app.backend.mark_as_revoked(task_id, "enough", request=request)
        assert str(chord.error()) == f"Dependency {task_id} raised TaskRevokedError('enough')"

    def test_a_part_that_cannot_be_read_fails_the_body(
        self,
        app: Any,
        chord: Chord,
        client: Client,
        new_id: NewId,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """With what the decoder said."""
        task_id = new_id()
        chord.size(2)
        value = value_pb2.Payload(content_type="application/x-yaml", data=b"1")
        raw(
            client,
            task_id=task_id,
            state=state_pb2.STATE_SUCCESS,
            value=value,
            group_id=chord.id,
            index=0,
        )
        with caplog.at_level(logging.CRITICAL, "resultd.celery"):
            chord.done(new_id(), 1, 1)
        assert "Join error: ContentDisallowed" in str(chord.error())

    def test_a_part_that_was_forgotten_fails_the_body(
        self, app: Any, chord: Chord, new_id: NewId
    ) -> None:
        """It was counted, and its value is gone."""
        task_id = new_id()
        chord.size(2)
        chord.done(task_id, 0, 0)
        app.backend.forget(task_id)
        chord.done(new_id(), 1, 1)
        assert f"Dependency {task_id} is gone" in str(chord.error())

    def test_a_body_that_is_a_part_fails_its_own_chord(self, app: Any, new_id: NewId) -> None:
        """Whose body fails in turn, and is published never."""
        outer, inner = Chord(app, new_id), Chord(app, new_id)
        inner.body.set(group_id=outer.id, group_index=0, chord=dict(outer.body))
        inner.apply()
        outer.size(1)
        inner.size(1)
        task_id = new_id()
        inner.failed(task_id, KeyError("deep"))
        assert task_id in str(inner.error())
        assert inner.body_id in str(outer.error())
        assert published(app) == []

    @pytest.mark.skipif(
        celery.VERSION < (5, 7),
        reason="Celery before 5.7 does not fail what comes after a chord's body",
    )
    def test_what_comes_after_a_failed_body_fails_its_own_chord(
        self, app: Any, new_id: NewId
    ) -> None:
        """The rest of its chain is stored as failed, and stays so for whoever waits for it."""
        outer, inner, rest = Chord(app, new_id), Chord(app, new_id), new_id()
        step = (
            app.tasks["add"]
            .s(1)
            .set(task_id=rest, group_id=outer.id, group_index=0, chord=dict(outer.body))
        )
        inner.body.set(chain=[dict(step)])
        inner.apply()
        outer.size(1)
        inner.size(1)
        inner.failed(new_id(), KeyError("deep"))
        with pytest.raises(ChordError, match="deep"):
            app.AsyncResult(rest).get(timeout=5)
        assert rest in str(outer.error())


class TestTakingOver:
    def test_a_claimant_that_died_is_replaced_by_who_stores_next(
        self, make_app: MakeApp, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process of the app hears of it in the answers to its own reports."""
        monkeypatch.setattr(_chords, "GRACE", 0.1)
        options = {"chord_lease": 1, "claim_scope": new_id()}
        dying, other = (make_app(result_backend_transport_options=options) for _ in range(2))
        other.conf.task_default_queue = dying.conf.task_default_queue
        chord = Chord(dying, new_id)
        chord.size(1)

        def die(*_: Any, **__: Any) -> None:
            raise SystemExit

        monkeypatch.setattr(dying.backend._chords._finisher, "_publish", die)
        with pytest.raises(SystemExit):
            chord.done(new_id(), "part")
        end = time.monotonic() + 10
        for number in itertools.count():
            other.backend.mark_as_done(new_id(), number)
            found = published(other)
            if found:
                break
            assert time.monotonic() < end, "nobody took over"
            time.sleep(0.05)
        assert found == [("body", chord.body_id, ["part"])]
        other.backend.mark_as_done(new_id(), 1)
        assert published(other) == []


def test_a_server_that_restarts_loses_no_part(
    make_app: MakeApp, tmp_path: Path, new_id: NewId
) -> None:
    """Counted before, counted after, the size in between."""
    with Server(tmp_path) as server:
        app = make_app(server.url)
        chord = Chord(app, new_id)
        ids = [new_id() for _ in range(3)]
        chord.done(ids[0], 0, 0)
        server.kill()
        server.start()
        chord.size(3)
        chord.done(ids[1], 1, 1, ignore_result=True)
        server.kill()
        server.start()
        chord.done(ids[0], 0, 0)
        chord.done(ids[2], 2, 2)
        assert published(app) == [("body", chord.body_id, [0, 1, 2])]


def test_a_generator_is_not_drawn_from_before_its_tasks_are_published(app: Any) -> None:
    """Declaring a chord leaves Celery's wrapped generator of results as it is."""
    drawn: list[int] = []

    def results() -> Any:
        for number in range(3):
            drawn.append(number)
            yield app.AsyncResult(f"drawn-{number}")

    app.backend.apply_chord(("drawn-group", regen(results())), app.signature("body"))
    assert drawn == []
