"""Laws of the server's death in the demo."""

from __future__ import annotations

import pytest

from resultd.cli.demo.outage import Outage
from resultd.testing import Server


def test_the_server_comes_back_as_another_process() -> None:
    """Killed and started: another pid, the same address, and the time away is known."""
    with Server() as server:
        said: list[str] = []
        before, url = server.pid, server.url
        outage = Outage(server, 0.05, said.append)
        assert not outage.started
        outage.start()
        outage.join()
        assert outage.happened
        assert (server.pid != before, server.url) == (True, url)
        assert outage.ended - outage.began >= 0.05
        assert len(said) == 2


def test_a_server_that_does_not_come_back_is_told_to_whoever_joins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error of the restart is raised by `join`, not lost in a thread."""
    server = Server()

    def refuse() -> Server:
        raise OSError("no")

    monkeypatch.setattr(server, "start", refuse)
    outage = Outage(server, 0, lambda _: None)
    outage.start()
    with pytest.raises(OSError, match="no"):
        outage.join()
