"""`then()`: callbacks of a blocking program."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from resultd.client import Client
from resultd.results import AsyncResult
from tests.support.results import until

NewId = Callable[[], str]


class TestThen:
    def test_it_fires_by_itself(self, client: Client, new_id: NewId) -> None:
        """Nobody waits; the callback gets the result, once."""
        result, done = client.AsyncResult(new_id()), threading.Event()
        heard: list[Any] = []

        def hear(ready: AsyncResult) -> None:
            heard.append(ready.get())
            done.set()

        result.then(hear)
        client.store_result(result.id, 5)
        assert done.wait(5)
        result.then(heard.append)
        assert heard == [5, result]

    def test_a_ready_result_is_told_at_once(self, client: Client, new_id: NewId) -> None:
        """From the caller's thread."""
        result = client.AsyncResult(new_id())
        heard: list[Any] = []
        client.store_result(result.id, 5)
        assert result.get() == 5
        result.then(lambda r: heard.append(threading.current_thread()))
        assert heard == [threading.current_thread()]

    def test_a_failing_callback_harms_nobody(
        self, client: Client, new_id: NewId, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its error goes to on_error or the log; the others are told."""
        result, done = client.AsyncResult(new_id()), threading.Event()
        errors: list[BaseException] = []
        result.then(lambda _: 1 / 0)
        result.then(lambda _: 1 / 0, on_error=errors.append)
        result.then(lambda _: done.set())
        client.store_result(result.id, 5)
        assert done.wait(5)
        assert [type(error) for error in errors] == [ZeroDivisionError]
        assert "then() callback failed" in caplog.text

    def test_waiting_inside_a_callback_is_refused(self, client: Client, new_id: NewId) -> None:
        """It would wait for the thread it blocks."""
        result, other = client.AsyncResult(new_id()), client.AsyncResult(new_id())
        errors: list[BaseException] = []
        done = threading.Event()

        def fail(error: BaseException) -> None:
            errors.append(error)
            done.set()

        result.then(lambda _: other.get(timeout=5), on_error=fail)
        client.store_result(result.id, 5)
        assert done.wait(5)
        assert isinstance(errors[0], RuntimeError)

    def test_a_weak_callback_goes_with_its_result(self, client: Client, new_id: NewId) -> None:
        """A result nobody holds any more is not told."""
        heard: list[Any] = []
        task_id = new_id()
        client.AsyncResult(task_id).then(heard.append, weak=True)
        kept = client.AsyncResult(task_id)
        kept.then(heard.append, weak=True)
        client.store_result(task_id, 5)
        client.AsyncResult(task_id).get(timeout=5)
        until(lambda: heard == [kept])

    def test_a_set_is_told_when_all_are_ready(self, client: Client, new_id: NewId) -> None:
        """Once, with the set."""
        ids, done = [new_id() for _ in range(3)], threading.Event()
        heard: list[Any] = []
        results = client.ResultSet([client.AsyncResult(i) for i in ids])
        results.then(heard.append)
        results.then(lambda _: done.set())
        client.store_results([(i, 1) for i in ids[:2]])
        assert not done.wait(0.1)
        client.store_result(ids[2], 1)
        assert done.wait(5)
        assert heard == [results]

    def test_after_forget_the_next_report_is_told(self, client: Client, new_id: NewId) -> None:
        """Not the one that was forgotten; who was told of that is not told again."""
        result, done = client.AsyncResult(new_id()), threading.Event()
        first: list[Any] = []
        heard: list[Any] = []

        def hear(ready: AsyncResult) -> None:
            heard.append(ready.get(timeout=5))
            done.set()

        result.then(first.append)
        client.store_result(result.id, 5)
        until(lambda: bool(first))
        result.forget()
        result.then(hear)
        assert heard == []
        client.store_result(result.id, 6)
        assert done.wait(5)
        assert (first, heard) == ([result], [6])

    def test_a_set_is_told_of_what_is_in_it_now(self, client: Client, new_id: NewId) -> None:
        """Some that were ready have been forgotten, or others added."""
        ids = [new_id(), new_id()]
        results = client.ResultSet([client.AsyncResult(ids[0])])
        client.store_result(ids[0], 1)
        heard: list[Any] = []
        results.then(lambda _: heard.append("first"))
        until(lambda: heard == ["first"])
        results.forget()
        results.add(client.AsyncResult(ids[1]))
        results.then(lambda told: heard.append([r.get(timeout=5) for r in told]))
        client.store_results([(task_id, 2) for task_id in ids])
        until(lambda: len(heard) == 2)
        assert heard == ["first", [2, 2]]

    def test_forgetting_in_a_callback_leaves_nothing_behind(
        self, client: Client, new_id: NewId
    ) -> None:
        """It was called: nobody listens for the next report."""
        result = client.AsyncResult(new_id())
        client.store_result(result.id, 5)
        assert result.get(timeout=5) == 5
        result.then(lambda told: told.forget())
        assert not result.exists()
        assert result._callback is None

    def test_throw_tells_on_error(self, client: Client) -> None:
        """As Celery's promise."""
        result = client.AsyncResult("x")
        errors: list[BaseException] = []
        result.on_ready.then(lambda _: None, errors.append)
        result.throw(KeyError("k"))
        assert str(errors) == "[KeyError('k')]"
