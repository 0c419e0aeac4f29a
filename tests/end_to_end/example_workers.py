"""What is true of a worker in any language; the tests of each language say which worker."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

import resultd
from resultd.cli.demo import node
from resultd.testing import Server
from resultd.v1 import result_service_pb2 as pb
from resultd_server.errors import StoreFull
from resultd_server.interceptors.errors import status_of
from tests.tooling.repository import ROOT

SECONDS_MAX = 30.0
NODE = ROOT / "examples" / "workers" / "node"
GO = ROOT / "examples" / "workers" / "go"
GO_TOOLS = ("go", "protoc", "protoc-gen-go", "protoc-gen-go-grpc")
GO_GRPC = Path("/usr/share/gocode/src/google.golang.org/grpc")  # golang-google-grpc-dev
BUILD_SECONDS_MAX = 150
# Longer than any test: a task that only ends because somebody asked it to.
ENDLESS_SECONDS = 300


def node_modules() -> Path:
    """Node's packages: beside the worker where installed, else from the demo's cache.

    Skips the test where there are none.
    """
    if (NODE / "node_modules" / "@grpc" / "grpc-js").is_dir() and shutil.which("node"):
        return NODE / "node_modules"
    try:
        return node.packages() if shutil.which("node") else pytest.skip("node is not installed")
    except node.NodeMissingError as error:
        pytest.skip(str(error))


def go_worker(directory: Path) -> Path:
    """The Go worker, built in a directory as its documentation says.

    Skips the test where it cannot be built.
    """
    missing = [tool for tool in GO_TOOLS if shutil.which(tool) is None]
    if missing or not GO_GRPC.is_dir():
        pytest.skip(f"not installed: {', '.join(missing) or 'golang-google-grpc-dev'}")
    output = directory / "worker"
    subprocess.run(["sh", str(GO / "build.sh"), str(output)], check=True, timeout=BUILD_SECONDS_MAX)
    return output


class ExampleWorker:
    """One of `examples/workers`, given tasks line by line."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._alarm = threading.Timer(SECONDS_MAX, self.process.kill)

    def begin(self, **task: Any) -> None:
        """Hand out a task."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, str]:
        """Wait for the task to end; says what the worker printed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker ended: {self.process.communicate()[1]}"
        found: dict[str, str] = json.loads(line)
        return found

    def run(self, **task: Any) -> dict[str, str]:
        """Hand out a task and wait for its end."""
        self.begin(**task)
        return self.end()

    def __enter__(self) -> ExampleWorker:
        self._alarm.start()  # a worker that hangs ends, and its test fails
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """No more tasks: the worker ends by itself, with exit code 0."""
        try:
            self.process.communicate(timeout=SECONDS_MAX)
        finally:
            self._alarm.cancel()
            self.process.kill()
            self.process.wait()
        assert exc is not None or self.process.returncode == 0


def reports_what_happens(worker: ExampleWorker, client: resultd.Client, directory: Path) -> None:
    """Success with its value, failure with type, message and stack, each in its group."""
    (directory / "good").write_text("one two\nthree\n")
    (directory / "bad").write_bytes(b"\xff\xfe")
    group = f"group-{worker.process.pid}"
    ids = [f"{group}-{name}" for name in ("good", "bad")]
    for index, (task_id, name) in enumerate(zip(ids, ("good", "bad"), strict=True)):
        worker.run(task_id=task_id, path=str(directory / name), group_id=group, index=index)
    client.group(group).seal(2)
    good, bad = client.group(group).as_completed(SECONDS_MAX)
    assert (good.index, good.state, good.result) == (0, "SUCCESS", {"words": 3})
    assert (bad.index, bad.state) == (1, "FAILURE")
    assert isinstance(bad.result, resultd.TaskError)
    assert bad.result.message
    assert bad.result.type
    assert bad.meta is not None
    assert len((bad.meta["traceback"] or "").splitlines()) > 1


