"""A point in time up to which somebody is willing to wait."""

from __future__ import annotations

import time

from resultd.errors import TimeoutError as WaitTimeout


class Deadline:
    """Counts a timeout down. None never runs out; 0 has run out already."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Seconds left, never below 0; None if there is no end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def within(self, seconds: float) -> float:
        """Return `seconds`, or what is left if that is less."""
        left = self.left()
        return seconds if left is None else min(seconds, left)

    def check(self, message: str = "The operation timed out.") -> None:
        """Raise `TimeoutError` if the time has run out."""
        if self.left() == 0.0:
            raise WaitTimeout(message)
