"""The app of examples/celery, run as its README says: a worker, then the client."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import resultd
from tests.support.celery_worker import CeleryWorker
from tests.support.redis_server import RedisServer
from tests.tooling.repository import ROOT

pytestmark = pytest.mark.usefixtures("differs_from_redis")

HERE = ROOT / "examples" / "celery"
BROKER_DATABASE = 43
RUN_S = 40.0


@pytest.fixture(scope="module")
def environment(redis_server: RedisServer, backend_url: str) -> dict[str, str]:
    """What names the test's broker and server to the app."""
    return {
        "CELERY_BROKER_URL": redis_server.database(BROKER_DATABASE),
        "CELERY_RESULT_BACKEND": backend_url,
        "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}",
    }


@pytest.fixture(scope="module")
def apps_worker(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Iterator[CeleryWorker]:
    """`celery -A tasks worker`."""
    with CeleryWorker(
        tmp_path_factory.mktemp("example"),
        broker="as tasks.py says",
        backend="as tasks.py says",
        app="tasks",
        environment=environment,
        name="example",
    ) as running:
        yield running
        running.kill()  # it has nothing left to do: that saves the seconds of its farewell


def client(directory: Path, environment: dict[str, str], *paths: str) -> list[str]:
    """What the client program prints."""
    command = [sys.executable, "-W", "error", str(HERE / "client.py"), *paths]
    return subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environment},
        check=True,
        timeout=RUN_S,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout.splitlines()


@pytest.mark.usefixtures("apps_worker")
def test_the_example_counts_words(
    tmp_path: Path, environment: dict[str, str], apps_worker: CeleryWorker
) -> None:
    """A group as it completes, a failure with its place, an awaited chord."""
    (tmp_path / "a").write_text("the cat and the dog\n")
    (tmp_path / "b").write_text("the dog\n" * 2500)  # long enough to say how far it is
    *counts, failed, last, first, second, third = client(
        HERE, environment, str(tmp_path / "a"), str(tmp_path / "b")
    )
    assert sorted(counts) == ["5 words", "5000 words"]
    # Celery makes an exception again from its args, and a file's name is not one of them.
    assert failed == f"tasks.count_words on {apps_worker.node}: [Errno 2] No such file or directory"
    assert last == "FileNotFoundError: [Errno 2] No such file or directory: 'no such file'"
    assert [first, second, third] == ["the: 2502", "dog: 2501", "and: 1"]


@pytest.mark.usefixtures("apps_worker")
def test_whoever_has_the_id_reads_what_the_example_stored(
    tmp_path: Path, environment: dict[str, str], backend_url: str
) -> None:
    """The word counts are JSON in the store, which a client without Celery reads."""
    (tmp_path / "a").write_text("one two two\n")
    script = "import sys, tasks; print(tasks.count_words.delay(sys.argv[1]).id)"
    task_id = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")],
        env={**os.environ, **environment},
        check=True,
        timeout=RUN_S,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout.strip()
    with resultd.Client(backend_url) as reader:
        assert reader.AsyncResult(task_id).get(timeout=20) == {"one": 1, "two": 2}


def test_the_readme_names_what_there_is() -> None:
    """The commands of the README are those of the programs, every program is named."""
    readme = (HERE / "README.md").read_text()
    assert "celery -A tasks worker" in readme
    assert re.search(r"^python client\.py ", readme, re.MULTILINE)
    assert [path.name for path in HERE.glob("*.py") if path.name not in readme] == []