def shows_progress(worker: ExampleWorker, client: resultd.Client, directory: Path) -> None:
    """A waiter that asks for transitions sees the task on its way."""
    (directory / "text").write_text("one\ntwo\nthree\nfour\n")
    task_id = f"progress-{worker.process.pid}"
    worker.begin(task_id=task_id, path=str(directory / "text"), pace=0.8)
    seen: list[dict[str, Any]] = []
    value = client.AsyncResult(task_id).get(timeout=SECONDS_MAX, on_message=seen.append)
    assert value == {"words": 4}
    worker.end()
    progress = [meta["progress"] for meta in seen if meta["status"] == "PROGRESS"]
    assert progress
    assert all(0 < one.current < one.total == 5 for one in progress)  # a last, empty line


def stops_when_asked(worker: ExampleWorker, client: resultd.Client, directory: Path) -> None:
    """A revocation reaches the running task, which ends REVOKED long before its time."""
    (directory / "text").write_text("one\n")
    task_id = f"revoked-{worker.process.pid}"
    worker.begin(task_id=task_id, path=str(directory / "text"), pace=ENDLESS_SECONDS)
    result = client.AsyncResult(task_id)
    started = threading.Event()

    def saw(meta: dict[str, Any]) -> None:
        if meta["status"] == "STARTED":
            started.set()
            client.revoke(task_id)

    outcome = result.get(timeout=SECONDS_MAX, on_message=saw, propagate=False)
    assert started.is_set()
    assert isinstance(outcome, resultd.TaskRevokedError)
    assert worker.end()["state"] == "REVOKED"


def outlives_the_server(worker: ExampleWorker, server: Server, directory: Path) -> None:
    """What a worker has to say while there is no server is said when there is one."""
    (directory / "text").write_text("one two\n")
    task_id = f"restart-{worker.process.pid}"
    with resultd.Client(server.url) as client:
        worker.run(task_id=f"{task_id}-before", path=str(directory / "text"))
        server.kill()
        worker.begin(task_id=task_id, path=str(directory / "text"))
        server.start()
        assert client.AsyncResult(task_id).get(timeout=SECONDS_MAX) == {"words": 2}
    assert worker.end()["state"] == "SUCCESS"


class _Moody:
    """Ends a call in each of the ways given, and then takes every report."""

    def __init__(self, *ends: grpc.StatusCode | grpc.Status) -> None:
        self.taken: list[str] = []
        self._ends = list(ends)

    def _store(
        self, request: pb.StoreResultRequest, context: grpc.ServicerContext
    ) -> pb.StoreResultResponse:
        if self._ends:
            end = self._ends.pop(0)
            if isinstance(end, grpc.StatusCode):
                context.abort(end, "said by gRPC itself")
            context.abort_with_status(end)
        self.taken.append(request.meta.task_id)
        return pb.StoreResultResponse(state=request.meta.state)

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Its address, while it answers. Who watches for revocations is told UNIMPLEMENTED."""
        server = grpc.server(futures.ThreadPoolExecutor(2))
        store = grpc.unary_unary_rpc_method_handler(
            self._store,
            request_deserializer=pb.StoreResultRequest.FromString,
            response_serializer=pb.StoreResultResponse.SerializeToString,
        )
        handlers = {"StoreResult": store}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("resultd.v1.ResultService", handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None)


def repeats_what_may_be_taken_later(
    command: Sequence[str], environment: Mapping[str, str], directory: Path
) -> None:
    """What a stopping, flooded or full server did not take is reported again."""
    (directory / "text").write_text("one two\n")
    full = rpc_status.to_status(status_of(StoreFull("The store is full.")))
    moody = _Moody(grpc.StatusCode.CANCELLED, full, grpc.StatusCode.UNAVAILABLE)
    with (
        moody.listening() as address,
        ExampleWorker([*command, address], environment) as worker,
    ):
        done = worker.run(task_id="moody", path=str(directory / "text"))
    assert done["state"] == "SUCCESS"
    assert set(moody.taken) == {"moody"}


def ends_over_what_is_never_taken(
    command: Sequence[str], environment: Mapping[str, str], directory: Path
) -> None:
    """A message that gRPC calls too large is not sent for ever: the worker ends and says so."""
    (directory / "text").write_text("one two\n")
    moody = _Moody(grpc.StatusCode.RESOURCE_EXHAUSTED)
    with (
        pytest.raises(AssertionError, match="said by gRPC itself"),
        moody.listening() as address,
        ExampleWorker([*command, address], environment) as worker,
    ):
        worker.run(task_id="large", path=str(directory / "text"))
    assert moody.taken == []
