"""What runs in the background: it breaks, is told of, and runs again."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from resultd_server import background
from resultd_server.background import Background
from tests.support.in_process import until


class Panic(BaseException):
    """What a library written in Rust raises when it has a bug."""


class Work:
    """Ends as it is told, one run after another; the last goes on."""

    def __init__(self, *ends: BaseException | None) -> None:
        self.ends = list(ends)
        self.runs = 0

    async def run(self) -> None:
        """One run."""
        self.runs += 1
        if not self.ends:
            await asyncio.Event().wait()
        end = self.ends.pop(0)
        if end is not None:
            raise end


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds, in the place of seconds."""
    monkeypatch.setattr(background, "AGAIN_S", 0.001)
    monkeypatch.setattr(background, "AGAIN_MAX_S", 0.006)


@pytest.mark.parametrize("error", [ZeroDivisionError(), MemoryError(), Panic()], ids=repr)
async def test_what_breaks_runs_again_and_is_told(error: BaseException) -> None:
    """One critical line with the task's name and a traceback, one count, another run."""
    made = Background()
    work = Work(error)
    with capture_logs() as logs:
        made.begin("work", work.run)
        assert made.broken == {"work": 0}
        await until(lambda: work.runs == 2)
    [line] = logs
    assert (line["event"], line["task"]) == ("background task broke", "work")
    assert (line["log_level"], line["exc_info"]) == ("critical", error)
    assert made.broken == {"work": 1}
    await made.end()


@pytest.mark.parametrize(
    ("steady_s", "pauses_ms"), [(300.0, [1, 2, 4, 6, 6, 6]), (-1.0, [1, 1, 1, 1, 1, 1])]
)
async def test_pauses_grow_and_are_short_again_after_a_steady_run(
    monkeypatch: pytest.MonkeyPatch, steady_s: float, pauses_ms: list[float]
) -> None:
    """What breaks for good costs a line a minute; what ran for a while begins anew."""
    monkeypatch.setattr(background, "STEADY_S", steady_s)
    made = Background()
    work = Work(*(ZeroDivisionError() for _ in pauses_ms))
    with capture_logs() as logs:
        made.begin("work", work.run)
        await until(lambda: work.runs == len(pauses_ms) + 1)
    assert [line["again_s"] * 1_000 for line in logs] == pauses_ms
    await made.end()


async def test_what_returns_is_done() -> None:
    """No other run, no line: there was nothing to do."""
    made = Background()
    work = Work(None)
    with capture_logs() as logs:
        made.begin("work", work.run)
        await until(lambda: all(task.done() for task in made._tasks))
    assert (work.runs, logs, made.broken["work"]) == (1, [], 0)


async def test_the_end_is_waited_for() -> None:
    """Nothing runs once `end` has returned, and nothing was broken by it."""
    made = Background()
    work = Work()
    made.begin("work", work.run)
    await until(lambda: work.runs == 1)
    await made.end()
    assert all(task.cancelled() for task in made._tasks)
    assert made.broken["work"] == 0
