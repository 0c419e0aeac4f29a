"""Servers for the tests: one in a process of its own, and one in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import grpc
import pytest

from tests.support.in_process import Served, serving
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for a module's tests, in a process of its own."""
    with ServerProcess(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    """A channel to it."""
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A server in this process, and a channel to it."""
    async with serving() as served:
        yield served
