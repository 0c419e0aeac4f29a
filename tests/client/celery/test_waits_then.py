"""`then()`: callbacks that nobody has to wait for."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import queue
import select
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from kombu.exceptions import ContentDisallowed
from vine import barrier, promise

from resultd.celery import install
from resultd.client import Client
from resultd.v1 import state_pb2, value_pb2
from tests.client.celery.test_records import raw
from tests.client.celery.test_waits import idle
from tests.support.results import until

NewId = Callable[[], str]
WAIT = 5.0


class Interrupted(promise):  # type: ignore[misc]  # vine has no types
    """A promise to whose first listener something happens just before it is kept.

    Its `then()` has seen that the result is not ready, and looks for the other listeners.
    """

    def __init__(self, result: Any, meanwhile: Callable[[], object]) -> None:
        self._work = [meanwhile]
        self._listeners: Any = None
        super().__init__(result._on_fulfilled, weak=True)

    @property
    def _lvpending(self) -> Any:
        if self._work:
            self._work.pop()()
        return self._listeners

    @_lvpending.setter
    def _lvpending(self, listeners: Any) -> None:
        self._listeners = listeners


class TestThen:
    def test_fires_by_itself(self, app: Any, new_id: NewId) -> None:
        """With the result, in a thread of its own."""
        result = app.AsyncResult(new_id())
        heard: queue.Queue[Any] = queue.Queue()
        result.then(lambda ready: heard.put((ready, threading.current_thread())))
        app.backend.mark_as_done(result.id, 5)
        ready, thread = heard.get(timeout=WAIT)
        assert ready is result
        assert ready.get(timeout=0) == 5
        assert thread is not threading.current_thread()
        until(lambda: idle(app.backend))

    def test_fires_for_failures_too(self, app: Any, new_id: NewId) -> None:
        """They are results."""
        result = app.AsyncResult(new_id())
        heard: queue.Queue[Any] = queue.Queue()
        result.then(heard.put)
        app.backend.mark_as_failure(result.id, KeyError("k"))
        assert heard.get(timeout=WAIT).failed()

    def test_keeps_its_result(self, app: Any, new_id: NewId) -> None:
        """Nobody else has to."""
        heard: queue.Queue[Any] = queue.Queue()
        task_id = new_id()
        app.AsyncResult(task_id).then(lambda ready: heard.put(ready.id))
        gc.collect()
        app.backend.mark_as_done(task_id, 5)
        assert heard.get(timeout=WAIT) == task_id
        until(lambda: idle(app.backend))

    def test_of_what_is_ready_fires_at_once(self, app: Any, new_id: NewId) -> None:
        """Without a call, where it is called."""
        result = app.AsyncResult(new_id())
        app.backend.mark_as_done(result.id, 5)
        result.get(timeout=5)
        heard: list[Any] = []
        result.then(lambda ready: heard.append(threading.current_thread()))
        assert heard == [threading.current_thread()]

    def test_of_what_is_there_but_not_known(self, app: Any, new_id: NewId) -> None:
        """Is told soon."""
        result = app.AsyncResult(new_id())
        app.backend.mark_as_done(result.id, 5)
        heard: queue.Queue[Any] = queue.Queue()
        result.then(heard.put)
        assert heard.get(timeout=WAIT) is result

    def test_fires_each_callback_once(self, app: Any, new_id: NewId) -> None:
        """Also if somebody waits, too."""
        result = app.AsyncResult(new_id())
        heard: queue.Queue[Any] = queue.Queue()
        for name in ("one", "two"):
            result.then(lambda _, name=name: heard.put(name))
        app.backend.mark_as_done(result.id, 5)
        result.get(timeout=WAIT)
        assert {heard.get(timeout=WAIT), heard.get(timeout=WAIT)} == {"one", "two"}
        until(lambda: idle(app.backend))
        assert heard.empty()

    @pytest.mark.parametrize("how", ["get", "await"])
    def test_that_still_runs_is_not_begun_again(self, app: Any, new_id: NewId, how: str) -> None:
        """By a thread that waits for the result, and learns of it at the same moment."""
        result, other = install(app).AsyncResult(new_id()), app.AsyncResult(new_id())
        threads: list[threading.Thread] = []
        passed: queue.Queue[str] = queue.Queue()
        ended = threading.Event()

        def callback(_: Any) -> None:
            threads.append(threading.current_thread())
            if len(threads) == 1:
                ended.wait(WAIT)

        async def awaited() -> None:
            await result

        def wait() -> None:
            asyncio.run(awaited()) if how == "await" else result.get(timeout=WAIT)
            passed.put("the one who waits")

        result.then(callback)
        other.then(lambda _: passed.put("the callbacks' thread"))
        waiting = threading.Thread(target=wait)
        waiting.start()
        until(lambda: len(app.backend.client.watcher()._hub.waiters) == 3)
        app.backend.mark_as_done(result.id, 5)
        app.backend.mark_as_done(other.id, 5)
        first = passed.get(timeout=WAIT)  # the other one runs the callback, or has not come yet
        until(lambda: bool(threads))
        ended.set()
        assert {first, passed.get(timeout=WAIT)} == {"the one who waits", "the callbacks' thread"}
        waiting.join()
        assert len(threads) == 1

    def test_that_still_runs_is_not_told_an_error(self, app: Any, new_id: NewId) -> None:
        """Of the same result, which somebody got who raises it; and `cancel` comes too late."""
        result = app.AsyncResult(new_id())
        heard: list[Any] = []

        def callback(ready: Any) -> None:
            heard.append("called")
            with pytest.raises(KeyError):
                ready.get(timeout=0)
            ready.on_ready.cancel()

        result.then(callback, on_error=heard.append)
        app.backend.mark_as_failure(result.id, KeyError("k"))
        until(lambda: result.on_ready.cancelled)
        assert heard == ["called"]

    def test_gives_what_is_told_after_it(self, app: Any, new_id: NewId) -> None:
        """A promise of what the callback returns, once that is there."""
        result = app.AsyncResult(new_id())
        heard: queue.Queue[Any] = queue.Queue()
        result.then(lambda ready: ready.result + 1).then(heard.put)
        app.backend.mark_as_done(result.id, 5)
        assert heard.get(timeout=WAIT) == 6

    def test_is_heard_though_the_result_comes_before_it_is_kept(
        self, app: Any, new_id: NewId
    ) -> None:
        """Nothing is watched before, and who waits beside it may be told meanwhile."""
        result = app.AsyncResult(new_id())
        watched: list[bool] = []

        def meanwhile() -> None:
            watched.append(not idle(app.backend))
            waiting = threading.Thread(target=lambda: result.get(timeout=WAIT))
            waiting.start()
            waiting.join()

        app.backend.mark_as_done(result.id, 5)
        result.on_ready = Interrupted(result, meanwhile)
        heard: queue.Queue[Any] = queue.Queue()
        result.then(heard.put)
        assert watched == [False]
        assert heard.get(timeout=WAIT) is result

    def test_is_told_an_error_that_comes_before_it_is_kept(self, app: Any, new_id: NewId) -> None:
        """As one that comes later."""
        result = app.AsyncResult(new_id())
        error = KeyError("k")
        heard: list[Any] = []
        result.on_ready = Interrupted(result, lambda: result.on_ready.throw(error, propagate=False))
        result.then(lambda _: None, on_error=heard.append)
        assert heard == [error]
        assert idle(app.backend)

    def test_that_is_cancelled_is_not_called(self, app: Any, new_id: NewId) -> None:
        """Nor is it told an error."""
        result = app.AsyncResult(new_id())
        heard: list[Any] = []
        listener = result.then(heard.append, on_error=heard.append)
        result.on_ready.cancel()
        assert listener.cancelled
        app.backend.mark_as_done(result.id, 5)
        until(lambda: idle(app.backend))
        assert heard == []

    def test_may_itself_wait(self, app: Any, new_id: NewId) -> None:
        """For another result: its thread is not the one that brings them."""
        result, other = app.AsyncResult(new_id()), app.AsyncResult(new_id())
        heard: queue.Queue[Any] = queue.Queue()
        result.then(lambda _: heard.put(other.get(timeout=WAIT)))
        app.backend.mark_as_done(result.id, 5)
        app.backend.mark_as_done(other.id, 6)
        assert heard.get(timeout=WAIT) == 6

    def test_that_fails_harms_nobody(
        self, app: Any, new_id: NewId, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its error goes to on_error, or to the log."""
        first, second = app.AsyncResult(new_id()), app.AsyncResult(new_id())
        third = app.AsyncResult(new_id())
        heard: queue.Queue[Any] = queue.Queue()
        first.then(lambda _: 1 / 0)
        second.then(lambda _: 1 / 0, on_error=lambda *args: heard.put(args[-1]))
        third.then(heard.put)
        with caplog.at_level(logging.ERROR, "resultd.celery"):
            for result in (first, second, third):
                app.backend.mark_as_done(result.id, 5)
            until(lambda: first._cache is not None)
            assert isinstance(heard.get(timeout=WAIT), ZeroDivisionError)
            assert heard.get(timeout=WAIT) is third
        assert "then() callback failed" in caplog.text

    def test_that_is_weak_fires_by_itself(self, app: Any, new_id: NewId) -> None:
        """As long as somebody has the result."""
        result = app.AsyncResult(new_id())
        heard: queue.Queue[Any] = queue.Queue()
        result.then(lambda ready: heard.put(ready.id), weak=True)
        app.backend.mark_as_done(result.id, 5)
        assert heard.get(timeout=WAIT) == result.id
        until(lambda: idle(app.backend))

    def test_that_is_weak_goes_with_its_result(self, app: Any, new_id: NewId) -> None:
        """It is not watched any more, unless another listener keeps the result."""
        dropped, kept = app.AsyncResult(new_id()), app.AsyncResult(new_id())
        heard: queue.Queue[Any] = queue.Queue()
        for result in (dropped, kept):
            result.then(lambda ready: heard.put(ready.id), weak=True)
        kept.then(lambda _: None)
        ids, gone = [dropped.id, kept.id], weakref.ref(dropped)
        del result, dropped, kept
        assert gone() is None
        for task_id in ids:
            app.backend.mark_as_done(task_id, 5)
        assert heard.get(timeout=WAIT) == ids[1]
        until(lambda: idle(app.backend))
        assert heard.empty()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork on this platform")
    def test_fires_in_a_forked_child_that_listens_again(self, app: Any, new_id: NewId) -> None:
        """The child watches the result for itself."""
        result = app.AsyncResult(new_id())
        result.then(lambda _: None)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            result.then(lambda _: os.write(writing, b"told"))
            time.sleep(WAIT)
            os._exit(0)
        os.close(writing)
        try:
            app.backend.mark_as_done(result.id, 5)
            ready, _, _ = select.select([reading], [], [], WAIT)
            assert ready
            assert os.read(reading, 10) == b"told"
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reading)

    def test_that_exits_harms_nobody(
        self, app: Any, new_id: NewId, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A task that ended with SystemExit, whose result is got in a callback, is enough."""
        first, second = app.AsyncResult(new_id()), app.AsyncResult(new_id())
        heard: queue.Queue[Any] = queue.Queue()
        with caplog.at_level(logging.ERROR, "resultd.celery"):
            first.then(lambda ready: ready.get())
            app.backend.mark_as_failure(first.id, SystemExit(1))
            until(lambda: "then() callback failed" in caplog.text)
        second.then(heard.put)
        app.backend.mark_as_done(second.id, 5)
        assert heard.get(timeout=WAIT) is second

    def test_of_a_value_that_cannot_be_read(self, app: Any, client: Client, new_id: NewId) -> None:
        """Is told the error, and is over."""
        result = app.AsyncResult(new_id())
        heard: queue.Queue[Any] = queue.Queue()
        result.then(lambda _: None, on_error=lambda *args: heard.put(args[-1]))
        value = value_pb2.Payload(content_type="application/x-yaml", data=b"1")
        raw(client, task_id=result.id, state=state_pb2.STATE_SUCCESS, value=value)
        assert isinstance(heard.get(timeout=WAIT), ContentDisallowed)
        until(lambda: idle(app.backend))

    def test_is_not_fired_after_forget(self, app: Any, new_id: NewId) -> None:
        """Who forgets a result wants to hear no more of it."""
        result = app.AsyncResult(new_id())
        heard: list[Any] = []
        result.then(heard.append)
        result.forget()
        until(lambda: idle(app.backend))
        app.backend.mark_as_done(result.id, 5)
        other = app.AsyncResult(new_id())
        told = threading.Event()
        other.then(lambda _: told.set())
        app.backend.mark_as_done(other.id, 5)
        assert told.wait(WAIT)
        assert heard == []

    def test_of_an_unfit_id_is_refused(self, app: Any) -> None:
        """Where it is asked for, and nothing is left of it."""
        result = app.AsyncResult("x" * 300)
        heard: list[Any] = []
        with pytest.raises(ValueError, match="id"):
            result.then(heard.append)
        until(lambda: idle(app.backend))
        result.on_ready(result)
        assert heard == []


class TestSets:
    def test_that_are_made_are_not_watched(self, app: Any, new_id: NewId) -> None:
        """Each has a barrier over its members from the beginning; nobody listens to it yet."""
        results = [app.AsyncResult(new_id()) for _ in range(3)]
        app.ResultSet(results)
        app.GroupResult(new_id(), results, ready_barrier=barrier(results))
        until(lambda: idle(app.backend))

    def test_members_that_somebody_listens_to_tell_their_set(self, app: Any, new_id: NewId) -> None:
        """The barrier is told with them."""
        results = app.ResultSet([app.AsyncResult(new_id()) for _ in range(2)])
        heard: queue.Queue[Any] = queue.Queue()
        results.then(lambda ready: heard.put(len(ready)))
        for result in results:
            result.then(lambda _: None)
            app.backend.mark_as_done(result.id, 5)
        assert heard.get(timeout=WAIT) == 2
