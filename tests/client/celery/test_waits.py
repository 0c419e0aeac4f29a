"""Waiting by push: `get`, sets, callbacks, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import states
from celery.result import allow_join_result, denied_join_result
from kombu.exceptions import ContentDisallowed

from resultd.celery import install
from resultd.celery._records import PART
from resultd.client import Client
from resultd.errors import ClientClosedError
from resultd.testing import Server
from resultd.v1 import state_pb2, value_pb2
from tests.client.celery.test_records import raw
from tests.support.celery_backend import count_calls
from tests.support.results import later, until
from tests.support.timing import check_takes

NewId = Callable[[], str]


def idle(backend: Any) -> bool:
    """Whether nobody waits for anything."""
    watcher = backend.client.watcher()
    return not watcher._hub.wanted and not backend._waits._thens


class TestGet:
    @pytest.mark.parametrize("before", [True, False])
    def test_gives_the_value(self, app: Any, new_id: NewId, before: bool) -> None:
        """Whether it was there before the wait or comes during it; and again without a call."""
        result = app.AsyncResult(new_id())
        if before:
            app.backend.mark_as_done(result.id, [1])
        else:
            later(0.1, lambda: app.backend.mark_as_done(result.id, [1]))
        assert result.get(timeout=5) == [1]
        app.backend.forget(result.id)
        assert result.get(timeout=0) == [1]

    @pytest.mark.parametrize("timeout", [0, 0.05, 0.3])
    def test_ends_in_time(self, app: Any, new_id: NewId, timeout: float) -> None:
        """To the millisecond, also with a stream open; 0 looks once."""
        other = threading.Thread(target=lambda: app.AsyncResult("other").get(timeout=2))
        result = app.AsyncResult(new_id())

        def wait() -> None:
            with pytest.raises(app.backend.TimeoutError):
                result.get(timeout=timeout)

        check_takes(timeout, timeout + 0.1, wait)
        app.backend.mark_as_done("other", 1)
        other.start()
        other.join()

    def test_looks_once_with_no_time_at_all(self, app: Any, new_id: NewId) -> None:
        """What is there is found."""
        result = app.AsyncResult(new_id())
        app.backend.mark_as_done(result.id, 1)
        assert result.get(timeout=0) == 1

    def test_hands_over_what_it_does_not_raise(self, app: Any, new_id: NewId) -> None:
        """`propagate=False`."""
        result = app.AsyncResult(new_id())
        app.backend.mark_as_failure(result.id, KeyError("k"), traceback="T")
        found = result.get(timeout=5, propagate=False)
        assert (type(found), found.args, result.traceback) == (KeyError, ("k",), "T")

    def test_waits_through_retries(self, app: Any, new_id: NewId) -> None:
        """They are no end."""
        result = app.AsyncResult(new_id())
        app.backend.mark_as_retry(result.id, ValueError("again"))
        later(0.1, lambda: app.backend.mark_as_done(result.id, "at last"))
        assert result.get(timeout=5) == "at last"

    def test_tells_every_state_it_sees(self, app: Any, new_id: NewId) -> None:
        """`on_message`: metas, the last of them ready; `callback`: id and value."""
        result, seen = app.AsyncResult(new_id()), threading.Event()
        messages: list[Any] = []
        called: list[Any] = []

        def on_message(meta: dict[str, Any]) -> None:
            messages.append((meta["task_id"] == result.id, meta["status"]))
            seen.set()

        def work() -> None:
            for state in (states.STARTED, "PROGRESS"):
                seen.clear()
                app.backend.store_result(result.id, {}, state)
                assert seen.wait(5)
            app.backend.mark_as_done(result.id, 1)

        later(0.1, work)
        value = result.get(
            timeout=10, on_message=on_message, callback=lambda *args: called.append(args)
        )
        assert value == 1
        assert messages == [(True, states.STARTED), (True, "PROGRESS"), (True, states.SUCCESS)]
        assert called == [(result.id, 1)]

    def test_tells_nothing_of_what_is_not_stored(
        self, app: Any, client: Client, new_id: NewId
    ) -> None:
        """No `on_message` for an unknown id, nor for what is only a chord's part."""
        unknown, part = app.AsyncResult(new_id()), app.AsyncResult(new_id())
        value = value_pb2.Payload(content_type="application/json", data=b'"SUCCESS"')
        raw(client, task_id=part.id, state=state_pb2.STATE_IGNORED, extra={PART: value})
        messages: list[Any] = []
        for waited in (unknown, part, app.ResultSet([unknown, part])):
            with pytest.raises(app.backend.TimeoutError):
                waited.get(timeout=0.1, on_message=messages.append)
        assert messages == []

    def test_calls_on_interval(self, app: Any, new_id: NewId) -> None:
        """After `interval` seconds; what it raises ends the wait."""

        def tick() -> None:
            raise StopAsyncIteration

        began = time.monotonic()
        with pytest.raises(StopAsyncIteration):
            app.AsyncResult(new_id()).get(timeout=10, interval=0.05, on_interval=tick)
        assert 0.05 <= time.monotonic() - began < 5

    def test_makes_no_calls_while_it_waits(
        self, app: Any, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody polls."""
        result = app.AsyncResult(new_id())
        calls = count_calls(monkeypatch)
        later(0.5, lambda: app.backend.mark_as_done(result.id, 1))
        assert result.get(timeout=5, interval=0.01) == 1
        assert calls["GetResult"] <= 1
        assert set(calls) <= {"GetResult", "StoreResult"}

    def test_from_fifty_threads(self, app: Any, new_id: NewId) -> None:
        """One object or many, each gets the value."""
        shared = app.AsyncResult(new_id())
        with ThreadPoolExecutor(50) as threads:
            own = [threads.submit(app.AsyncResult(shared.id).get, timeout=20) for _ in range(25)]
            same = [threads.submit(shared.get, timeout=20) for _ in range(25)]
            app.backend.mark_as_done(shared.id, "all")
            assert [future.result() for future in own + same] == ["all"] * 50
        until(lambda: idle(app.backend))

    def test_of_an_unfit_id_harms_nobody(self, app: Any, new_id: NewId) -> None:
        """The others wait on."""
        result = app.AsyncResult(new_id())
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(result.get, timeout=20)
            until(lambda: app.backend.client.watcher().streaming)
            for unfit in ("x" * 300, "", "a\nb"):
                with pytest.raises(ValueError, match="id"):
                    app.AsyncResult(unfit).get(timeout=20)
            app.backend.mark_as_done(result.id, 1)
            assert waiting.result() == 1

    def test_of_an_ignored_result_is_none(self, app: Any, new_id: NewId) -> None:
        """At once."""
        result = app.AsyncResult(new_id())
        result.ignored = True
        assert result.get() is None

    def test_within_a_task_is_refused(self, app: Any, new_id: NewId) -> None:
        """Celery's rule, and its exception to it."""
        result = app.AsyncResult(new_id())
        app.backend.mark_as_done(result.id, 1)
        with denied_join_result():
            with pytest.raises(RuntimeError, match="within a task"):
                result.get()
            with allow_join_result():
                assert result.get(timeout=5) == 1

    def test_wait_for_gives_the_meta(self, app: Any, new_id: NewId) -> None:
        """Or ends in time."""
        task_id = new_id()
        with pytest.raises(app.backend.TimeoutError):
            app.backend.wait_for(task_id, timeout=0.05)
        later(0.1, lambda: app.backend.mark_as_done(task_id, 1))
        meta = app.backend.wait_for(task_id, timeout=5)
        assert (meta["status"], meta["result"]) == (states.SUCCESS, 1)

    def test_of_a_forgotten_result_waits_for_the_next_run(self, app: Any, new_id: NewId) -> None:
        """As for any that is not there yet."""
        result = app.AsyncResult(new_id())
        app.backend.mark_as_done(result.id, 1)
        app.backend.forget(result.id)
        later(0.1, lambda: app.backend.mark_as_done(result.id, 2))
        assert result.get(timeout=5) == 2


class TestParents:
    @pytest.mark.parametrize("before", [True, False])
    def test_that_fail_end_the_wait_of_their_children(
        self, app: Any, new_id: NewId, before: bool
    ) -> None:
        """At once, not at the next interval: the child may never run."""
        grandparent = app.AsyncResult(new_id())
        result = app.AsyncResult(new_id(), parent=app.AsyncResult(new_id(), parent=grandparent))
        error = KeyError("first")
        if before:
            app.backend.mark_as_failure(grandparent.id, error)
        else:
            later(0.1, lambda: app.backend.mark_as_failure(grandparent.id, error))
        began = time.monotonic()
        with pytest.raises(KeyError, match="first"):
            result.get(timeout=30, interval=20)
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize("options", [{"follow_parents": False}, {"propagate": False}])
    def test_are_not_followed_unless_wanted(
        self, app: Any, new_id: NewId, options: dict[str, bool]
    ) -> None:
        """The wait goes on."""
        parent = app.AsyncResult(new_id())
        app.backend.mark_as_failure(parent.id, KeyError("first"))
        with pytest.raises(app.backend.TimeoutError):
            app.AsyncResult(new_id(), parent=parent).get(timeout=0.2, **options)

    def test_are_not_polled(self, app: Any, new_id: NewId, monkeypatch: pytest.MonkeyPatch) -> None:
        """However short the interval and long the wait."""
        parent = app.AsyncResult(new_id())
        result = app.AsyncResult(new_id(), parent=parent)
        app.backend.mark_as_started(parent.id)
        calls = count_calls(monkeypatch)
        with pytest.raises(app.backend.TimeoutError):
            result.get(timeout=0.6, interval=0.01)
        assert sum(calls.values()) < 10
        app.backend.mark_as_done(parent.id, 1)

    def test_may_be_groups(self, app: Any, new_id: NewId) -> None:
        """One failed member is enough."""
        members = [app.AsyncResult(new_id()) for _ in range(3)]
        parent = app.GroupResult(new_id(), members)
        app.backend.mark_as_failure(members[1].id, KeyError("member"))
        with pytest.raises(KeyError, match="member"):
            app.AsyncResult(new_id(), parent=parent).get(timeout=5, interval=0.05)


class TestNothingIsLeft:
    def test_after_a_wait(self, app: Any, new_id: NewId) -> None:
        """Whether it got something or not."""
        result = app.AsyncResult(new_id())
        with pytest.raises(app.backend.TimeoutError):
            result.get(timeout=0.05)
        until(lambda: idle(app.backend))
        app.backend.mark_as_done(result.id, 1)
        result.get(timeout=5)
        until(lambda: idle(app.backend))

    def test_of_results_nobody_has_any_more(self, app: Any, new_id: NewId) -> None:
        """Published, restored, frozen: nothing is watched, nothing keeps them."""
        until(lambda: not app.backend.client.watcher().streaming)  # that of the test before
        ids = [new_id() for _ in range(100)]
        group = app.GroupResult(new_id(), [app.AsyncResult(each) for each in ids])
        group.save()
        again = app.GroupResult.restore(group.id)
        gone = [weakref.ref(each) for each in (*group, *again)]
        until(lambda: idle(app.backend))
        assert not app.backend.client.watcher().streaming
        del group, again
        gc.collect()
        assert [ref() for ref in gone if ref() is not None] == []
        assert not app.backend._pending_results.concrete
        assert not app.backend._pending_results.weak
        assert not app.backend._pending_messages

    def test_of_an_abandoned_iteration(self, app: Any, new_id: NewId) -> None:
        """It is closed where it stands."""
        done = app.AsyncResult(new_id())
        app.backend.mark_as_done(done.id, 1)
        found = app.ResultSet([done, app.AsyncResult(new_id())]).iter_native(timeout=5)
        assert next(found)[0] == done.id
        found.close()
        until(lambda: idle(app.backend))

    def test_and_finalisers_take_no_lock(self, app: Any, new_id: NewId) -> None:
        """They run wherever the collector likes, also under our own locks."""
        result = app.AsyncResult(new_id())
        result.then(lambda _: None)
        watcher = app.backend.client.watcher()
        with watcher._lock:
            dismissing = threading.Thread(target=app.backend.remove_pending_result, args=[result])
            dismissing.start()
            dismissing.join(5)
            assert not dismissing.is_alive()
            del result
            gc.collect()
        until(lambda: idle(app.backend))


def test_a_value_that_cannot_be_read_ends_the_wait(app: Any, client: Client, new_id: NewId) -> None:
    """With what is wrong with it, not with a timeout."""
    task_id = new_id()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(app.AsyncResult(task_id).get, timeout=20)
        until(lambda: app.backend.client.watcher().streaming)
        value = value_pb2.Payload(content_type="application/x-yaml", data=b"1")
        raw(client, task_id=task_id, state=state_pb2.STATE_SUCCESS, value=value)
        with pytest.raises(ContentDisallowed):
            waiting.result()
    until(lambda: idle(app.backend))


def test_waits_end_with_the_client(make_app: Any, server: Server, new_id: NewId) -> None:
    """Whoever gets, awaits or listens is told, though others use the connection and wait on."""
    app = make_app(server.url + "?timeout=29")  # a client that no other test has
    client, kept, ids = app.backend.client, new_id(), [new_id() for _ in range(3)]
    told: list[BaseException] = []
    with Client(client._url_text) as other, ThreadPoolExecutor() as threads:
        goes_on = threads.submit(other.AsyncResult(kept).get, 20)
        app.AsyncResult(ids[0]).then(print, on_error=told.append)
        got = threads.submit(app.AsyncResult(ids[1]).get)
        awaited = threads.submit(asyncio.run, _await(install(app).AsyncResult(ids[2])))
        until(lambda: len(other.watcher()._hub.waiters) == 4)
        client.close()
        assert [type(each.exception(20)) for each in (got, awaited)] == [ClientClosedError] * 2
        until(lambda: [type(each) for each in told] == [ClientClosedError])
        other.store_result(kept, 1)
        assert goes_on.result(20) == 1


async def _await(result: Any) -> Any:
    return await result
