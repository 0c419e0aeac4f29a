"""docs/celery.md does what it says: its programs run, its tables are whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resultd.celery import _options
from tests.end_to_end.celery import test_seeds
from tests.support.celery_worker import CeleryWorker
from tests.support.redis_server import RedisServer
from tests.tooling.repository import ROOT

pytestmark = pytest.mark.usefixtures("differs_from_redis")

BROKER_DATABASE = 45
OLD_RESULTS_DATABASE = 46
RUN_S = 40.0
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TASKS = "# tasks.py\n"
PRINTED = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)

Run = Callable[[str], list[str]]


def page() -> str:
    """The page."""
    return (ROOT / "docs" / "celery.md").read_text()


@pytest.fixture(scope="module")
def program(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, backend_url: str
) -> Iterator[Run]:
    """Runs a program of the page beside its tasks.py, which a worker serves."""
    directory: Path = tmp_path_factory.mktemp("page")

    def placed(code: str) -> str:
        code = code.replace("redis://127.0.0.1:6379/0", redis_server.database(BROKER_DATABASE))
        old = redis_server.database(OLD_RESULTS_DATABASE)
        return code.replace("redis://127.0.0.1:6379/1", old).replace(
            "resultd://127.0.0.1:7758", backend_url
        )

    def run(code: str) -> list[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", placed(code)],
            cwd=directory,
            check=True,
            timeout=RUN_S,
            text=True,
            stdout=subprocess.PIPE,
        ).stdout.splitlines()

    (tasks,) = (code for code in BLOCK.findall(page()) if code.startswith(TASKS))
    (directory / "tasks.py").write_text(placed(tasks))
    with CeleryWorker(
        directory,
        broker="as tasks.py says",
        backend="as tasks.py says",
        app="tasks",
        pool="solo",  # the quickest to start and stop
        environment={"PYTHONPATH": f"{directory}:{os.environ.get('PYTHONPATH', '')}"},
        name="page",
    ) as running:
        yield run
        running.kill()  # it has nothing left to do: that saves the seconds of its farewell


def block(word: str) -> str:
    """The one program of the page that contains a word."""
    (found,) = (code for code in BLOCK.findall(page()) if word in code)
    return str(found)


@pytest.mark.parametrize("word", ["total.s()", "resultd.celery.install(app)"])
def test_a_program_of_the_page_prints_what_stands_beside_it(program: Run, word: str) -> None:
    """Each `print` prints what its comment says."""
    code = block(word)
    expected = PRINTED.findall(code)
    assert len(expected) == code.count("print(")
    assert program(code) == expected


def test_old_results_are_found_where_they_are(program: Run, redis_server: RedisServer) -> None:
    """The program for a move reads a result that Celery's Redis backend stored."""
    meta: dict[str, object] = {
        "status": "SUCCESS",
        "result": "stored before",
        "traceback": None,
        "children": [],
    }
    with redis_server.client(OLD_RESULTS_DATABASE) as redis:
        redis.set("celery-task-meta-an-old-task", json.dumps(meta | {"task_id": "an-old-task"}))
    assert program(block("def result_of")) == ["stored before"]


def test_every_program_of_the_page_is_run_here() -> None:
    """No block of Python is left out."""
    run = ("total.s()", "resultd.celery.install(app)", "def result_of", TASKS)
    assert [code for code in BLOCK.findall(page()) if not any(word in code for word in run)] == []


def test_every_transport_option_is_explained() -> None:
    """The page's table has each key that the backend takes."""
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    keys = {key for row in rows for key in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    assert set(_options._OURS) - keys == set()


def test_where_celery_differs_from_other_pages_is_said() -> None:
    """What the examples' tests list as Celery's own differences stands on the page."""
    said = page()[page().index("What differs from Redis") :]
    names = {name for key in test_seeds.DIFFERENCES for name in key.split(", ")}
    assert [name for name in names if f"`{name}" not in said] == []
