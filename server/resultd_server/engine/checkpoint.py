"""Layers above LMDB, and the checkpoints that write them into it.

There are two layers, as there are two files of the journal: the active one grows with
every commit; the frozen one is being written into LMDB, on a thread of its own. When that
is done its file may be overwritten. Everything here but that writing runs on the event
loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import select
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from resultd_server import limits
from resultd_server.engine import environment, recovery
from resultd_server.engine.journal import Journal
from resultd_server.engine.overlay import Layer
from resultd_server.engine.recovery import Progress, Target

BEGIN_BYTES = 8 * limits.MIB
BEGIN_ROWS = 20_000
BEGIN_AFTER_S = 1.0
"""A layer is frozen when it has so much, or when its first row is so old.
Its keys are sorted at once, which holds the event loop up: 20,000 for about 5 ms."""

LAYER_ROWS_MAX = 100_000
"""A layer has at most so many rows and one commit's, at about 300 bytes beside their data."""

RETRY_S = 1.0
"""How soon a checkpoint that found no room is tried again."""

PAUSE_S = 0.000_5
"""What a checkpoint leaves to others after every slice of rows."""

_ALL_ROWS = 2**62


class Checkpoints:
    """The layers of a store, and the one checkpoint under way, if there is one.

    Attributes:
        active, frozen: the layers.
        live_bytes: what lies in LMDB, as of the last checkpoint.
        stuck: whether the checkpoint under way finds no room; it is tried again.
        map_full: whether that was in LMDB's map, and not on the disk.
        entry_open: set while an entry is on its way to the active layer's file, which is
            not left meanwhile.
    """

    def __init__(
        self,
        target: Target,
        journal: Journal,
        directory: Path,
        live_bytes: int,
        on_failure: Callable[[BaseException], None],
        left: Layer | None = None,
    ) -> None:
        """`left`: what the journal has and LMDB has no room for; tried again at once."""
        self._target = target
        self._journal = journal
        self._directory = directory
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-checkpoint")
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        self._hurry = False
        self._failed = False
        # Set when a checkpoint has succeeded or found no room, and when the store failed.
        self._settled = asyncio.Event()
        self.active = Layer()
        self.frozen: Layer | None = None
        self.live_bytes = live_bytes
        self.stuck = False
        self.map_full = False
        self.entry_open = False
        if left:
            self.frozen, self.stuck = left, True
            self._write_in_background(left)

    def layers(self) -> tuple[Layer, ...]:
        """What has rows, the newest first. For the event loop's thread, which changes them."""
        if self.frozen is not None:
            return (self.active, self.frozen)
        return (self.active,) if self.active else ()

    def size_bytes(self) -> int:
        """What the layers may add to LMDB, roughly."""
        return sum(layer.size_bytes for layer in self.layers())

    def add(self, layer: Layer) -> None:
        """Lays a commit over everything."""
        self.active.update(layer)
        self._begin_later()

    def begin_if_due(self) -> None:
        """Begins a checkpoint if it is time and none is under way."""
        if self.frozen is not None or self.entry_open or not self.active:
            return
        active = self.active
        if self._due or active.size_bytes >= BEGIN_BYTES or len(active) >= BEGIN_ROWS:
            self._begin()

    async def make_room(self, entry: bytes, spare_bytes: int) -> bool:
        """Until the journal and the active layer can take an entry; whether they can."""
        while not self._journal.has_room(entry, spare_bytes) or len(self.active) >= LAYER_ROWS_MAX:
            if self.stuck or self._failed:
                return False
            if self.frozen is not None:
                await self._settle()
            elif self.active:
                self._begin()
            else:
                self._journal.rotate()  # the disk was full; nothing is left in either file
                return True
        return True

    async def write_all(self) -> bool:
        """Until nothing is left above LMDB; whether that is so."""
        while self.layers():
            if self.stuck or self._failed:
                return False
            if self.frozen is None:
                self._begin()
            await self._settle()
        return True

    async def write_through(self, layer: Layer) -> None:
        """Writes a layer in one transaction, durable on return.

        Nothing may be left above LMDB. Raises environment.Error.
        """
        self.live_bytes = await self._loop.run_in_executor(
            self._thread,
            functools.partial(recovery.write, self._target, layer, None, txn_rows=_ALL_ROWS),
        )

    def give_up(self) -> None:
        """The store failed: nobody is to wait for a checkpoint."""
        self._failed = True
        self._settled.set()

    async def close(self) -> None:
        """Ends. What is still above LMDB stays in the journal."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self._thread.shutdown)

    async def _settle(self) -> None:
        self._hurry = True
        await self._settled.wait()

    def _begin_later(self) -> None:
        if self._timer is None and self.active:
            self._timer = self._loop.call_later(BEGIN_AFTER_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._due = True
        self.begin_if_due()

    def _begin(self) -> None:
        """Freezes the active layer and writes it in the background."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = self._hurry = False
        self._settled.clear()
        self.frozen, self.active = self.active, Layer()
        self._write_in_background(self.frozen)
        self._journal.rotate()

    def _write_in_background(self, frozen: Layer) -> None:
        """Begins to write what the journal has by now."""
        progress = Progress(self._journal.run, self._journal.entry)
        self._task = self._loop.create_task(self._write_frozen(frozen, progress))

    async def _write_frozen(self, frozen: Layer, progress: Progress) -> None:
        first, rest = Layer(), frozen
        # Whether rows may be gone that a commit in the active layer deletes. They are until that
        # layer's own checkpoint, also where a later commit puts them again.
        early = False
        while True:
            try:
                self.live_bytes = await self._loop.run_in_executor(
                    self._thread, self._write, first, rest, progress, not early
                )
            except (environment.Error, OSError) as error:
                if not environment.finds_no_room(self._target.environment, self._directory, error):
                    self._on_failure(error)
                    return
                self.map_full = isinstance(error, environment.MapFull)
            except Exception as error:  # noqa: BLE001  a bug here must not look like a slow disk
                self._on_failure(error)
                return
            else:
                break
            self.stuck = True
            self._settled.set()
            await asyncio.sleep(RETRY_S)
            first, rest = _deletions_first(frozen, self.active)
            early = early or _deletes(self.active)
        self.stuck = False
        self.frozen = None
        self._settled.set()
        self._begin_later()
        self.begin_if_due()

    # The checkpoint's thread.

    def _write(self, first: Layer, rest: Layer, progress: Progress, whole: bool) -> int:
        # A backup that was killed would keep pages from being used again until a restart.
        self._target.environment.reader_check()
        if first:
            recovery.write(self._target, first, None, pause=self._pause, whole=False)
        return recovery.write(self._target, rest, progress, pause=self._pause, whole=whole)

    def _pause(self) -> None:
        """Lets the event loop's thread have Python's lock."""
        # Not time.sleep(): it has a deadline on a clock, and fails where one is set under it.
        select.select((), (), (), 0 if self._hurry else PAUSE_S)


def _deletions_first(frozen: Layer, active: Layer) -> tuple[Layer, Layer]:
    """What is deleted in either layer, and what is not: so that forgetting makes room.

    Rows that are deleted early are none the less deleted: readers ask the layers first. Who reads
    LMDB alone (`backup`) has to wait for the rest of the active layer's commits.
    """
    deletions, rest = Layer(), Layer()
    for layer in (frozen, active):
        for db, rows in layer.dbs.items():
            markers = {key: None for key, value in rows.values.items() if value is None}
            deletions.of(db).values.update(markers)
    for db, rows in frozen.dbs.items():
        gone = deletions.of(db).values
        kept = {key: value for key, value in rows.values.items() if key not in gone}
        rest.of(db).values.update(kept)
    return deletions, rest


def _deletes(layer: Layer) -> bool:
    return any(None in rows.values.values() for rows in layer.dbs.values())
