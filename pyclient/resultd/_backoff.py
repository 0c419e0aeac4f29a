"""How long to wait before the next try."""

from __future__ import annotations

import os

FIRST = 0.05  # seconds before the second try, at most
CAP = 5.0  # seconds, at most, before any later one


def full_jitter(tries: int, at_least: float | None = None) -> float:
    """Seconds before the next try after `tries` failures: 0 .. min(CAP, FIRST * 2**tries).

    Full jitter, so that a thousand clients of a server that comes back do not come at once.
    A server that names a delay is given at least that, spread over another half of it.
    """
    delay: float = _fraction() * min(CAP, FIRST * 2 ** min(tries, 16))
    if at_least:
        delay = max(delay, at_least * (1.0 + _fraction() / 2))
    return delay


def _fraction() -> float:
    """A number from 0 to 1; `random` would bring as much along as the rest of the client."""
    return int.from_bytes(os.urandom(4), "big") / 2**32
