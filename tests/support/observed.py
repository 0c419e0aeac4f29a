"""A real server in a process of its own that says what it holds.

with ObservedServer(tmp_path) as server:
    server.look()["streams"]
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from tests.support import plants
from tests.support.memory import anonymous_bytes
from tests.support.server_process import ServerProcess

LOOK_S = 20.0


class ObservedServer(ServerProcess):
    """The server, or one with a fault planted; `look` is for a process that lives."""

    def __init__(
        self,
        directory: Path,
        *flags: str,
        fault: str = "none",
        listen: str = "127.0.0.1:0",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._observations = directory / "observations.jsonl"
        self._observations.touch()
        super().__init__(
            directory,
            *flags,
            listen=listen,
            program=plants.program(fault),
            environ={**(environ or {}), plants.OBSERVATIONS: str(self._observations)},
        )

    def look(self) -> dict[str, float]:
        """Tasks, streams, calls, subscriptions, keys, descriptors, objects, readers, bytes."""
        before = self._observations.stat().st_size
        self.send(signal.SIGUSR1)
        deadline = time.monotonic() + LOOK_S
        while not (text := self._since(before)).endswith("\n"):
            assert time.monotonic() < deadline, "the server says nothing of itself"
            time.sleep(0.01)
        seen: dict[str, float] = json.loads(text.splitlines()[-1])
        return {**seen, "bytes": anonymous_bytes(self.process.pid)}

    def _since(self, position: int) -> str:
        with self._observations.open() as file:
            file.seek(position)
            return file.read()
