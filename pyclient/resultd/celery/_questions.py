"""When a worker's main process looks for unfinished chords: in its event loop, in no thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

# Seconds after which what was found unfinished is looked at again: then it is taken over.
LOOK_AGAIN = 6.0
# Seconds that a question may be late before it is taken for forgotten.
LATE = 5.0


class Questions:
    """Asks again and again.

    Args:
        timer: the worker's.
        ask: gives whether there is something to look at again.
        period: seconds between two questions.
    """

    def __init__(self, timer: Any, ask: Callable[[], bool], period: float) -> None:
        self._timer = timer
        self._ask = ask
        self._period = period
        self._begin()

    def revive(self) -> None:
        """Begin again if it was forgotten.

        Celery before 5.7 clears the worker's timer when the broker's connection breaks.
        """
        if time.monotonic() - self._asked > self._period + LATE:
            self._entry.cancel()
            self._begin()

    def _begin(self) -> None:
        self._asked = time.monotonic()
        self._entry = self._timer.call_repeatedly(self._period, self._question)

    def _question(self) -> None:
        self._asked = time.monotonic()
        if self._ask():
            self._timer.call_after(LOOK_AGAIN, self._ask)
