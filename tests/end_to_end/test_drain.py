"""Restarted in order, under load: whoever retries loses no call and no wait."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import resultd
from tests.end_to_end.test_restart import free_address
from tests.support.server_process import ServerProcess

STORING = 3
WAITING = 4
RESTARTS = 2
BETWEEN = 30
"""Results stored by each thread before every restart."""


class Storing(threading.Thread):
    """A worker that stores one result after the other until it is told to stop."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(name=name)
        self._url = url
        self._enough = threading.Event()
        self._reached = threading.Condition()
        self.stored = 0
        self.error: Exception | None = None

    def run(self) -> None:
        """Stores."""
        try:
            with resultd.Client(self._url) as client:
                while not self._enough.is_set():
                    client.store_result(f"{self.name}-{self.stored}", self.stored)
                    with self._reached:
                        self.stored += 1
                        self._reached.notify_all()
        except Exception as error:  # noqa: BLE001  whatever it is, the test is to name it
            self.error = error

    def await_more(self, count: int) -> None:
        """Until so many more are stored, or it failed."""
        with self._reached:
            until = self.stored + count
            self._reached.wait_for(lambda: self.stored >= until or not self.is_alive(), 30)

    def end(self) -> None:
        """Stops, and waits until it has."""
        self._enough.set()
        self.join(30)


@pytest.mark.slow
def test_no_call_fails_and_no_wait_ends_over_restarts(tmp_path: Path) -> None:
    """SIGTERM twice under load: 0 failed calls, waits go on, and what was stored is there."""
    server = ServerProcess(tmp_path, "--drain-s", "5", listen=free_address()).start()
    url = f"resultd://{server.address}?timeout=30"
    storing = [Storing(url, f"s{number}") for number in range(STORING)]
    got: list[object] = []

    def wait(number: int) -> None:
        with resultd.Client(f"{url}&heartbeat={20 + number}") as client:  # a connection each
            got.append(client.AsyncResult(f"late-{number}").get(timeout=50))

    waiting = [threading.Thread(target=wait, args=(number,)) for number in range(WAITING)]
    for thread in (*storing, *waiting):
        thread.start()
    for _ in range(RESTARTS):
        for thread in storing:
            thread.await_more(BETWEEN)
        assert server.stop() == 0  # in its time: it was not killed
        server.start()
    for thread in storing:
        thread.await_more(BETWEEN)
        thread.end()
    assert [thread.error for thread in storing] == [None] * STORING
    with resultd.Client(url) as client:
        for number in range(WAITING):
            client.store_result(f"late-{number}", number)
        for one in waiting:
            one.join(30)
        for thread in storing:
            names = [f"{thread.name}-{number}" for number in range(thread.stored)]
            found = [client.AsyncResult(name) for name in names]
            assert client.ResultSet(found).join(timeout=20) == list(range(thread.stored))
    assert sorted(map(str, got)) == sorted(map(str, range(WAITING)))
    server.stop()
