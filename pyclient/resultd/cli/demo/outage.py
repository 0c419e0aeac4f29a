"""The server's death in the middle: SIGKILL, a while of nothing, a new process on the same data."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from resultd.testing import Server


class Outage:
    """Kills and restarts a server in a thread, while somebody streams from it."""

    def __init__(self, server: Server, seconds: float, say: Callable[[str], None]) -> None:
        self._server = server
        self._seconds = seconds
        self._say = say
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.began = self.ended = 0.0

    @property
    def happened(self) -> bool:
        """Whether it is over."""
        return self.ended > 0

    @property
    def started(self) -> bool:
        """Whether it has begun."""
        return self._thread.ident is not None

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the server is back; raises what went wrong."""
        if self.started:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            pid = self._server.pid
            self.began = time.monotonic()
            self._server.kill()
            self._say(f"SIGKILL to the server (pid {pid}); it stays away {self._seconds:g} s")
            time.sleep(self._seconds)  # the outage itself
            self._server.start()
            self.ended = time.monotonic()
            away = self.ended - self.began
            self._say(f"the server is back (pid {self._server.pid}) after {away:.1f} s")
        except BaseException as error:  # noqa: BLE001 (handed to whoever joins)
            self._error = error
