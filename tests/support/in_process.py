"""A server in the tests' own process, to look into while it is used over a socket.

async with serving() as served:
    await served.results.StoreResult(success("t"))
    assert served.app.streams.streams == 0
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from resultd_server import limits
from resultd_server.app import App, wall_clock_ms
from resultd_server.config import Settings
from resultd_server.engine.base import Clock
from tests.support.stubs import Stubs

WAIT_S = 20.0


class Served(Stubs):
    """A server, and stubs on a channel to it."""

    def __init__(self, app: App, address: str, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self.app = app
        self.address = address

    def waiting(self) -> tuple[int, int, int]:
        """(streams, subscriptions, keys waited for)."""
        return (self.app.streams.streams, *self.app.engine.hub.counts())

    async def idle(self) -> None:
        """Waits until nobody waits for anything."""
        await until(lambda: self.waiting() == (0, 0, 0))


@asynccontextmanager
async def serving(
    *, streams_max: int = limits.STREAMS_MAX, clock: Clock = wall_clock_ms, **settings: Any
) -> AsyncIterator[Served]:
    """Starts a server on a free port; stops it at once afterwards."""
    said = {"engine": "memory", "listen": "127.0.0.1:0", **settings}
    app = App(Settings(**said), clock, streams_max=streams_max)
    address = await app.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Served(app, address, channel)
    finally:
        await app.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition; fails after a while."""
    async with _deadline():
        while not condition():  # noqa: ASYNC110  whatever the condition is, it has no event
            await asyncio.sleep(0.005)


@asynccontextmanager
async def _deadline() -> AsyncIterator[None]:
    # asyncio.timeout is newer than the oldest Python we promise.
    task = asyncio.current_task()
    assert task is not None
    timer = asyncio.get_running_loop().call_later(WAIT_S, task.cancel)
    try:
        yield
    except asyncio.CancelledError:
        raise AssertionError(f"not so after {WAIT_S:g} s") from None
    finally:
        timer.cancel()
