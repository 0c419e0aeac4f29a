"""Laws of awaiting Celery's results and of iterating over mixed sets."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery.result import EagerResult, denied_join_result

from resultd.celery import install

NewId = Callable[[], str]

TIMEOUT_S = 20.0


@pytest.fixture
def installed(app: Any) -> Any:
    """An app whose results can be awaited."""
    return install(app)


def watched(backend: Any) -> bool:
    """Whether anybody still waits in this process."""
    return bool(backend.client.watcher()._hub.wanted)


async def nobody_waits(backend: Any) -> None:
    """Until the last one has left, which is noted at once and done a moment later."""
    while watched(backend):  # noqa: ASYNC110 (nobody tells when a wait has ended)
        await asyncio.sleep(0.01)


async def stored(backend: Any, *reports: tuple[str, Any, str]) -> None:
    """Store reports, off the loop, once the waits of others have begun."""
    while not watched(backend):  # noqa: ASYNC110 (nobody tells when a wait begins)
        await asyncio.sleep(0.01)
    for task_id, result, state in reports:
        await asyncio.to_thread(backend.store_result, task_id, result, state)


async def test_many_are_awaited_at_once(installed: Any, backend: Any, new_id: NewId) -> None:
    """Gathered results come in the order asked for, over one wait each, none left behind."""
    ids = [new_id() for _ in range(50)]
    waits = asyncio.gather(*map(installed.AsyncResult, ids))
    await stored(backend, *((task_id, task_id, "SUCCESS") for task_id in reversed(ids)))
    assert await asyncio.wait_for(waits, TIMEOUT_S) == ids
    await asyncio.wait_for(nobody_waits(backend), TIMEOUT_S)


async def test_a_failed_parent_ends_the_wait(installed: Any, backend: Any, new_id: NewId) -> None:
    """What comes after a task that failed, or was revoked, never runs: its parent's error."""
    parent = installed.AsyncResult(new_id())
    child = installed.AsyncResult(new_id(), parent=installed.AsyncResult(new_id(), parent=parent))
    waiting = asyncio.ensure_future(child)
    await stored(backend, (parent.id, KeyError("the first"), "FAILURE"))
    with pytest.raises(KeyError, match="the first"):
        await asyncio.wait_for(waiting, TIMEOUT_S)
    with pytest.raises(KeyError, match="the first"):  # known from now on, nothing is asked
        await child


async def test_a_parent_no_server_takes_is_none_to_wait_for(
    installed: Any, backend: Any, new_id: NewId
) -> None:
    """Its child has an id of its own, and has run."""
    child = installed.AsyncResult(new_id(), parent=installed.AsyncResult("a" * 300))
    waiting = asyncio.ensure_future(child)
    await stored(backend, (child.id, 1, "SUCCESS"))
    assert await asyncio.wait_for(waiting, TIMEOUT_S) == 1


async def test_a_groups_failed_parent_ends_its_wait(
    installed: Any, backend: Any, new_id: NewId
) -> None:
    """A group after a task that failed is not waited for."""
    parent = installed.AsyncResult(new_id())
    members = [installed.AsyncResult(new_id())]
    waiting = asyncio.ensure_future(installed.GroupResult(new_id(), members, parent=parent))
    await stored(backend, (parent.id, ValueError("before"), "FAILURE"))
    with pytest.raises(ValueError, match="before"):
        await asyncio.wait_for(waiting, TIMEOUT_S)


async def test_a_set_within_whose_parent_failed(
    installed: Any, backend: Any, new_id: NewId
) -> None:
    """Is never run: the set that it is of is not waited for."""
    parent = installed.AsyncResult(new_id())
    inner = installed.GroupResult(new_id(), [installed.AsyncResult(new_id())], parent=parent)
    outer = installed.GroupResult(new_id(), [inner, installed.AsyncResult(new_id())])
    waiting = asyncio.ensure_future(installed.GroupResult(new_id(), [outer]))
    await stored(backend, (parent.id, ValueError("within"), "FAILURE"))
    with pytest.raises(ValueError, match="within"):
        await asyncio.wait_for(waiting, TIMEOUT_S)


