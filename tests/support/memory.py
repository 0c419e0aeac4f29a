"""Memory of a server and of its reader, which is the tests' own process."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.server_process import ServerProcess

MIB = 2**20
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""For servers whose memory is compared: glibc keeps what was freed, in as many arenas as there
were threads at once; tens of MiB come and go with no leak. One arena that gives back shows what
is held."""


class Peak:
    """The most memory that server and reader had."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.server_bytes = self.reader_bytes = 0

    def look(self) -> None:
        """Looks at both now. Pages of the store's file, which the system may take, aside."""
        self.server_bytes = max(self.server_bytes, anonymous_bytes(self._server.process.pid))
        self.reader_bytes = max(self.reader_bytes, anonymous_bytes(os.getpid()))


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that no file stands behind."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024
