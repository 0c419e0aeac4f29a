"""Reports of an event loop that share calls: each has its own time, its own error, its own end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import resultd.aio
from resultd._effects import Call
from resultd._reporter import LoopReporter
from resultd.errors import ClientClosedError, UnavailableError, make
from resultd.testing import Server
from tests.client.test_reporter import answer, ids, report
from tests.support.in_process import until


async def test_many_tasks_store_through_few_calls(server: Server) -> None:
    """As threads do: 500 tasks at once make a handful of calls."""
    async with resultd.aio.Client(server.url) as client:
        outcomes = await asyncio.gather(*(client.store_result(f"a{n}", n) for n in range(500)))
        assert [outcome.version for outcome in outcomes] == [1] * 500
        assert await client.AsyncResult("a499").get(timeout=5) == 499


async def test_a_cancelled_task_takes_nobodys_report_along() -> None:
    """A task that is cancelled while its report is under way leaves the call to the others."""
    opened, entered = asyncio.Event(), asyncio.Event()

    async def call(each: Call) -> Any:
        entered.set()
        await opened.wait()
        return answer(each)

    reporter = LoopReporter(call, asyncio.ensure_future)
    first, second, third = (
        asyncio.ensure_future(reporter.store(report(str(n)))) for n in range(1, 4)
    )
    await entered.wait()
    first.cancel()
    second.cancel()
    opened.set()
    assert (await third).version == 3
    assert first.cancelled()
    assert second.cancelled()


async def test_closing_tells_who_still_waits() -> None:
    """When the sending task is cancelled, as a closed client does, everybody is told."""
    entered = asyncio.Event()

    async def call(each: Call) -> Any:
        entered.set()
        await asyncio.Event().wait()

    tasks: list[asyncio.Task[None]] = []

    def spawn(work: Any) -> asyncio.Task[None]:
        tasks.append(asyncio.ensure_future(work))
        return tasks[-1]

    reporter = LoopReporter(call, spawn)
    waiting = [asyncio.ensure_future(reporter.store(report(str(n)))) for n in range(3)]
    await entered.wait()
    tasks[0].cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ClientClosedError] * 3


@pytest.mark.parametrize("carried", [1, 3])
async def test_what_is_wrong_here_is_raised_as_it_is(carried: int) -> None:
    """A file that cannot be read is no server that cannot be reached; the next report goes on."""
    failing = [True]

    async def call(each: Call) -> Any:
        if failing.pop():
            raise FileNotFoundError(2, "No such file", "ca.pem")
        return answer(each)

    reporter = LoopReporter(call, asyncio.ensure_future)
    stores = [reporter.store(report(str(n))) for n in range(carried)]
    outcomes = await asyncio.gather(*stores, return_exceptions=True)
    assert [repr(outcome) for outcome in outcomes] == [
        "FileNotFoundError(2, 'No such file')"
    ] * carried
    assert len({id(outcome) for outcome in outcomes}) == carried, "each its own traceback"
    failing.append(False)
    assert (await reporter.store(report("7"))).version == 7


async def test_a_report_is_told_when_its_time_is_over() -> None:
    """In the queue and under way with more patient ones; a call lasts as long as those may wait."""
    entered, opened = asyncio.Event(), asyncio.Event()
    calls: list[list[str]] = []
    given: list[float] = []

    async def call(each: Call) -> Any:
        calls.append(ids(each))
        given.append(each.timeout)
        entered.set()
        await opened.wait()
        return answer(each)

    reporter = LoopReporter(call, asyncio.ensure_future)
    patient = [asyncio.ensure_future(reporter.store(report(str(n), 60.0))) for n in (1, 2)]
    hasty = asyncio.ensure_future(reporter.store(report("3", 0.05)))
    await entered.wait()
    queued = asyncio.ensure_future(reporter.store(report("4", 0.05)))
    late = asyncio.ensure_future(reporter.store(report("5", 60.0)))
    for each in (hasty, queued):
        with pytest.raises(UnavailableError, match="too long") as caught:
            await each
        assert caught.value.code == "DEADLINE_EXCEEDED"
    opened.set()
    assert [(await each).version for each in (*patient, late)] == [1, 2, 5]
    assert calls == [["1", "2", "3"], ["5"]]
    assert all(50.0 < timeout < 60.0 for timeout in given)
    assert not reporter._told


async def test_a_report_that_waited_has_what_is_left_of_its_time() -> None:
    """Not the whole of it again: what its call ends with is what it is told."""
    given: list[float] = []
    opened = asyncio.Event()

    async def call(each: Call) -> Any:
        given.append(each.timeout)
        await opened.wait()
        if len(given) > 1:
            await asyncio.sleep(each.timeout)
            raise make("DEADLINE_EXCEEDED", "said by the call")
        return answer(each)

    reporter = LoopReporter(call, asyncio.ensure_future)
    first = asyncio.ensure_future(reporter.store(report("1")))
    await until(lambda: len(given) == 1)
    second = asyncio.ensure_future(reporter.store(report("2", 0.4)))
    await until(lambda: len(reporter._waiting) == 1)
    asyncio.get_running_loop().call_later(0.1, opened.set)
    assert (await first).version == 1
    with pytest.raises(UnavailableError, match="said by the call"):
        await second
    assert given[1] <= 0.3
