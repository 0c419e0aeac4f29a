"""Files that are followed while the server runs: certificates, keys, who is let in.

They are read, not asked for their time: files replaced twice within the clock's grain, or by
a symbolic link that turns elsewhere, are seen. What cannot be used changes nothing, and is
tried again each time: a certificate that is not valid yet becomes so by itself.
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


async def follow(
    files: Followed[T],
    seen: T,
    taken: Callable[[], None] = lambda: None,
    refused: Callable[[], None] = lambda: None,
) -> None:
    """Takes what changes, and calls `taken` then; runs until cancelled.

    `refused` is called at every look that finds what cannot be used; the log has a line when the
    reason is another than at the look before.
    """
    last: T | Exception = seen
    why = ""
    while True:
        await asyncio.sleep(PERIOD_S)
        found = await _look(files)
        if not _same(found, last):
            # Somebody may be writing: a file cut short can look like one that lets nobody in.
            await asyncio.sleep(SETTLED_S)
            if not _same(found, await _look(files)):
                continue
            last = found
        elif not why:
            continue
        error = _take(files, found)
        if error is None:
            why = ""
            log.info("reloaded", what=files.what)
            taken()
            continue
        refused()
        if why != _sentence(error):
            why = _sentence(error)
            bug = None if isinstance(error, ConfigError) else error
            log.error("not reloaded, the old one stays", what=files.what, why=why, exc_info=bug)


async def _look(files: Followed[Any]) -> Any:
    """What is there now, or the error there is instead."""
    try:
        return await asyncio.to_thread(files.read)
    except Exception as error:  # noqa: BLE001  nobody would follow a revoked token any more
        return error


def _take(files: Followed[Any], found: Any) -> Exception | None:
    if isinstance(found, Exception):
        return found
    try:
        files.take(found)
    except Exception as error:  # noqa: BLE001  as above: what the parsers raise has no end
        return error
    return None


def _sentence(error: Exception) -> str:
    # Of what nobody expected the class alone: its message may differ each time.
    return str(error) if isinstance(error, ConfigError) else f"{type(error).__name__} was raised."


def _same(found: object, other: object) -> bool:
    if isinstance(found, Exception) and isinstance(other, Exception):
        return _sentence(found) == _sentence(other)
    return found == other
