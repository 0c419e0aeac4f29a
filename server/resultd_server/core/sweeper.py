"""The sweeper: what has expired goes, a bounded step at a time.

Of a store with damage too: what cannot be read stays or is put off, and holds up nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from resultd_server import limits
from resultd_server.engine.base import Engine, Swept
from resultd_server.errors import DomainError, StoreFailed

EVERY_S = 1.0
NOTHING = Swept(0, 0, 0)


class Sweeps:
    """What the sweeper has done."""

    def __init__(self) -> None:
        self.expired = 0
        self.steps = 0
        self.refused = 0

    def count(self, swept: Swept) -> None:
        """Adds one step."""
        self.expired += swept.expired
        self.steps += swept.steps


async def run(
    engine: Engine,
    on_swept: Callable[[Swept], None],
    on_refused: Callable[[DomainError], None],
) -> None:
    """Sweeps until cancelled, or until the store has failed.

    A store that is overloaded, full or damaged in one place is tried again: without
    expiry it would only become fuller. So is one whose rows the rules stumble over.
    """
    while True:
        try:
            swept = await engine.sweep(limits.SWEEP_ROWS)
        except StoreFailed:
            return
        except DomainError as refusal:
            on_refused(refusal)
            # What was due and cannot be read is out of the way: others wait no second for each.
            swept = NOTHING._replace(more="due" in refusal.metadata)
        except Exception as error:  # noqa: BLE001  nobody else would delete what expires
            on_refused(DomainError(f"The sweeper stumbled, and goes on: {error!r}."))
            swept = NOTHING
        if swept.steps:
            on_swept(swept)
        # Between steps others have their turn, with an engine too that never waits.
        await asyncio.sleep(0 if swept.more else EVERY_S)
