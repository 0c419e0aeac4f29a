"""One store: what Celery writes everybody reads, and what anybody writes Celery reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import resultd.aio
from tests.end_to_end import example_workers
from tests.end_to_end.example_workers import BUILD_SECONDS_MAX, ExampleWorker
from tests.support import celery_tasks
from tests.support.celery_worker import CeleryWorker
from tests.support.redis_server import RedisServer
from tests.tooling.repository import ROOT

pytestmark = [
    pytest.mark.usefixtures("differs_from_redis"),
    pytest.mark.timeout(BUILD_SECONDS_MAX + 30),  # the worker in Go is built here
]

BROKER_DATABASE = 44
WAIT_S = 20.0
EXTENDED = {"result_extended": True}

# Reads one record: node -e READER MODULES PROTOS HOST:PORT ID
NODE_READER = """
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");
const [protos, address, taskId] = process.argv.slice(1);
const options = { includeDirs: [protos], longs: Number, enums: String, defaults: true };
const files = protoLoader.loadSync("resultd/v1/result_service.proto", options);
const { ResultService } = grpc.loadPackageDefinition(files).resultd.v1;
const client = new ResultService(address, grpc.credentials.createInsecure());
client.GetResult({ taskId }, { deadline: Date.now() + 10000 }, (error, answer) => {
  if (error) throw error;
  const { state, value, failure, name, worker } = answer.meta;
  const read = value === null ? null : JSON.parse(value.data.toString());
  console.log(JSON.stringify({ state, contentType: value?.contentType, value: read,
    failure: failure && { type: failure.type, message: failure.message }, name, worker }));
  client.close();
});
"""


@pytest.fixture(scope="module")
def extended_worker(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, backend_url: str
) -> Iterator[CeleryWorker]:
    """A worker that stores arguments too."""
    with CeleryWorker(
        tmp_path_factory.mktemp("extended"),
        broker=redis_server.database(BROKER_DATABASE),
        backend=backend_url,
        pool="solo",
        settings=EXTENDED,
        name="extended",
    ) as running:
        yield running
        running.kill()  # it has nothing left to do: that saves the seconds of its farewell


@pytest.fixture(scope="module")
def extended(
    extended_worker: CeleryWorker, redis_server: RedisServer, backend_url: str
) -> Iterator[Any]:
    """The tasks of that worker, as attributes."""
    broker_url = redis_server.database(BROKER_DATABASE)
    made = celery_tasks.create_app(broker_url, backend_url, **EXTENDED)
    yield celery_tasks.named(made)
    made.close()


@pytest.fixture
def address(backend_url: str) -> str:
    """HOST:PORT of the server."""
    return backend_url.removeprefix("resultd://")


def shown(url: str, task_id: str) -> dict[str, Any]:
    """What `resultd get` shows of a task."""
    program = str(Path(sys.executable).with_name("resultd"))
    command = [program, "get", "--url", url, "-o", "json", task_id]
    output = subprocess.run(
        command, check=True, timeout=WAIT_S, text=True, stdout=subprocess.PIPE
    ).stdout
    found: dict[str, Any] = json.loads(output)
    return found


# Celery writes.


async def test_asyncio_reads_what_a_celery_worker_stored(
    extended: Any, extended_worker: CeleryWorker, backend_url: str
) -> None:
    """Value, name, worker, queue and arguments, by a client that knows no Celery."""
    task_id = extended.collect.delay(1, [2], three=None).id
    async with resultd.aio.Client(backend_url) as client:
        result = client.AsyncResult(task_id)
        assert await result == [[1, [2]], {"three": None}]
        meta = await result.meta()
    assert (meta["name"], meta["queue"]) == ("collect", "celery")
    assert meta["worker"] == extended_worker.node
    assert (meta["args"], meta["kwargs"]) == ([1, [2]], {"three": None})


async def test_asyncio_raises_what_a_celery_task_raised(tasks: Any, backend_url: str) -> None:
    """The builtin class, the message, and the traceback of the process it happened in."""
    task_id = tasks.fail.delay("no such word").id
    async with resultd.aio.Client(backend_url) as client:
        result = client.AsyncResult(task_id)
        with pytest.raises(ValueError, match="no such word"):
            await result
        meta = await result.meta()
    assert "in fail" in (meta["traceback"] or "")


def test_the_command_line_shows_what_a_celery_worker_stored(
    extended: Any, extended_worker: CeleryWorker, backend_url: str
) -> None:
    """A success with its arguments, a failure with its traceback."""
    done, failed = extended.add.delay(20, 22), extended.fail.delay("no such word")
    assert done.get(timeout=WAIT_S) == 42
    failed.get(timeout=WAIT_S, propagate=False)

    record = shown(backend_url, done.id)
    assert (record["state"], record["result"]) == ("SUCCESS", 42)
    assert (record["name"], record["queue"]) == ("add", "celery")
    assert record["worker"] == extended_worker.node
    assert record["args"] == [20, 22]

    record = shown(backend_url, failed.id)
    assert record["state"] == "FAILURE"
    assert "no such word" in json.dumps(record)
    assert "in fail" in record["traceback"]


def test_node_reads_what_a_celery_worker_stored(tasks: Any, address: str) -> None:
    """A JSON value is JSON for everybody; a failure has its type and message in fields."""
    modules = example_workers.node_modules()
    done, failed = tasks.identity.delay({"wörd": [1, None]}), tasks.fail.delay("no such word")
    done.get(timeout=WAIT_S)
    failed.get(timeout=WAIT_S, propagate=False)

    def read(task_id: str) -> dict[str, Any]:
        protos = str(ROOT / "protos")
        command = ["node", "-e", NODE_READER, protos, address, task_id]
        output = subprocess.run(
            command,
            env=os.environ | {"NODE_PATH": str(modules)},
            check=True,
            timeout=WAIT_S,
            text=True,
            stdout=subprocess.PIPE,
        ).stdout
        found: dict[str, Any] = json.loads(output)
        return found

    record = read(done.id)
    assert (record["state"], record["contentType"]) == ("STATE_SUCCESS", "application/json")
    assert record["value"] == {"wörd": [1, None]}
    assert record["name"] == "identity"
    assert read(failed.id)["failure"] == {"type": "ValueError", "message": "no such word"}


# Others write.


def hears_of(app: Any, worker: ExampleWorker, directory: Path) -> None:
    """Celery's results return, raise and show what a worker in another language reports."""
    (directory / "good").write_text("one two\nthree\nfour\nfive\n")
    (directory / "bad").write_bytes(b"\xff\xfe")
    prefix = f"cross-{worker.process.pid}"

    good = app.AsyncResult(f"{prefix}-good")
    worker.begin(task_id=good.id, path=str(directory / "good"), pace=0.4)
    seen: list[dict[str, Any]] = []
    assert good.get(timeout=WAIT_S, on_message=seen.append) == {"words": 5}
    worker.end()
    assert good.successful()
    assert good.name == "count_words"
    progress = [meta["result"] for meta in seen if meta["status"] == "PROGRESS"]
    assert progress
    assert all(0 < one["current"] < one["total"] for one in progress)

    bad = app.AsyncResult(f"{prefix}-bad")
    worker.run(task_id=bad.id, path=str(directory / "bad"))
    error = bad.get(timeout=WAIT_S, propagate=False)
    assert isinstance(error, Exception)
    with pytest.raises(type(error)):
        bad.get()
    assert bad.failed()
    assert len(bad.traceback.splitlines()) > 1


