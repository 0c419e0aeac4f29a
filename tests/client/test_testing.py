"""The server for tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from resultd import testing
from resultd.client import Client


@pytest.mark.slow
def test_it_starts_stops_and_restarts_on_the_same_port(tmp_path: Path) -> None:
    """What was stored is there after a stop, and after a crash."""
    with testing.Server(tmp_path) as server, Client(server.url) as client:
        port = server.port
        client.store_result("a", 1)
        server.restart()
        client.store_result("b", 2)
        server.kill()
        without = server.pid
        server.start()
        assert server.start() is server
        assert server.port == port
        assert (without, server.pid is not None) == (None, True)
        assert client.ResultSet([client.AsyncResult(i) for i in "ab"]).get(timeout=5) == [1, 2]
        assert server.log() != ""
    server.stop()
    assert (tmp_path / "data.mdb").exists() or any(tmp_path.iterdir())


def test_a_server_that_does_not_start_says_why() -> None:
    """With its last lines."""
    server = testing.Server(arguments=("--no-such-flag",))
    with pytest.raises(testing.ServerError, match="no-such-flag"):
        server.start()
    server.close()


def test_without_the_server_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(testing.ServerError, match=r"pip install 'resultd\[server\]'"):
        testing.Server().start()
