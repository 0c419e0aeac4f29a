"""A worker process by itself: told what to do on its standard input, gone when that ends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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


@contextmanager
def worker(data: Path, place: Place) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A worker that has been told its place, and its standard input."""
    said = {"data": data, "listen": "127.0.0.1:0", "log_level": "error"}
    with subprocess.Popen(
        [sys.executable, "-m", "resultd_server.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(order(load(said, environ={}), place))
        process.stdin.flush()
        yield process, process.stdin


def test_a_worker_serves_until_its_standard_input_ends(data: Path, tmp_path: Path) -> None:
    """The end of its input is the end of its supervisor: it stops, with exit code 0."""
    with worker(data, Place(0, 1, tmp_path)) as (process, stdin):
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"resultd ready on 127.0.0.1:")
        stdin.close()
        assert process.wait(20) == 0


def test_a_worker_that_waits_for_others_goes_too(data: Path, tmp_path: Path) -> None:
    """A worker whose supervisor dies before the other workers are there does not stay."""
    with worker(data, Place(0, 2, tmp_path)) as (process, stdin):
        stdin.close()
        assert process.wait(30) == 0


def test_a_worker_that_waits_for_others_can_be_told_to_go(data: Path, tmp_path: Path) -> None:
    """SIGTERM ends a worker that is not ready yet, too."""
    with worker(data, Place(0, 2, tmp_path)) as (process, _):
        socket = tmp_path / "hints-0.sock"
        end = time.monotonic() + 20
        while not socket.exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        process.terminate()
        assert process.wait(20) == 0
