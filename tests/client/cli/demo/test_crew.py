"""Laws of handing out tasks to processes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from resultd.cli.demo.crew import Crew

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
DIES = "import sys; sys.stdin.readline(); sys.exit('Error: out of coffee')"
SECONDS_MAX = 20


def test_every_task_is_handed_out(tmp_path: Path) -> None:
    """All tasks reach a worker, and the processes are gone afterwards."""
    tasks = [{"n": n} for n in range(20)]
    record = f"import sys\nfor line in sys.stdin:\n open({str(tmp_path / 'got')!r}, 'a').write(line)\n print('x', flush=True)"  # noqa: E501 (one program)
    with Crew(tasks, tmp_path) as crew:
        workers = [crew.hire([sys.executable, "-c", record], f"w{n}") for n in range(2)]
        for thread in crew._threads:
            thread.join(SECONDS_MAX)
    assert all(worker.process.returncode is not None for worker in workers)
    assert len((tmp_path / "got").read_text().splitlines()) == 20
    assert crew.dead == []


def test_what_a_dead_worker_held_goes_to_another(tmp_path: Path) -> None:
    """A worker that dies gives its task back, and its last words are kept."""
    with Crew([{"n": 1}], tmp_path) as crew:
        crew.hire([sys.executable, "-c", DIES], "first")
        crew._threads[0].join(SECONDS_MAX)
        assert crew.dead == ["first ended: Error: out of coffee"]
        crew.hire([sys.executable, "-c", ECHO], "second")
        crew._threads[1].join(SECONDS_MAX)
        assert len(crew.dead) == 1
        assert crew._tasks.empty()


def test_nobody_is_hired_after_the_end(tmp_path: Path) -> None:
    """A worker that is ready too late is not started at all."""
    with Crew([], tmp_path) as crew:
        pass
    with pytest.raises(RuntimeError):
        crew.hire([sys.executable, "-c", ECHO], "late")


def test_a_worker_that_does_not_listen_is_ended_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM first, SIGKILL when that is not heard."""
    monkeypatch.setattr("resultd.cli.demo.crew.STOP_SECONDS_MAX", 0.3)
    deaf = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(tmp_path / 'deaf')!r}, 'w').close()\ntime.sleep(60)"
    )
    with Crew([{"n": 1}], tmp_path) as crew:
        worker = crew.hire([sys.executable, "-c", deaf], "deaf")
        until = time.monotonic() + SECONDS_MAX
        while not (tmp_path / "deaf").exists() and time.monotonic() < until:
            time.sleep(0.01)
    assert worker.process.returncode == -9