async def test_one_failure_ends_the_wait_for_a_set(
    installed: Any, backend: Any, new_id: NewId
) -> None:
    """As with get: the others are not waited for."""
    ids = [new_id(), new_id()]
    waiting = asyncio.ensure_future(installed.ResultSet([*map(installed.AsyncResult, ids)]))
    await stored(backend, (ids[1], ValueError("one of them"), "FAILURE"))
    with pytest.raises(ValueError, match="one of them"):
        await asyncio.wait_for(waiting, TIMEOUT_S)


async def test_giving_up_leaves_nothing_behind(installed: Any, backend: Any, new_id: NewId) -> None:
    """A time that runs out and a cancellation end the wait, on the server too."""
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(installed.AsyncResult(new_id()), 0.05)
    await asyncio.wait_for(nobody_waits(backend), TIMEOUT_S)
    waiting = asyncio.ensure_future(installed.AsyncResult(new_id()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(nobody_waits(backend), TIMEOUT_S)


def test_a_loop_that_is_closed_harms_nobody(
    installed: Any, backend: Any, new_id: NewId, caplog: pytest.LogCaptureFixture
) -> None:
    """A result that comes after its loop ended is dropped, and others are still told."""
    task_id = new_id()
    loop = asyncio.new_event_loop()
    waiting = installed.AsyncResult(task_id).__await__()
    task = loop.create_task(_drive(waiting))
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()
    backend.store_result(task_id, 1, "SUCCESS")
    assert installed.AsyncResult(task_id).get(timeout=TIMEOUT_S) == 1
    assert caplog.records == []
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # we know
    with contextlib.suppress(RuntimeError):  # asyncio's own: its loop is closed
        waiting.close()
    asyncio.run(asyncio.wait_for(nobody_waits(backend), TIMEOUT_S))


async def _drive(waiting: Any) -> Any:
    class Awaited:
        def __await__(self) -> Any:
            return waiting

    return await Awaited()


async def test_what_nobody_reports_is_not_waited_for(
    installed: Any, backend: Any, new_id: NewId
) -> None:
    """An ignored result is None, an eager one is there; in sets and nested ones as well."""
    ignored = installed.AsyncResult(new_id())
    ignored.ignored = True
    eager, late = EagerResult(new_id(), 3, "SUCCESS"), installed.AsyncResult(new_id())
    assert await ignored is None
    assert await eager == 3
    nested = installed.GroupResult(new_id(), [late, ignored])
    waiting = asyncio.ensure_future(installed.GroupResult(new_id(), [ignored, eager, nested]))
    await stored(backend, (late.id, 9, "SUCCESS"))
    assert await asyncio.wait_for(waiting, TIMEOUT_S) == [None, 3, [9, None]]
    assert await installed.ResultSet([]) == []


async def test_a_failed_eager_result_raises(installed: Any, new_id: NewId) -> None:
    """As its get does."""
    eager = EagerResult(new_id(), ValueError("at once"), "FAILURE")
    with pytest.raises(ValueError, match="at once"):
        await eager


async def test_a_value_that_is_not_accepted_raises(
    make_app: Callable[..., Any], new_id: NewId
) -> None:
    """An answer that cannot be read ends the wait with the reason."""
    pickling = make_app(result_serializer="pickle", result_accept_content=["pickle"])
    task_id = new_id()
    pickling.backend.store_result(task_id, {1}, "SUCCESS")
    with pytest.raises(Exception, match="pickle"):
        await install(make_app()).AsyncResult(task_id)


async def test_in_a_task_nothing_is_awaited(installed: Any, new_id: NewId) -> None:
    """Celery's rule for get holds: a task must not wait for others."""
    with denied_join_result():
        with pytest.raises(RuntimeError, match=r"Never call result\.get"):
            await installed.AsyncResult(new_id())
        with pytest.raises(RuntimeError, match=r"Never call result\.get"):
            installed.ResultSet([]).iterate()


def test_a_mixed_set_is_iterated_over(installed: Any, backend: Any, new_id: NewId) -> None:
    """What nobody reports comes first, the rest as it completes, a nested set as a list."""
    ignored = installed.AsyncResult(new_id())
    ignored.ignored = True
    one, two = installed.AsyncResult(new_id()), installed.AsyncResult(new_id())
    eager = EagerResult(new_id(), 3, "SUCCESS")
    nested = installed.GroupResult(new_id(), [one, ignored, two])
    values = installed.GroupResult(new_id(), [nested, one, ignored, eager]).iterate(TIMEOUT_S)
    assert [next(values), next(values)] == [None, 3]
    backend.store_result(one.id, 1, "SUCCESS")
    assert next(values) == 1
    timer = threading.Timer(0.05, backend.store_result, (two.id, 2, "SUCCESS"))
    timer.start()
    assert next(values) == [1, None, 2]
    assert list(values) == []
    timer.join()


@pytest.mark.parametrize("propagate", [True, False])
def test_a_mixed_set_after_a_task_that_failed(
    installed: Any, backend: Any, new_id: NewId, propagate: bool
) -> None:
    """What is never run comes to that task's error, as in any set."""
    parent, fine = installed.AsyncResult(new_id()), installed.AsyncResult(new_id())
    eager = EagerResult(new_id(), 3, "SUCCESS")
    lost = [installed.AsyncResult(new_id()) for _ in range(3)]
    members = [eager, lost[0], fine, installed.GroupResult(new_id(), [eager, *lost[1:]])]
    group = installed.GroupResult(new_id(), members, parent=parent)
    backend.store_result(fine.id, 1, "SUCCESS")
    backend.store_result(parent.id, ValueError("before"), "FAILURE")
    values = group.iterate(TIMEOUT_S, propagate=propagate)
    assert [next(values), next(values)] == [3, 1]
    if propagate:
        with pytest.raises(ValueError, match="before"):
            next(values)
    else:
        assert [type(value) for value in values] == [ValueError] * 2


def test_a_mixed_set_may_change_while_it_is_iterated_over(
    installed: Any, backend: Any, new_id: NewId
) -> None:
    """All that was in it is given, once: of a nested set what that held."""
    ids = [new_id() for _ in range(3)]
    for task_id in ids:
        backend.store_result(task_id, task_id, "SUCCESS")
    one, two, three = map(installed.AsyncResult, ids)
    eager = EagerResult(new_id(), 3, "SUCCESS")
    nested = installed.GroupResult(new_id(), [two, eager, three])
    results = installed.GroupResult(new_id(), [eager, one, nested])
    values = results.iterate(TIMEOUT_S)
    found = [next(values)]
    results.clear()
    nested.add(installed.AsyncResult(new_id()))
    found += values
    assert sorted(map(str, found)) == sorted(["3", ids[0], str([ids[1], 3, ids[2]])])


async def test_a_set_may_change_while_it_is_awaited(
    installed: Any, backend: Any, new_id: NewId
) -> None:
    """What is awaited is what was in it, and in the sets in it, when that began."""
    ids = [new_id() for _ in range(3)]
    one, two, three = map(installed.AsyncResult, ids)
    nested = installed.GroupResult(new_id(), [two, three])
    results = installed.GroupResult(new_id(), [one, nested])
    waiting = asyncio.ensure_future(results)
    while not watched(backend):  # noqa: ASYNC110 (nobody tells when a wait begins)
        await asyncio.sleep(0.01)
    results.remove(one)
    nested.add(installed.AsyncResult(new_id()))
    await stored(backend, *((task_id, task_id, "SUCCESS") for task_id in ids))
    assert await asyncio.wait_for(waiting, TIMEOUT_S) == [ids[0], ids[1:]]


def test_the_time_of_an_iteration_is_its_own(installed: Any, new_id: NewId) -> None:
    """It ends with TimeoutError when it ran out, not a second later."""
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        list(installed.ResultSet([installed.AsyncResult(new_id())]).iterate(timeout=0.1))
    assert 0.1 <= time.monotonic() - began < 1.0
