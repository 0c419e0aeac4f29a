"""Reading ahead: going over results in their order takes few calls, and shows what is so."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from resultd.celery import _ahead, _extras
from resultd.celery._records import text_id
from tests.support.celery_backend import count_calls
from tests.support.results import until

READS = ("GetResult", "BatchGetResults")


@pytest.fixture
def reads(app: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives how many calls have read something, from now on: no stream is open that would."""
    until(lambda: not app.backend.client.watcher().streaming)
    calls = count_calls(monkeypatch)
    return lambda: sum(calls[method] for method in READS)


def publish(app: Any, prefix: str, count: int) -> list[Any]:
    """Results of tasks this process published, as far as the backend is told."""
    results = [app.AsyncResult(f"{prefix}-{number:05}") for number in range(count)]
    for result in results:
        app.backend.on_task_call(None, result.id)
    return results


def finish(app: Any, results: list[Any]) -> None:
    """Let the tasks be done; each returns its place."""
    reports = [resultd_report(result.id, place) for place, result in enumerate(results)]
    app.backend.client.store_results(reports)


def resultd_report(task_id: str, value: Any) -> tuple[str, Any]:
    """A finished task, as the native client stores one."""
    return task_id, value


def test_publishing_asks_nothing(app: Any, new_id: Any, reads: Any) -> None:
    """To be told of a published task costs no call."""
    publish(app, new_id(), 100)
    assert reads() == 0


