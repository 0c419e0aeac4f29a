"""What runs beside the calls for as long as the server does, and is begun again when it breaks.

background = Background()
background.begin("sweeper", lambda: sweeper.run(engine, …))
await background.end()

All of it is needed: without it nothing expires, nobody follows a revoked token, memory has no
bound. None of it is worth the server: each keeps what it knows elsewhere, in the engine, in the
streams, in files, so a run that follows another misses nothing; an error that passes, as no memory
or no thread, has passed by then; and one that does not would break the next process at the same
place, and the calls with it. So there is a pause, a line in the log with the traceback, a count
for an alert, and another run.

What is not here: the writer, whose failure is the store's, and the questions for calls, without
which nobody is heard. Those end the server (exit code 3).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import structlog

AGAIN_S = 1.0
AGAIN_MAX_S = 60.0
"""Before another run: longer each time."""

STEADY_S = 300.0
"""What ran so long has recovered: the next pause is short."""

log = structlog.get_logger("resultd.server")


Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""Makes a run."""


class Background:
    """Tasks by name, from `begin` until `end`."""

    def __init__(self) -> None:
        #: How often each broke.
        self.broken: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, name: str, work: Work) -> None:
        """Runs what `work` makes, until it returns; makes it again when it breaks."""
        self.broken[name] = 0
        self._tasks.append(asyncio.create_task(self._keep(name, work), name=name))

    async def end(self) -> None:
        """Cancels everything, and waits for it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, name: str, work: Work) -> None:
        loop = asyncio.get_running_loop()
        pause_s = AGAIN_S
        while True:
            began_s = loop.time()
            try:
                await work()
                return  # there is nothing to do here, or no more
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a panic of cryptography's is no Exception
                self.broken[name] += 1
                if loop.time() - began_s > STEADY_S:
                    pause_s = AGAIN_S
                log.critical("background task broke", task=name, again_s=pause_s, exc_info=error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_MAX_S)
