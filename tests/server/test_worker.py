"""A worker process by itself: told what to do on its standard input, gone when that ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from resultd.testing import Server
from resultd_server import local_sockets
from resultd_server.app import Place
from resultd_server.config import load
from resultd_server.supervisor import order


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A store that was made by a server."""
    with Server(tmp_path / "data"):
        return tmp_path / "data"


@contextmanager
def placed(total: int) -> Iterator[Place]:
    """The first of so many processes, and its sockets."""
    server = local_sockets.new_name()
    with (
        local_sockets.listen(local_sockets.hints_name(server, 0)) as hints,
        local_sockets.listen(local_sockets.admin_name(server, 0)) as admin,
    ):
        yield Place(0, total, server, hints.fileno(), admin.fileno())


@contextmanager
def worker(data: Path, place: Place) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A worker that has been told its place, and its standard input."""
    said = {"data": data, "listen": "127.0.0.1:0", "log_level": "error"}
    with subprocess.Popen(
        [sys.executable, "-m", "resultd_server.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(place.hints, place.admin),
    ) as process:
        assert process.stdin is not None
        process.stdin.write(order(load(said, environ={}), place))
        process.stdin.flush()
        yield process, process.stdin


def test_a_worker_serves_until_its_standard_input_ends(data: Path) -> None:
    """The end of its input is the end of its supervisor: it stops, with exit code 0."""
    with placed(1) as place, worker(data, place) as (process, stdin):
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"resultd ready on 127.0.0.1:")
        stdin.close()
        assert process.wait(20) == 0


def test_a_worker_that_waits_for_others_goes_too(data: Path) -> None:
    """A worker whose supervisor dies before the other workers are there does not stay."""
    with placed(2) as place, worker(data, place) as (process, stdin):
        stdin.close()
        assert process.wait(30) == 0


async def test_a_worker_that_waits_for_others_can_be_told_to_go(data: Path) -> None:
    """SIGTERM ends a worker that is not ready yet, too."""
    with placed(2) as place, worker(data, place) as (process, _):
        connection = await local_sockets.connect(place.names[0])
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        writer.write((1).to_bytes(4, "big"))
        await asyncio.wait_for(reader.readexactly(4), 20)  # it listens, and waits
        writer.close()
        process.terminate()
        assert process.wait(20) == 0
