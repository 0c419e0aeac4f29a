"""A log that nobody reads, or that nobody can write: the server does what it did before."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import result_service_pb2_grpc
from tests.support import http
from tests.support.addresses import free_address
from tests.support.results import until
from tests.support.server_process import STOP_S, ServerProcess

PIPE_BYTES = 4_096
RECONNECT_SOON = (("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200))


class Piped:
    """A server that logs into a small pipe."""

    def __init__(self, process: subprocess.Popen[bytes], channel: grpc.Channel) -> None:
        self.process = process
        self._results = result_service_pb2_grpc.ResultServiceStub(channel)

    def refused(self) -> str:
        """What a call is refused with that lacks everything."""
        with pytest.raises(grpc.RpcError) as caught:
            self._results.StoreResult(pb.StoreResultRequest(), timeout=STOP_S, wait_for_ready=True)
        code: grpc.StatusCode = caught.value.code()
        return code.name

    def children(self) -> set[int]:
        """The processes it has started."""
        pid = self.process.pid
        return {int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@contextlib.contextmanager
def piped(directory: Path, *flags: str) -> Iterator[Piped]:
    """Starts one; nobody reads the pipe so far. Stops it."""
    command = [sys.executable, "-m", "resultd_server", "--data", str(directory / "data")]
    command += ["--listen", "127.0.0.1:0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        fcntl.fcntl(process.stderr.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            address = process.stdout.readline().decode().split()[-1]
            with grpc.insecure_channel(address, RECONNECT_SOON) as channel:
                yield Piped(process, channel)
            process.terminate()
            assert process.wait(STOP_S) == 0
        finally:
            process.kill()


def test_a_log_that_nobody_reads_stops_nobody(tmp_path: Path) -> None:
    """Calls and probes are answered, SIGTERM ends it; lines that came out are whole."""
    admin = free_address()
    with piped(tmp_path, "--log-level", "debug", "--admin", admin) as server:
        for _ in range(100):  # each leaves a line of some 300 bytes
            assert server.refused() == "INVALID_ARGUMENT"
        assert http.get(admin, "/livez") == (200, "ok\n")
        server.process.terminate()
        assert server.process.wait(STOP_S) == 0
        assert server.process.stderr is not None
        lines = server.process.stderr.read().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert events[0] == "serving"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_log_whose_reader_has_gone_breaks_nothing(tmp_path: Path, workers: str) -> None:
    """Calls are refused as they were, and processes that die are started again."""
    with piped(tmp_path, "--workers", workers) as server:
        assert server.process.stderr is not None
        server.process.stderr.close()
        for _ in range(3):
            assert server.refused() == "INVALID_ARGUMENT"
        before = server.children()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(server.children() - before) == len(before))
        assert server.refused() == "INVALID_ARGUMENT"


def test_who_is_refused_in_a_loop_does_not_fill_the_disk(tmp_path: Path) -> None:
    """So many lines a second, and how many were left out: together as many as calls."""
    calls = 300
    with ServerProcess(tmp_path) as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = result_service_pb2_grpc.ResultServiceStub(channel)
            for _ in range(calls):
                with pytest.raises(grpc.RpcError):
                    stub.StoreResult(pb.StoreResultRequest())
        server.stop()
        lines = server.log_lines()
    refused = [line for line in lines if line["event"] == "refused"]
    left_out = [line for line in lines if line["event"] == "lines left out"]
    assert {(line["of"], line["reason"]) for line in left_out} == {("refused", "FIELD_INVALID")}
    assert len(refused) + sum(line["count"] for line in left_out) == calls
