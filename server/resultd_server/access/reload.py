"""Files that are followed while the server runs: certificates, keys, who is let in.

They are read, not asked for their time: files replaced twice within the clock's grain, or by
a symbolic link that turns elsewhere, are seen. What cannot be used changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import structlog

from resultd_server.config import ConfigError

PERIOD_S = 1.0
SETTLED_S = 0.1

T = TypeVar("T")
log = structlog.get_logger("resultd.access")


class Followed(Protocol[T]):
    """Files that something was made from."""

    what: str

    def read(self) -> T:
        """Their contents. Raises ConfigError."""

    def take(self, contents: T) -> None:
        """Goes by them. Raises ConfigError, and goes on as before."""


async def follow(files: Followed[T], seen: T, taken: Callable[[], None] = lambda: None) -> None:
    """Takes what changes, calls `taken` then; runs until cancelled."""
    last: T | ConfigError = seen
    while True:
        await asyncio.sleep(PERIOD_S)
        found = await _look(files)
        if _same(found, last):
            continue
        # Somebody may be writing: a file cut short can look like one that lets nobody in.
        await asyncio.sleep(SETTLED_S)
        if not _same(found, await _look(files)):
            continue
        last = found
        try:
            if isinstance(found, ConfigError):
                raise found
            files.take(found)
        except ConfigError as error:
            log.error("not reloaded, the old one stays", what=files.what, why=str(error))
            continue
        log.info("reloaded", what=files.what)
        taken()


async def _look(files: Followed[Any]) -> Any:
    try:
        return await asyncio.to_thread(files.read)
    except ConfigError as error:
        return error


def _same(found: object, other: object) -> bool:
    if isinstance(found, ConfigError) and isinstance(other, ConfigError):
        return str(found) == str(other)
    return found == other
