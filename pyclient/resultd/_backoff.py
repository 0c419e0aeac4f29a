"""How long to wait before the next try."""

from __future__ import annotations

import random

FIRST = 0.05  # seconds before the second try, at most
CAP = 5.0  # seconds, at most, before any later one


def full_jitter(tries: int, at_least: float | None = None) -> float:
    """Seconds before the next try after `tries` failures: 0 .. min(CAP, FIRST * 2**tries).

    Full jitter, so that a thousand clients of a server that comes back do not come at once.
    A server that names a delay is given at least that, spread over another half of it.
    """
    delay = random.uniform(0.0, min(CAP, FIRST * 2 ** min(tries, 16)))
    if at_least:
        delay = max(delay, at_least * random.uniform(1.0, 1.5))
    return delay
