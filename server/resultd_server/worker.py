"""One of several server processes: `python -m resultd_server.worker`, started by `supervisor`.

It is told what to do in one line of JSON on its standard input, which then stays open: its
end is the word that the supervisor is gone, and the worker goes too.
"""

from __future__ import annotations

import asyncio
import io
import sys

from resultd_server import event_loop, logs, serve, supervisor


async def _run(stdin: io.FileIO, line: bytes) -> int:
    settings, place = supervisor.read_order(line)
    logs.configure(settings.log_level)
    orphaned = asyncio.Event()
    watching = asyncio.create_task(_watch_supervisor(stdin, orphaned))
    try:
        return await serve.run(settings, place, orphaned)
    finally:
        watching.cancel()


async def _watch_supervisor(stdin: io.FileIO, orphaned: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stdin)
    await reader.read()
    orphaned.set()


def main() -> int:
    """Serves until it is told to stop; the exit code."""
    stdin = io.FileIO(0, closefd=False)  # unbuffered: the pipe is watched afterwards
    return event_loop.run(_run(stdin, stdin.readline()))


if __name__ == "__main__":
    sys.exit(main())