def test_ready_results_in_their_order_take_few_calls(
    app: Any, new_id: Any, reads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3,000 get()s of ready results, one after the other, are a handful of reads."""
    monkeypatch.setattr(_ahead, "KEPT", 60.0)  # however slow the machine is today
    results = publish(app, new_id(), 3_000)
    finish(app, results)
    assert [result.get(timeout=10) for result in results] == list(range(3_000))
    assert reads() <= 8


def test_a_group_that_is_asked_about_takes_few_calls(
    app: Any, new_id: Any, reads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """completed_count() of 1,000 results, none of them ready, reads in bulk too."""
    monkeypatch.setattr(_ahead, "FRESH", 5.0)  # however slow the machine is today
    results = app.ResultSet(publish(app, new_id(), 1_000))
    assert results.completed_count() == 0
    assert reads() <= 12


@pytest.mark.parametrize("odd", ["a" * 300, "a\nb", "\ud800", uuid.UUID(int=1), 7])
def test_an_odd_id_published_here_does_no_harm_to_others(app: Any, new_id: Any, odd: Any) -> None:
    """Those before it and after it are read ahead, and neither is refused for it."""
    first = publish(app, new_id(), 20)
    app.backend.on_task_call(None, odd)
    results = [*first, *publish(app, new_id(), 20)]
    finish(app, results)
    assert [result.get(timeout=10) for result in results] == list(range(40))
    app.backend.remove_pending_result(app.AsyncResult(odd))
    assert text_id(odd) not in app.backend._ahead._ids


def test_every_look_sees_what_was_stored_before_it(app: Any, new_id: Any) -> None:
    """A walk repeated after a moment finds what has happened meanwhile."""
    results = publish(app, new_id(), 50)
    group = app.ResultSet(results)
    assert group.completed_count() == 0
    finish(app, results)
    time.sleep(_ahead.FRESH)  # what was read ahead may be believed for so long, and no longer
    assert group.completed_count() == 50


def test_storing_ends_what_was_read_ahead(app: Any, new_id: Any) -> None:
    """A thread that stores a result sees it at once, whatever it had read."""
    results = publish(app, new_id(), 40)
    for result in results[:20]:
        assert not result.ready()
    app.backend.store_result(results[20].id, "now", "SUCCESS")
    assert results[20].ready()


def test_forgetting_ends_what_was_read_ahead(app: Any, new_id: Any) -> None:
    """A thread that forgets a result no longer sees it, though it had been read ahead."""
    results = publish(app, new_id(), 40)
    finish(app, results)
    for result in results[:20]:
        assert result.ready()
    results[20].forget()
    assert results[20].state == "PENDING"


def in_another_thread(work: Callable[[], object]) -> None:
    """Do something to the end."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "PROGRESS"])
def test_what_another_thread_has_stored_is_seen(
    app: Any, new_id: Any, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """From the moment that its store was answered."""
    monkeypatch.setattr(_ahead, "FRESH", 60.0)
    results = publish(app, new_id(), 40)
    for result in results[:20]:
        assert not result.ready()
    value: Any = KeyError("k") if state == "FAILURE" else {}
    in_another_thread(lambda: app.backend.store_result(results[20].id, value, state))
    assert results[20].state == state


def test_what_another_thread_has_forgotten_is_not_seen(
    app: Any, new_id: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SUCCESS that was read ahead included."""
    monkeypatch.setattr(_ahead, "KEPT", 60.0)
    results = publish(app, new_id(), 40)
    finish(app, results)
    for result in results[:20]:
        assert result.ready()
    in_another_thread(lambda: app.backend.forget(results[20].id))
    assert results[20].state == "PENDING"


def by_then(app: Any, task_id: str) -> None:
    """A callback is called."""
    called = threading.Event()
    result = app.AsyncResult(task_id)
    result.then(lambda _: called.set())
    assert called.wait(10)


def by_parent(app: Any, task_id: str) -> None:
    """What comes after it is waited for, and fails of itself."""
    child = app.AsyncResult(f"{task_id}-child", parent=app.AsyncResult(task_id))
    app.backend.client.store_result(child.id, ValueError("own"), state="FAILURE")
    with pytest.raises(ValueError, match="own"):
        child.get(timeout=10)
    assert child.parent.successful()


def by_await(app: Any, task_id: str) -> None:
    """It is awaited."""
    result = app.AsyncResult(task_id)
    asyncio.run(_extras._ready([result], []))
    assert result.successful()


WAYS: dict[str, Callable[[Any, str], object]] = {
    "set": lambda app, id_: app.ResultSet([app.AsyncResult(id_)]).get(timeout=10),
    "sets": lambda app, id_: app.ResultSet([app.AsyncResult(id_)] * 2).get(timeout=10),
    "read": lambda app, id_: list(app.backend.get_many([id_], max_iterations=1)),
    "exists": lambda app, id_: app.backend.task_result_exists(id_),
    "then": by_then,
    "parent": by_parent,
    "await": by_await,
}
"""How one comes to know that a result is ready."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_what_was_shown_as_ready_is_so_ever_after(
    app: Any, new_id: Any, monkeypatch: pytest.MonkeyPatch, way: str, elsewhere: bool
) -> None:
    """Whoever stored it, and whichever thread of this process heard of it first."""
    monkeypatch.setattr(_ahead, "FRESH", 60.0)
    results = publish(app, new_id(), 40)
    for result in results[:20]:
        assert not result.ready()
    finish(app, [results[20]])  # as another process does: nothing here is told
    wait = functools.partial(WAYS[way], app, results[20].id)
    in_another_thread(wait) if elsewhere else wait()
    assert app.AsyncResult(results[20].id).state == "SUCCESS"


def test_waiting_costs_ready_results_nothing(
    app: Any, new_id: Any, reads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were read along stay: only what was not ready is read again."""
    monkeypatch.setattr(_ahead, "KEPT", 60.0)
    results = publish(app, new_id(), 1_000)
    others = publish(app, new_id(), 10)
    finish(app, results + others)
    for place, result in enumerate(results):
        if place % 100 == 50:
            app.ResultSet([others.pop()]).get(timeout=10)
        assert result.get(timeout=10) == place
    assert reads() <= 6 + 10


def test_what_is_stored_while_it_is_read_ahead_is_seen(
    app: Any, new_id: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was under way: the record in it is the one before."""
    monkeypatch.setattr(_ahead, "FRESH", 60.0)
    results = publish(app, new_id(), 40)
    client = app.backend.client
    real = client.run

    def run(operation: Any) -> Any:
        answer = real(operation)
        if hasattr(answer, "metas") and len(answer.metas) == 16:
            in_another_thread(lambda: app.backend.store_result(results[5].id, 1, "SUCCESS"))
        return answer

    monkeypatch.setattr(client, "run", run)
    assert [result.ready() for result in results[:6]] == [False] * 5 + [True]


def test_storing_costs_ready_results_nothing(
    app: Any, new_id: Any, reads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are what they are, whatever other threads store meanwhile."""
    monkeypatch.setattr(_ahead, "KEPT", 60.0)
    results = publish(app, new_id(), 1_000)
    finish(app, results)
    for place, result in enumerate(results):
        if place % 10 == 0:
            in_another_thread(lambda: app.backend.store_result("other", {}, "PROGRESS"))
        assert result.get(timeout=10) == place
    assert reads() <= 6


def test_ids_out_of_order_are_read_one_by_one(app: Any, new_id: Any, reads: Any) -> None:
    """Who asks here and there gets what they ask for and nothing along."""
    results = publish(app, new_id(), 400)
    finish(app, results)
    for result in results[::20]:
        assert result.get(timeout=10) is not None
    assert reads() == 20


def test_waiting_one_after_the_other_does_not_read_on(app: Any, new_id: Any, reads: Any) -> None:
    """What was read along and not used is not read along again: waits stay waits."""
    results = publish(app, new_id(), 30)

    def work() -> None:
        for place, result in enumerate(results):
            time.sleep(_ahead.FRESH * 1.5)  # the pace of a worker; older than what was read
            app.backend.client.store_result(result.id, place)

    worker = threading.Thread(target=work)
    worker.start()
    assert [result.get(timeout=10) for result in results] == list(range(30))
    worker.join()
    assert reads() <= 90


def test_ids_go_with_their_results(app: Any, new_id: Any) -> None:
    """A result object that is deleted, or ready, takes its id along."""
    before = len(app.backend._ahead._ids)
    results = publish(app, new_id(), 10)
    finish(app, results[:5])
    for result in results[:5]:
        result.get(timeout=10)
    assert len(app.backend._ahead._ids) == before + 5
    del result, results
    assert len(app.backend._ahead._ids) == before


def test_ids_are_bounded(app: Any, new_id: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound ids are not remembered, and their results are read one by one."""
    monkeypatch.setattr(_ahead, "IDS_MAX", len(app.backend._ahead._ids) + 5)
    results = publish(app, new_id(), 10)
    finish(app, results)
    assert [result.get(timeout=10) for result in results] == list(range(10))


def test_threads_do_not_share_what_they_read(app: Any, new_id: Any) -> None:
    """Eight threads go over the same results at once and all see every value."""
    results = publish(app, new_id(), 300)
    finish(app, results)
    seen: list[list[Any]] = []

    def walk() -> None:
        seen.append([app.AsyncResult(result.id).get(timeout=10) for result in results])

    threads = [threading.Thread(target=walk) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == [list(range(300))] * 8


def test_a_restored_group_is_read_in_bulk(
    app: Any, new_id: Any, reads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that restores a saved group asks about it in few calls."""
    monkeypatch.setattr(_ahead, "KEPT", 60.0)
    prefix = new_id()
    members = [app.AsyncResult(f"{prefix}-{number:05}") for number in range(500)]
    app.GroupResult(prefix, members).save()
    finish(app, members)
    restored = app.GroupResult.restore(prefix)
    assert restored.ready()
    assert reads() <= 8