def test_celery_hears_of_a_worker_in_node(app: Any, address: str, tmp_path: Path) -> None:
    """SUCCESS is returned, PROGRESS seen, FAILURE raised with its stack."""
    environment = os.environ | {"NODE_PATH": str(example_workers.node_modules())}
    command = ["node", str(example_workers.NODE / "worker.js"), address]
    with ExampleWorker(command, environment) as worker:
        hears_of(app, worker, tmp_path)


def test_celery_hears_of_a_worker_in_go(app: Any, address: str, tmp_path: Path) -> None:
    """SUCCESS is returned, PROGRESS seen, FAILURE raised with its stack."""
    binary = example_workers.go_worker(tmp_path)
    with ExampleWorker([str(binary), address], os.environ) as worker:
        hears_of(app, worker, tmp_path)


def test_celery_hears_of_a_python_program_without_celery(app: Any, backend_url: str) -> None:
    """What `resultd.Client` stores is Celery's result, exceptions included."""
    with resultd.Client(backend_url) as client:
        client.store_result("plain-1", {"sum": 30})
        client.store_result("plain-2", KeyError("no such key"), state="FAILURE")
    assert app.AsyncResult("plain-1").get(timeout=WAIT_S) == {"sum": 30}
    with pytest.raises(KeyError, match="no such key"):
        app.AsyncResult("plain-2").get(timeout=WAIT_S)
