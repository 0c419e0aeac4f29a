"""How many log lines of a kind there may be: so many a second, and then how many were left out.

rates = Rates()
if rates.admit(Kind("refused", "reason", "OVERLOADED")):
    …
for kind, count in rates.left_out().items():  # every now and then
    …

Whoever is refused in a loop would fill a disk: 9 MB/s came of one client.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

LINES_PER_SECOND = 10
"""Of a kind and a process."""


class Kind(NamedTuple):
    """What a line says, and a name and a value of the protocol that it says it of.

    Only what the code names, never what a peer sent: so there are not many.
    """

    event: str
    key: str = ""
    value: str = ""


class Rates:
    """Counts lines by their kind. Threads may share it."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        # Bears that whoever holds it comes again: a collection of garbage logs what it finds.
        self._lock = threading.RLock()
        self._began_s = clock_s()
        self._seen: dict[Kind, int] = {}
        self._left_out: dict[Kind, int] = {}

    def admit(self, kind: Kind) -> bool:
        """Whether there may be one more this second; counted if not."""
        now_s = self._clock_s()
        with self._lock:
            if now_s - self._began_s >= 1.0:
                self._began_s = now_s
                self._seen.clear()
            seen = self._seen.get(kind, 0)
            if seen < LINES_PER_SECOND:
                self._seen[kind] = seen + 1
                return True
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False

    def left_out(self) -> dict[Kind, int]:
        """How many were left out of each kind since this was asked last."""
        with self._lock:
            left_out, self._left_out = self._left_out, {}
        return left_out
