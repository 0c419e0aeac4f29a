"""Standard streams that are closed, or that nobody can write to: the server serves all the same."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import result_service_pb2_grpc
from tests.support.waiting import until


def start(directory: Path, redirections: str, *flags: str) -> subprocess.Popen[bytes]:
    """A server whose standard streams a shell redirects."""
    command = [sys.executable, "-m", "resultd_server", "--data", str(directory / "data"), *flags]
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *command], cwd=directory
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_obstacle(tmp_path: Path, closed: str) -> None:
    """It serves, drains and ends with exit code 0, and its files are not mistaken for streams."""
    listen = f"unix:{tmp_path}/s"
    with start(tmp_path, closed, "--listen", listen) as process, grpc.insecure_channel(listen) as c:
        stub = result_service_pb2_grpc.ResultServiceStub(c)
        stub.GetResult(pb.GetResultRequest(task_id="t"), wait_for_ready=True, timeout=30)
        for number in range(3):
            target = Path(f"/proc/{process.pid}/fd/{number}").readlink()
            assert str(tmp_path) not in str(target), target
            assert "socket" not in str(target), target
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize("out", [">&-", ">/dev/full", ">&- <&-"])
def test_workers_too(tmp_path: Path, out: str) -> None:
    """A supervisor without standard output starts its workers, drains them and ends."""
    log = tmp_path / "log"
    flags = "--listen", "127.0.0.1:0", "--workers", "2"
    with start(tmp_path, f"{out} 2>{log}", *flags) as process:
        until(lambda: log.exists() and '"serving"' in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert log.read_text().count('"worker ready"') == 2
        assert '"stopped"' in log.read_text()


def test_a_full_standard_output_is_a_warning(tmp_path: Path) -> None:
    """The line that says it is ready cannot be written: the log says so, and it serves."""
    log = tmp_path / "log"
    listen = f"unix:{tmp_path}/s"
    with start(tmp_path, f">/dev/full 2>{log}", "--listen", listen) as process:
        until(lambda: log.exists() and "standard output cannot be written to" in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
