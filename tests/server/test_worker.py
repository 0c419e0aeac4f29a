"""A worker process by itself: told what to do on its standard input, gone when that ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from resultd.testing import Server
from resultd_server.app import Place
from resultd_server.config import load
from resultd_server.supervisor import order


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A store that was made by a server."""
    with Server(tmp_path / "data"):
        return tmp_path / "data"


def test_a_worker_serves_until_its_standard_input_ends(data: Path, tmp_path: Path) -> None:
    """The end of its input is the end of its supervisor: it stops, with exit code 0."""
    said = {"data": data, "listen": "127.0.0.1:0", "log_level": "error"}
    settings = load(said, environ={})
    with subprocess.Popen(
        [sys.executable, "-m", "resultd_server.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(order(settings, Place(0, 1, tmp_path)))
        worker.stdin.flush()
        assert worker.stdout.readline().startswith(b"resultd ready on 127.0.0.1:")
        worker.stdin.close()
        assert worker.wait(20) == 0


def test_a_worker_that_waits_for_others_goes_too(data: Path, tmp_path: Path) -> None:
    """A worker whose supervisor dies before the other workers are there does not stay."""
    said = {"data": data, "listen": "127.0.0.1:0", "log_level": "error"}
    with subprocess.Popen(
        [sys.executable, "-m", "resultd_server.worker"], stdin=subprocess.PIPE
    ) as worker:
        assert worker.stdin is not None
        worker.stdin.write(order(load(said, environ={}), Place(0, 2, tmp_path)))
        worker.stdin.close()
        assert worker.wait(30) == 0


def test_a_worker_that_waits_for_others_can_be_told_to_go(data: Path, tmp_path: Path) -> None:
    """SIGTERM ends a worker that is not ready yet, too."""
    said = {"data": data, "listen": "127.0.0.1:0", "log_level": "error"}
    with subprocess.Popen(
        [sys.executable, "-m", "resultd_server.worker"], stdin=subprocess.PIPE
    ) as worker:
        assert worker.stdin is not None
        worker.stdin.write(order(load(said, environ={}), Place(0, 2, tmp_path)))
        worker.stdin.flush()
        socket = tmp_path / "hints-0.sock"
        end = time.monotonic() + 20
        while not socket.exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        worker.terminate()
        assert worker.wait(20) == 0
