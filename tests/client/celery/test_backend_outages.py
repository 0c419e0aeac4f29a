"""Servers that go away, and what Celery's settings for that make of it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import states
from celery.app.trace import build_tracer
from celery.backends.base import BackendGetMetaError, BackendStoreError
from vine import promise

from resultd import _backoff
from resultd.celery.backend import STARTED_TIMEOUT
from resultd.errors import (
    InvalidArgumentError,
    ResultdError,
    StoreFullError,
    UnavailableError,
    make,
)
from resultd.testing import Server
from resultd.v1 import state_pb2
from tests.client.celery.conftest import MakeApp
from tests.support.celery_chord import Chord
from tests.support.results import later

NewId = Callable[[], str]

NOBODY = "resultd://127.0.0.1:1?timeout=0.2"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server to stop and start, which keeps what it was told."""
    with Server(tmp_path) as server:
        yield server


class TestWithoutRetries:
    def test_a_short_outage_is_ridden_out(
        self, make_app: MakeApp, own: Server, new_id: NewId
    ) -> None:
        """Whoever stores a result waits for the server, for a while."""
        backend, task_id = make_app(own.url).backend, new_id()
        backend.mark_as_started(task_id)
        own.stop()
        starting = later(0.5, own.start)
        backend.mark_as_done(task_id, "kept")
        starting.join()
        assert backend.get_result(task_id) == "kept"

    def test_a_long_one_is_an_error(self, make_app: MakeApp, new_id: NewId) -> None:
        """After `store_timeout`, whatever the url's timeout is."""
        options = {"store_timeout": 0.6}
        backend = make_app(NOBODY, result_backend_transport_options=options).backend
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            backend.store_result(new_id(), 1, states.SUCCESS)
        assert 0.3 < time.monotonic() - began < 5

    @pytest.mark.parametrize("always_retry", [False, True], ids=["", "always retry"])
    @pytest.mark.parametrize("refused", ["away", "id"])
    def test_a_task_whose_begin_is_not_stored_runs(
        self,
        make_app: MakeApp,
        new_id: NewId,
        caplog: pytest.LogCaptureFixture,
        refused: str,
        always_retry: bool,
    ) -> None:
        """STARTED is a notice: without a server, or under an id that none takes, it is left out."""
        away = refused == "away"
        app = make_app(
            NOBODY if away else None,
            result_backend_transport_options={"store_timeout": 0.2},
            result_backend_always_retry=always_retry,
            result_backend_max_retries=1,  # for what it returned
        )
        task_id, ran = new_id() if away else "x" * 300, []

        def note() -> None:
            ran.append(task_id)

        task = app.task(note, track_started=True, shared=False)
        trace = build_tracer(task.name, task, app=app)
        outside = pytest.warns(RuntimeWarning, match="Exception raised outside body")
        # Raised after it by some Celerys.
        with outside, contextlib.suppress(ResultdError, BackendStoreError):
            trace(task_id, [], {}, {"id": task_id})  # what it returned is not stored either
        assert ran == [task_id]
        assert f"Task {task_id} runs, but its STARTED is not stored" in caplog.text

    def test_a_task_waits_less_to_begin_than_to_end(
        self, make_app: MakeApp, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`store_timeout` is for what tasks return."""
        backend, limits = make_app().backend, []
        report = backend.client.operations.report

        def noting(*args: Any, limit: float) -> Any:
            limits.append(limit)
            return report(*args, limit=limit)

        monkeypatch.setattr(backend.client.operations, "report", noting)
        for state in (states.STARTED, states.SUCCESS):
            backend.store_result(new_id(), 1, state)
        assert limits[0] <= STARTED_TIMEOUT < 59 < limits[1]

    def test_who_is_refused_waits_as_long_as_the_server_asks(
        self, make_app: MakeApp, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To the end of `store_timeout`: a full server is not asked all the time."""
        options = {"store_timeout": 1.0}
        backend = make_app(result_backend_transport_options=options).backend
        tries = []

        def refuse(*_: Any) -> Any:
            tries.append(time.monotonic())
            raise make("RESOURCE_EXHAUSTED", "full", "STORE_FULL", retry_delay=0.3)

        backend.client.server_info()  # it is connected
        # More than is asked for, so that an operation ends before there is no time for another.
        monkeypatch.setattr(_backoff, "full_jitter", lambda *_: 0.5)
        monkeypatch.setattr(backend.client._open()._reporter, "store", refuse)
        with pytest.raises(StoreFullError):
            backend.store_result(new_id(), 1, states.SUCCESS)
        assert 2 <= len(tries) <= 5
        assert all(later - sooner > 0.25 for sooner, later in itertools.pairwise(tries))

    def test_reading_ends_with_the_urls_timeout(self, make_app: MakeApp, new_id: NewId) -> None:
        """In an error that says who did not answer."""
        backend = make_app(NOBODY).backend
        with pytest.raises(UnavailableError):
            backend.get_state(new_id())

    def test_waiting_ends_with_its_own(self, make_app: MakeApp, new_id: NewId) -> None:
        """A wait hopes for the server until its time is up."""
        app = make_app(NOBODY)
        with pytest.raises(app.backend.TimeoutError):
            app.AsyncResult(new_id()).get(timeout=0.3)


class TestAlwaysRetry:
    def settings(self, **more: Any) -> dict[str, Any]:
        """Celery's settings, with short pauses."""
        return {
            "result_backend_always_retry": True,
            "result_backend_base_sleep_between_retries_ms": 1,
            "result_backend_max_sleep_between_retries_ms": 20,
            **more,
        }

    def test_outlasts_any_outage(
        self, make_app: MakeApp, own: Server, new_id: NewId, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Storing and reading, until the server is back."""
        app = make_app(f"{own.url}?timeout=0.1", **self.settings())
        backend, task_id = app.backend, new_id()
        own.stop()
        starting = later(0.6, own.start)
        with caplog.at_level(logging.CRITICAL):
            backend.store_result(task_id, 1, states.SUCCESS)
        starting.join()
        assert backend.get_result(task_id) == 1

    def test_gives_up_after_as_many_as_told(
        self, make_app: MakeApp, new_id: NewId, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With Celery's own errors."""
        settings = self.settings(result_backend_max_retries=2)
        backend = make_app("resultd://127.0.0.1:1?timeout=0.05", **settings).backend
        with caplog.at_level(logging.CRITICAL):
            with pytest.raises(BackendStoreError):
                backend.store_result(new_id(), 1, states.SUCCESS)
            with pytest.raises(BackendGetMetaError):
                backend.get_state(new_id())

    @pytest.mark.parametrize("ignored", [False, True])
    def test_says_the_very_same_again(
        self,
        make_app: MakeApp,
        new_id: NewId,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        ignored: bool,
    ) -> None:
        """One that was stored and not answered revives nothing that was forgotten meanwhile."""
        app = make_app(**self.settings())
        backend, client, task_id = app.backend, app.backend.client, new_id()
        send, said = backend.send, []

        def lose(store: Any) -> Any:
            said.append(type(store).FromString(store.SerializeToString()))
            send(store)
            if len(said) == 1:
                client.run(client.operations.forget([task_id]))
                error = UnavailableError("no answer")
                error.code = "UNAVAILABLE"
                raise error
            return send(store)

        monkeypatch.setattr(backend, "send", lose)
        chord = Chord(app, new_id)
        with caplog.at_level(logging.CRITICAL):
            chord.done(task_id, None, ignore_result=ignored, store_result=not ignored)
        assert [each.meta for each in said] == [said[0].meta] * 2
        (found,) = client.run(client.operations.read([task_id]))
        assert found.existence == state_pb2.EXISTENCE_FORGOTTEN

    def test_does_not_repeat_what_is_wrong(self, make_app: MakeApp) -> None:
        """A call that the server refuses is refused the next time as well."""
        backend = make_app(**self.settings()).backend
        with pytest.raises(InvalidArgumentError):
            backend.store_result("x" * 300, 1, states.SUCCESS)
        assert not backend.exception_safe_to_retry(ValueError())
        assert not backend.exception_safe_to_retry(InvalidArgumentError("no"))
        away = UnavailableError("away")
        away.code = "UNAVAILABLE"
        assert backend.exception_safe_to_retry(away)


def test_what_was_stored_and_saved_survives_a_restart(
    make_app: MakeApp, own: Server, new_id: NewId
) -> None:
    """Results, waits and groups."""
    app = make_app(own.url)
    group = app.GroupResult(new_id(), [app.AsyncResult(new_id()) for _ in range(3)]).save()
    app.backend.mark_as_done(group[0].id, 0)
    values: list[Any] = []
    waiting = threading.Thread(target=lambda: values.extend(group.get(timeout=20)))
    waiting.start()
    own.kill()
    own.start()
    for number in (1, 2):
        app.backend.mark_as_done(group[number].id, number)
    waiting.join(20)
    assert values == [0, 1, 2]
    assert app.GroupResult.restore(group.id) == group


class TestWaits:
    def publish(self, app: Any, new_id: NewId) -> list[Any]:
        """Results of tasks published here, of which the first half is ready and was got."""
        prefix = new_id()
        results = [app.AsyncResult(f"{prefix}-{number:03}") for number in range(40)]
        for number, result in enumerate(results):
            app.backend.on_task_call(None, result.id)
            app.backend.mark_as_done(result.id, number)
        for result in results[:20]:
            assert result.get(timeout=5) is not None
        return results[20:]

    def test_that_read_ahead_end_in_time(
        self, make_app: MakeApp, own: Server, new_id: NewId
    ) -> None:
        """However long calls are tried."""
        app = make_app(own.url)
        results = self.publish(app, new_id)
        own.stop()
        app.backend._ahead._read.messages.clear()  # what was read before counts no more
        began = time.monotonic()
        with pytest.raises(app.backend.TimeoutError):
            results[0].get(timeout=0.5)
        assert 0.5 <= time.monotonic() - began < 3

    def test_that_read_ahead_go_on_beyond_the_timeout_of_calls(
        self, make_app: MakeApp, own: Server, new_id: NewId
    ) -> None:
        """A server that comes back is in time for whoever waits."""
        app = make_app(f"{own.url}?timeout=0.2")
        results = self.publish(app, new_id)
        own.stop()
        app.backend._ahead._read.messages.clear()
        starting = later(0.8, own.start)
        assert results[0].get(timeout=20) == 20
        starting.join()

    def test_do_not_ask_for_parents(self, make_app: MakeApp, new_id: NewId) -> None:
        """What Celery calls every interval looks at them: it sees what the stream has told."""
        app = make_app(NOBODY)
        result = app.AsyncResult(new_id(), parent=app.AsyncResult(new_id()))
        with pytest.raises(app.backend.TimeoutError):
            app.backend.wait_for_pending(
                result,
                timeout=1,
                interval=0.05,
                on_interval=promise(result._maybe_reraise_parent_error),
            )

    def test_of_what_failed_end_with_its_error(
        self, make_app: MakeApp, own: Server, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Though its parents, which may have failed before it, can no longer be asked for."""
        app = make_app(own.url)
        result = app.AsyncResult(new_id(), parent=app.AsyncResult(new_id()))

        def away(*args: Any) -> Any:
            error = UnavailableError("away")
            error.code = "UNAVAILABLE"
            raise error

        def fail() -> None:
            monkeypatch.setattr(app.backend.client.operations, "read", away)
            app.backend.mark_as_failure(result.id, KeyError("own"))

        later(0.5, fail)
        with pytest.raises(KeyError, match="own"):
            result.get(timeout=10, interval=20)
