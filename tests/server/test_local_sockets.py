"""Sockets between processes: names without files, for processes of one user."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from resultd_server import local_sockets


async def test_who_knows_the_name_connects() -> None:
    """Bytes go to who listens under the name; two servers have two names."""
    name = local_sockets.new_name()
    with local_sockets.listen(name) as door, await local_sockets.connect(name) as connection:
        other, _ = await asyncio.get_running_loop().sock_accept(door)
        other.sendall(b"x")
        assert await asyncio.get_running_loop().sock_recv(connection, 2) == b"x"
        assert local_sockets.is_ours(other)
        other.close()
    assert local_sockets.new_name() != name


async def test_a_name_is_nobody_elses_while_its_socket_is_open() -> None:
    """A second one cannot listen; nobody can connect once the first has closed."""
    name = local_sockets.new_name()
    with local_sockets.listen(name), pytest.raises(OSError, match="in use"):
        local_sockets.listen(name)
    with pytest.raises(ConnectionRefusedError):
        await local_sockets.connect(name)


async def test_a_strangers_socket_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that runs as another user is an OSError, and is told nothing."""
    name = local_sockets.new_name()
    with local_sockets.listen(name):
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(PermissionError, match="Another user"):
            await local_sockets.connect(name)


def test_nothing_lies_in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is no path, wherever the process stands."""
    monkeypatch.chdir(tmp_path)
    with local_sockets.listen(local_sockets.hints_name(local_sockets.new_name(), 63)):
        assert not list(tmp_path.iterdir())
