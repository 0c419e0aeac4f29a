"""Tries an installed resultd in the interpreter that runs this; standard library only.

    python .ci/smoke.py                        imports, and a call through the stubs
    python .ci/smoke.py --server COMMAND …     and the client on a real server,
                                               started as COMMAND … --data DIR --listen ADDRESS

`.ci/run` runs it on the oldest grpcio and protobuf we promise and on other Pythons.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import pkgutil
import platform
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import grpc

import resultd
from resultd.v1 import result_service_pb2 as messages
from resultd.v1 import result_service_pb2_grpc as stubs
from resultd.v1 import state_pb2

# What a bare install lacks, and the extra that brings it.
EXTRAS = {"typer": "cli", "rich": "cli", "celery": "celery", "resultd_server": "server"}
START_SECONDS = 20.0
CALL_SECONDS = 10.0


def import_everything() -> str:
    """Every module of the client imports, but for those whose extra is not installed."""
    imported, skipped = 0, []
    for module in pkgutil.walk_packages(resultd.__path__, "resultd.", onerror=lambda _: None):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            skipped.append(f"{module.name} (needs [{EXTRAS[error.name]}])")
        else:
            imported += 1
    return f"{imported} modules import" + (f"; skipped {', '.join(skipped)}" if skipped else "")


class Echo(stubs.ResultServiceServicer):  # type: ignore[misc] # untyped where grpc has no stubs
    """Answers with the id that was asked for."""

    def GetResult(  # noqa: N802 (the protocol's name)
        self, request: messages.GetResultRequest, context: grpc.ServicerContext
    ) -> messages.GetResultResponse:
        """One record in SUCCESS."""
        answer = messages.GetResultResponse()
        answer.meta.task_id = request.task_id
        answer.meta.state = state_pb2.STATE_SUCCESS
        return answer


def call_through_stubs() -> str:
    """A call goes through the generated stubs on both sides."""
    server = grpc.server(ThreadPoolExecutor(1))
    stubs.add_ResultServiceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = messages.GetResultRequest(task_id="t1")
        answer = stubs.ResultServiceStub(channel).GetResult(request, timeout=CALL_SECONDS)
    server.stop(None)
    assert (answer.meta.task_id, answer.meta.state) == ("t1", state_pb2.STATE_SUCCESS)
    return "a call through the stubs works"


def free_address() -> str:
    """An address nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def use_client(address: str) -> None:
    """Store, read, fail and stream a group, in sync and asyncio."""
    client = resultd.Client(f"resultd://{address}")
    client.store_result("t1", {"sum": 30}, state="SUCCESS")
    assert client.AsyncResult("t1").get(timeout=CALL_SECONDS) == {"sum": 30}
    client.store_result("t2", ValueError("no"), state="FAILURE")
    try:
        client.AsyncResult("t2").get(timeout=CALL_SECONDS)
    except ValueError:
        pass
    else:
        raise AssertionError("a failure did not raise")
    ids = [f"m{i}" for i in range(10)]
    group = client.GroupResult("g1", [client.AsyncResult(i) for i in ids]).save()
    for index, task_id in enumerate(ids):
        client.store_result(task_id, index, state="SUCCESS", group_id="g1", index=index)
    assert sorted(group.iterate(timeout=CALL_SECONDS)) == list(range(10))
    client.close()

    async def awaited() -> object:
        async_client = resultd.aio.Client(f"resultd://{address}")
        try:
            return await async_client.AsyncResult("t1")
        finally:
            await async_client.close()

    assert asyncio.run(asyncio.wait_for(awaited(), CALL_SECONDS)) == {"sum": 30}


def wait_until_ready(server: subprocess.Popen[bytes], address: str) -> None:
    """Returns once the server accepts connections; raises if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    with grpc.insecure_channel(address) as channel:
        ready = grpc.channel_ready_future(channel)
        while server.poll() is None and time.monotonic() < deadline:
            try:
                return ready.result(timeout=0.1)
            except grpc.FutureTimeoutError:
                continue
        ready.cancel()
    raise AssertionError(f"no server at {address}; its exit status: {server.poll()}")


def try_server(command: list[str]) -> str:
    """The client does its main jobs against a server in another process."""
    address = free_address()
    with tempfile.TemporaryDirectory() as data:
        full = [*command, "--data", data, "--listen", address]
        server = subprocess.Popen(full, stdout=subprocess.DEVNULL)
        try:
            wait_until_ready(server, address)
            use_client(address)
        finally:
            server.terminate()
            try:
                server.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    return "the client works against a real server"


def main() -> int:
    """Runs every step; an exception ends it with status 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", nargs=argparse.REMAINDER, help="command that serves")
    command = parser.parse_args().server
    done = [import_everything(), call_through_stubs()]
    if command:
        done.append(try_server(command))
    what = f"Python {platform.python_version()}, grpcio {version('grpcio')}"
    print(f"{what}, protobuf {version('protobuf')}: {'; '.join(done)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
