"""Signals, sent to real servers as people, terminals and service managers send them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import stream_pb2
from resultd.v1.result_service_pb2_grpc import ResultServiceStub as Stub
from tests.support import reports
from tests.support.server_process import ServerProcess
from tests.support.waiting import children_of, until, workers_begun

TWO = ("--workers", "2")
OWN_GROUP = ("setsid",)
ON_TERMINAL = """
import os, sys
_, terminal, *then = sys.argv
os.setsid()
os.open(terminal, os.O_RDWR)
os.execvp(then[0], then)
"""


@contextmanager
def slow_reader(server: ServerProcess) -> Iterator[tuple[Stub, Iterable[pb.WaitForResponse]]]:
    """A stream whose client has not read yet what is on its way, 8 MiB, and its connection."""
    options = (("grpc.max_receive_message_length", -1), ("grpc.http2.bdp_probe", 0))
    with grpc.insecure_channel(server.address, options) as channel:
        stub = Stub(channel)
        ids = [f"big{n}" for n in range(8)]
        for task_id in ids:
            stub.StoreResult(reports.success(task_id, b"x" * 2**20))
        wait = stub.WaitFor(pb.WaitForRequest(task_ids=[*ids, "never"]))
        next(wait)
        yield stub, wait


def on_terminal(theirs: int) -> tuple[str, ...]:
    """Runs what follows in a session of a terminal."""
    return sys.executable, "-c", ON_TERMINAL, os.ttyname(theirs)


def ends_in_order(wait: Iterable[pb.WaitForResponse]) -> bool:
    """Whether a stream is told that the server drains."""
    *_, last = list(wait)
    return bool(last.control.end_reason == stream_pb2.END_REASON_DRAINING)


def test_ctrl_c_drains_all_workers(tmp_path: Path) -> None:
    """What a terminal sends to the whole group is the first signal for everybody."""
    with (
        ServerProcess(tmp_path, *TWO, "--drain-s", "30", within=OWN_GROUP) as server,
        slow_reader(server) as (_, wait),
    ):
        os.killpg(server.process.pid, signal.SIGINT)
        until(lambda: '"draining"' in server.log())
        assert ends_in_order(wait)
        assert server.wait() == 0


def test_a_signal_to_every_process_drains(tmp_path: Path) -> None:
    """As systemd does without KillMode=mixed: workers hear it twice, and finish all the same."""
    with (
        ServerProcess(tmp_path, *TWO, "--drain-s", "30") as server,
        slow_reader(server) as (stub, wait),
    ):
        for pid in (*children_of(server.process.pid), server.process.pid):
            os.kill(pid, signal.SIGTERM)
        until(lambda: server.log().count('"draining"') == 3)
        for pid in children_of(server.process.pid):
            os.kill(pid, signal.SIGTERM)
        for _ in range(3):  # long enough for the worker to have heard it
            with pytest.raises(grpc.RpcError):
                stub.GetResult(pb.GetResultRequest(task_id="t"))
        assert ends_in_order(wait)
        assert server.wait() == 0


def test_a_drain_ends_with_its_supervisor(tmp_path: Path) -> None:
    """Workers that drain do not outlive a supervisor that was killed: the data is free."""
    with ServerProcess(tmp_path, *TWO, "--drain-s", "600") as server, slow_reader(server):
        pids = children_of(server.process.pid)
        server.send(signal.SIGTERM)
        until(lambda: server.log().count('"draining"') == 3)
        server.kill()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_start_that_hangs_can_be_ended(tmp_path: Path) -> None:
    """While a worker does not become ready, SIGTERM is heeded as ever."""
    command = [sys.executable, "-m", "resultd_server", "--data", str(tmp_path / "data"), *TWO]
    command += ["--listen", "127.0.0.1:0", "--drain-s", "0"]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(command, stderr=file) as process:
        until(lambda: len(workers_begun(process.pid)) == 2)
        for pid in children_of(process.pid):
            os.kill(pid, signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0  # of the 60 s that workers have to become ready
    said = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert said == ["draining", "stopped"]


def test_a_start_that_goes_well_can_be_ended(tmp_path: Path) -> None:
    """SIGTERM as soon as there are workers: everybody ends, and nobody complains."""
    command = [sys.executable, "-m", "resultd_server", "--data", str(tmp_path / "data"), *TWO]
    command += ["--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: len(children_of(process.pid)) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert {json.loads(line)["level"] for line in process.stderr} == {"info"}


@pytest.mark.parametrize("flags", [(), TWO])
def test_sighup_without_a_terminal_changes_nothing(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Who sends it to have files read again is told that they are followed; calls go on."""
    with ServerProcess(tmp_path, *flags, within=OWN_GROUP) as server:
        for pid in (server.process.pid, *children_of(server.process.pid)):
            os.kill(pid, signal.SIGHUP)
            until(lambda: "SIGHUP changes nothing" in server.log())
        with grpc.insecure_channel(server.address) as channel:
            assert Stub(channel).StoreResult(reports.success("t")).version == 1
        assert "draining" not in server.log()
        assert server.stop() == 0


@pytest.mark.parametrize("flags", [(), TWO])
def test_a_server_whose_terminal_goes_drains(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """A closed terminal is a first signal, and said again it does not become a second."""
    ours, theirs = pty.openpty()
    within = on_terminal(theirs)
    with (
        ServerProcess(tmp_path, *flags, "--drain-s", "30", within=within) as server,
        slow_reader(server) as (_, wait),
    ):
        os.close(theirs)
        os.close(ours)
        until(lambda: '"draining"' in server.log())
        server.send(signal.SIGHUP)  # as the shell does, to its jobs
        assert ends_in_order(wait)
        assert server.wait() == 0


def test_a_server_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    """Where SIGHUP is ignored from the start it stays ignored."""
    ours, theirs = pty.openpty()
    within = (*on_terminal(theirs), "nohup")
    with ServerProcess(tmp_path, within=within) as server:
        os.close(theirs)
        os.close(ours)
        server.send(signal.SIGHUP)
        with grpc.insecure_channel(server.address) as channel:
            assert Stub(channel).StoreResult(reports.success("t")).version == 1
        assert "SIGHUP" not in server.log()
        assert server.stop() == 0
