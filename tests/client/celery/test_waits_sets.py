"""Waiting for sets and groups of results."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.client.celery.test_waits import idle
from tests.support.celery_backend import count_calls
from tests.support.results import later, until

NewId = Callable[[], str]


def set_of(app: Any, new_id: NewId, size: int) -> Any:
    """A set of results that are not there yet."""
    return app.ResultSet([app.AsyncResult(new_id()) for _ in range(size)])


def done(app: Any, *results: Any) -> None:
    """Each is ready, with its id as value."""
    for result in results:
        app.backend.mark_as_done(result.id, result.id)


class TestIterNative:
    def test_gives_results_as_they_come(self, app: Any, new_id: NewId) -> None:
        """Not in the order of the set."""
        results = set_of(app, new_id, 3)
        done(app, results[2])
        later(0.1, lambda: done(app, results[1]))
        later(0.3, lambda: done(app, results[0]))
        found = list(results.iter_native(timeout=5))
        assert [task_id for task_id, _ in found] == [
            results[2].id,
            results[1].id,
            results[0].id,
        ]
        assert all(meta["result"] == task_id for task_id, meta in found)

    def test_of_nothing_is_nothing(self, app: Any) -> None:
        """At once."""
        assert list(app.ResultSet([]).iter_native(timeout=0)) == []
        assert list(app.backend.iter_native(app.GroupResult("empty", []), timeout=0)) == []

    def test_of_what_is_known_asks_nobody(
        self, app: Any, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The results have been ready before."""
        results = set_of(app, new_id, 3)
        done(app, *results)
        assert results.get(timeout=5) == [result.id for result in results]
        calls = count_calls(monkeypatch)
        assert len(list(results.iter_native(timeout=0))) == 3
        assert not calls

    def test_reads_what_there_is_in_one_call(
        self, app: Any, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many there are."""
        results = set_of(app, new_id, 300)
        done(app, *results)
        calls = count_calls(monkeypatch)
        assert len(list(results.iter_native(timeout=5))) == 300
        assert dict(calls) == {"BatchGetResults": 1}

    def test_gives_a_set_within_once_all_of_it_is_ready(self, app: Any, new_id: NewId) -> None:
        """With its results."""
        inner = app.GroupResult(new_id(), [app.AsyncResult(new_id()) for _ in range(2)])
        deep = app.GroupResult(new_id(), [inner, app.AsyncResult(new_id())])
        single = app.AsyncResult(new_id())
        results = app.ResultSet([deep, single])
        done(app, single, *inner)
        later(0.1, lambda: done(app, deep[1]))
        found = list(results.iter_native(timeout=5))
        assert [id_ for id_, _ in found] == [single.id, deep.id]
        assert found[1][1] == [inner, deep[1]]

    def test_a_set_within_is_what_it_was(self, app: Any, new_id: NewId) -> None:
        """What is added to it meanwhile is not waited for."""
        inner = app.GroupResult(new_id(), [app.AsyncResult(new_id()) for _ in range(2)])
        before = list(inner)

        def change() -> None:
            inner.add(app.AsyncResult(new_id()))
            done(app, *before)

        outer = app.ResultSet([inner])
        ((_, found),) = outer.iter_native(timeout=5, interval=0.01, on_interval=change)
        assert found == before

    def test_of_one_result_twice(self, app: Any, new_id: NewId) -> None:
        """Both places are filled."""
        result = app.AsyncResult(new_id())
        again = app.AsyncResult(result.id)
        done(app, result)
        found = list(app.backend.iter_native(app.GroupResult("g", [result, again]), timeout=5))
        assert [task_id for task_id, _ in found] == [result.id, result.id]

    def test_a_failed_parent_is_what_its_members_come_to(self, app: Any, new_id: NewId) -> None:
        """What stands after a task that failed never runs: its error is told, at once."""
        parent = app.AsyncResult(new_id())
        members = [app.AsyncResult(new_id()) for _ in range(3)]
        group = app.GroupResult(new_id(), members, parent=parent)
        done(app, members[1])
        later(0.1, lambda: app.backend.mark_as_failure(parent.id, KeyError("first")))
        with pytest.raises(KeyError, match="first"):
            group.get(timeout=10)
        found = dict(group.iter_native(timeout=5))
        assert found[members[1].id]["status"] == "SUCCESS"
        assert {found[members[n].id]["status"] for n in (0, 2)} == {"FAILURE"}
        assert members[0]._cache is None

    def test_a_parent_that_is_fine_changes_nothing(self, app: Any, new_id: NewId) -> None:
        """Parents that succeed, or are not heard of, are not waited for."""
        grand, parent = app.AsyncResult(new_id()), app.AsyncResult(new_id())
        parent.parent = grand
        members = [app.AsyncResult(new_id()) for _ in range(3)]
        done(app, grand, *members)
        group = app.GroupResult(new_id(), members, parent=parent)
        assert group.get(timeout=5) == [member.id for member in members]

    @pytest.mark.parametrize("timeout", [0, 0.2])
    def test_ends_in_time(self, app: Any, new_id: NewId, timeout: float) -> None:
        """After what there is."""
        results = set_of(app, new_id, 2)
        done(app, results[1])
        found = results.iter_native(timeout=timeout)
        assert next(found)[0] == results[1].id
        began = time.monotonic()
        with pytest.raises(app.backend.TimeoutError):
            next(found)
        assert time.monotonic() - began < timeout + 1
        until(lambda: idle(app.backend))

    def test_calls_back(self, app: Any, new_id: NewId) -> None:
        """`on_message` for every state, `on_interval` every so often."""
        results = set_of(app, new_id, 2)
        messages: list[Any] = []
        intervals: list[float] = []
        app.backend.mark_as_started(results[0].id)
        later(0.3, lambda: done(app, *results))
        for _ in results.iter_native(
            timeout=5,
            interval=0.05,
            on_message=lambda meta: messages.append((meta["task_id"], meta["status"])),
            on_interval=lambda: intervals.append(time.monotonic()),
        ):
            pass
        assert (results[0].id, "STARTED") in messages
        assert (results[1].id, "SUCCESS") in messages
        assert len(intervals) >= 2

    def test_of_many(self, app: Any, new_id: NewId) -> None:
        """Two thousand, stored while they are waited for."""
        results = set_of(app, new_id, 2_000)
        client = app.backend.client
        later(0, lambda: client.store_results([(r.id, 1) for r in results]))
        assert sum(1 for _ in results.iter_native(timeout=30)) == 2_000


class TestGet:
    def test_gives_values_in_the_order_of_the_set(self, app: Any, new_id: NewId) -> None:
        """Whatever the order they came in."""
        results = set_of(app, new_id, 3)
        for number, result in enumerate(reversed(results.results)):
            later(0.05 * number, partial(done, app, result))
        assert results.get(timeout=5) == [result.id for result in results]
        assert results.successful()
        assert results.completed_count() == 3

    def test_raises_the_first_failure_to_arrive(self, app: Any, new_id: NewId) -> None:
        """Others may be pending for ever."""
        results = set_of(app, new_id, 3)
        later(0.1, lambda: app.backend.mark_as_failure(results[1].id, KeyError("early")))
        with pytest.raises(KeyError, match="early"):
            results.get(timeout=10)
        assert results.failed()
        assert results.waiting()

    def test_hands_failures_over(self, app: Any, new_id: NewId) -> None:
        """`propagate=False`."""
        results = set_of(app, new_id, 2)
        done(app, results[0])
        app.backend.mark_as_failure(results[1].id, KeyError("k"))
        value, error = results.get(timeout=5, propagate=False)
        assert value == results[0].id
        assert isinstance(error, KeyError)

    def test_calls_back_for_each(self, app: Any, new_id: NewId) -> None:
        """As they come."""
        results = set_of(app, new_id, 2)
        called: list[Any] = []
        done(app, results[1])
        later(0.1, lambda: done(app, results[0]))
        results.get(timeout=5, callback=lambda *args: called.append(args))
        assert called == [(results[1].id, results[1].id), (results[0].id, results[0].id)]

    @pytest.mark.parametrize("odd", ["a" * 300, "a\nb"])
    def test_a_parent_no_server_takes_is_none_to_wait_for(
        self, app: Any, new_id: NewId, odd: str
    ) -> None:
        """Its child has an id of its own, and has run."""
        parent = app.AsyncResult(odd)
        child = app.AsyncResult(new_id(), parent=parent)
        group = app.GroupResult(new_id(), [app.AsyncResult(new_id())], parent=parent)
        later(0.1, lambda: done(app, child, *group))
        assert child.get(timeout=5, interval=0.02) == child.id
        assert group.get(timeout=5, interval=0.02) == [group[0].id]

    def test_of_nested_groups(self, app: Any, new_id: NewId) -> None:
        """Lists within lists."""
        inner = app.GroupResult(new_id(), [app.AsyncResult(new_id()) for _ in range(2)])
        results = app.ResultSet([inner, app.AsyncResult(new_id())])
        done(app, *inner, results[1])
        assert results.get(timeout=5) == [[inner[0].id, inner[1].id], results[1].id]

    def test_joins_one_after_the_other_as_well(self, app: Any, new_id: NewId) -> None:
        """`join`, for whoever has a mixed set."""
        results = set_of(app, new_id, 2)
        later(0.1, lambda: done(app, *results))
        assert results.join(timeout=5) == [result.id for result in results]

    def test_asks_for_all_states_in_one_call(
        self, app: Any, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`_iter_meta`, what Celery's `ready()` and the like could be made of."""
        results = set_of(app, new_id, 50)
        done(app, *results)
        calls = count_calls(monkeypatch)
        assert len(list(results._iter_meta())) == 50
        assert dict(calls) == {"BatchGetResults": 1}

    def test_fires_its_callbacks(self, app: Any, new_id: NewId) -> None:
        """`then` of a set, once somebody waits for its members."""
        results = set_of(app, new_id, 3)
        fired: list[Any] = []
        results.then(lambda ready: fired.append(len(ready)))
        done(app, *results)
        assert fired == []
        results.get(timeout=5)
        assert fired == [3]
