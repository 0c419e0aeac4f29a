"""First starts that are killed, one at each of the calls that change something on disk.

`python -m tests.support.killed_start PARENT` makes a directory for each in PARENT, 1, 2, 3 …; in
the last one the start was not killed any more.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from resultd_server.app import wall_clock_ms
from resultd_server.engine.journaled import JournaledEngine
from tests.support.stores import MAP_BYTES

COUNTED = ("posix", "Environment", "Transaction")
"""What has the calls that count: the system, and LMDB."""


def start(directory: Path, calls: int) -> None:
    """Starts an engine in this process, which is killed before its so many-th call."""
    left = calls

    def look(_: FrameType, event: str, called: Any) -> None:
        nonlocal left
        owner = getattr(called, "__self__", None)
        if event == "c_call" and getattr(owner, "__name__", type(owner).__name__) in COUNTED:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    engine = JournaledEngine(wall_clock_ms, directory, max_db_bytes=MAP_BYTES)
    sys.setprofile(look)
    asyncio.run(engine.start())


def main(parent: Path) -> None:
    """All of them, each in a process of its own."""
    calls = code = 0
    while calls == 0 or os.waitstatus_to_exitcode(code):
        calls += 1
        child = os.fork()
        if not child:
            start(parent / str(calls), calls)
            os._exit(0)
        _, code = os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
