"""An engine is dropped as by a kill: nothing more is written, everything is let go."""

from __future__ import annotations

import asyncio

from resultd_server.engine.journaled import JournaledEngine


async def abandon(engine: JournaledEngine) -> None:
    """What was acknowledged is in LMDB or in the journal, whichever it has reached."""
    writer, engine._writer = engine._writer, None
    assert writer is not None
    await engine._checkpoints.close()
    engine._jobs.put(None)
    await asyncio.to_thread(writer.join)
    engine._journal.close()
    engine._env.close()
    engine._end_lease()
