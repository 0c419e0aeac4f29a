"""What a server process is told by signals.

SIGTERM and SIGINT ask it to end: once in its own time, twice at once. SIGHUP is the word that
its terminal has gone, where it has one: the same as the first of those, however often it comes, for
a shell says it again. Elsewhere people send it to have files read again: they are followed anyway.
"""

from __future__ import annotations

import asyncio
import os
import signal

import structlog

log = structlog.get_logger("resultd.server")


class Signals:
    """Heeds signals from now on; on the event loop's main thread."""

    def __init__(self) -> None:
        self.once = asyncio.Event()
        """It is to end."""
        self.twice = asyncio.Event()
        """And at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup: it is to outlive it
            hung_up = self.once.set if _on_a_terminal() else _tell_of_files
            loop.add_signal_handler(signal.SIGHUP, hung_up)

    def _end(self) -> None:
        (self.twice if self.once.is_set() else self.once).set()


def _on_a_terminal() -> bool:
    """Whether there is a terminal whose end would be told; looked for while it is there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _tell_of_files() -> None:
    log.info("SIGHUP changes nothing: certificates and the auth file are followed by themselves")
