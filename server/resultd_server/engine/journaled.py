"""The embedded default: a journal before LMDB, one flush for what came together.

Everything that queued while the last commit was written runs as the next one: on the
event loop's thread if that is short, else on the writer's. What it changed goes to the
writer's thread as bytes. When they are on disk the rows are laid over LMDB (`checkpoint`),
callers are answered, hints are given. Reading and writing look at these layers first,
then at LMDB.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from resultd_server import limits
from resultd_server.engine import disk, environment, recovery
from resultd_server.engine.base import Space
from resultd_server.engine.checkpoint import Checkpoints
from resultd_server.engine.environment import Txn
from resultd_server.engine.journal import SPARE_BYTES, Journal
from resultd_server.engine.lmdb import (
    Commit,
    Done,
    LmdbEngine,
    Operation,
    WhyFull,
    failed,
    full,
    refused,
    run_all,
)
from resultd_server.engine.overlay import Layer, OverlayTxn, WriteSet
from resultd_server.engine.recovery import Left, Target
from resultd_server.engine.transactional import T
from resultd_server.errors import DomainError
from resultd_server.ledger.unit import Changed, Place, Unit, View

COMMIT_BYTES = 1 * limits.MIB
"""A commit takes no more than this and one operation."""

ON_LOOP_OPERATIONS = 64
ON_LOOP_BYTES = 24 * limits.KIB
ON_LOOP_BYTES_OTHER = 2 * limits.KIB
"""What runs on the event loop's thread, for 1.5 ms at most as a rule: so many reports and other
operations, so much in all, and in one that is no report. Going to another thread and back costs
0.1 ms, more than most commits take."""

ON_LOOP_S = 0.005
ON_LOOP_SHARE = 0.01
"""What took longer, for members may be of many groups and records large, is followed by so much
time without any that it was no more than this share."""

VACANT_MAX = 1_000
"""How many empty places are kept in mind from commit to commit: three for each namespace."""


class _Batch(NamedTuple):
    """What a commit's operations came to, and what they change."""

    commit: Commit
    layer: Layer


class JournaledEngine(LmdbEngine):
    """Keeps everything in `directory`, which is this process's alone; see `LmdbEngine`."""

    _keeps_left = True

    def _open_environment(self) -> None:
        super()._open_environment()
        try:
            target = recovery.open_target(self._env, self._dbs)
            self._journal, left = self._begin(target)
            with self._env.begin() as txn:
                live_bytes = environment.count_live_bytes(txn, self._dbs)
        except (environment.Error, OSError) as error:
            self._env.close()
            raise environment.cannot_open(self._directory, error) from error
        self._checkpoints = Checkpoints(
            target, self._journal, self._directory, live_bytes, self._fail, left
        )
        # One at a time: whoever gives one waits for it.
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._take_max = limits.COMMIT_OPERATIONS_MAX
        self._on_loop_from_s = 0.0
        # What units found is true only of what is kept: cleared wherever that is not.
        self._vacant: set[Place] = set()

    def _begin(self, target: Target) -> tuple[Journal, Layer]:
        """The journal of a new run; or of the last one, which goes on where there is no room.

        And what of it LMDB has not got. Raises environment.Error, OSError.
        """
        assert self._lease is not None  # it is this process's alone
        left, self._lease.left = self._lease.left, None
        if left is None:
            try:
                run = recovery.begin_run(target)
            except environment.Error as error:
                progress = recovery.progress_of(target)
                if progress is None or not environment.finds_no_room(
                    self._env, self._directory, error
                ):
                    raise
                left = Left(progress, Layer())
            else:
                begun = Journal(self._directory, run, sync=self._sync)
                begun.reserve()
                return begun, Layer()
        return recovery.go_on(target, self._directory, left, sync=self._sync), left.layer

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        await self._idle.wait()
        await self._checkpoints.write_all()
        await self._checkpoints.close()
        self._jobs.put(None)
        await asyncio.to_thread(writer.join)
        self._journal.close()
        self._env.close()
        self._end_lease()

    def _read(self, operation: Callable[[View], T]) -> T:
        self._check_usable()
        layers = self._checkpoints.layers()
        try:
            with self._env.begin() as raw:
                txn = Txn(raw, self._dbs)
                return operation(View(OverlayTxn(layers, txn) if layers else txn, self.clock()))
        except environment.Error as error:
            self._fail(error)
            raise failed(error) from error

    def _hand_over(self) -> None:
        self._committing = self._loop.create_task(self._commit_pending())  # kept: else collected

    async def _commit_pending(self) -> None:
        operations = self._take()
        self._writing_since_s = time.monotonic()
        try:
            await self._commit_batch(operations, self._writing_since_s)
        except DomainError as refusal:
            self._vacant.clear()
            self._answer(refused(operations, refusal), time.monotonic())
        except Exception as error:  # noqa: BLE001  whatever it is, callers are told
            self._fail(error)
            self._answer(refused(operations, failed(error)), time.monotonic())
        self._writing_since_s = None
        self._checkpoints.begin_if_due()
        self._handing_over = False
        if self._pending:
            self._hand_over_soon()
        else:
            self._idle.set()

    def _take(self) -> list[Operation]:
        """What the next commit is made of, at least one operation."""
        taken: list[Operation] = []
        size_bytes = 0
        while self._pending and len(taken) < self._take_max and size_bytes < COMMIT_BYTES:
            taken.append(self._pending.popleft())
            size_bytes += taken[-1].size_bytes
        self._take_max = limits.COMMIT_OPERATIONS_MAX
        return taken

    async def _commit_batch(self, operations: list[Operation], began_s: float) -> None:
        """Runs operations, keeps what they change, answers. Raises DomainError for them all."""
        if self._failure is not None:
            raise failed(self._failure)
        why_full = await self._why_full(operations)
        # Here and not where they run: only this thread sees them change from one to the next.
        # Those that are written into LMDB meanwhile still say what it says.
        layers = self._checkpoints.layers()
        if _is_short(operations) and began_s >= self._on_loop_from_s:
            batch = self._run_on_loop(operations, layers, why_full)
        else:
            job = functools.partial(self._run_batch, operations, layers, why_full)
            batch = await self._in_thread(job)
        if batch.layer:
            entry = self._journal.encode(batch.layer)
            batch.layer.size_bytes = len(entry)
            if self._journal.fits(entry):
                # Of a full store nothing in it grows, whoever came together.
                spares = why_full is None and _may_grow(operations)
                await self._append(entry, SPARE_BYTES if spares else 0)
                self._checkpoints.add(batch.layer)
            elif len(operations) > 1:
                # Fewer at a time: they run again, having changed nothing.
                self._vacant.clear()
                self._pending.extendleft(reversed(operations))
                self._take_max = len(operations) // 2
                return
            else:
                await self._write_through(batch.layer)
            self.commits += 1
        done_s = time.monotonic()
        done = len(batch.commit.done)
        self._commit_seconds.observe(done_s - began_s)
        self._commit_operations.observe(done)
        self._answer(batch.commit, done_s)
        self._pending.extendleft(reversed(operations[done:]))  # the rest was too much for one

    async def _why_full(self, operations: list[Operation]) -> WhyFull | None:
        """What refuses those that grow, if they are to be.

        Where live data has reached its limit: what the layers will add is an estimate and
        refuses nobody, so where it matters they are written first. And where the disk might
        not take what the layers have: it is acknowledged.
        """
        checkpoints = self._checkpoints
        if not _may_grow(operations):
            return None
        if checkpoints.live_bytes + checkpoints.size_bytes() >= self._max_db_bytes:
            await checkpoints.write_all()
        if checkpoints.stuck:
            return self._why_stuck()
        if checkpoints.live_bytes >= self._max_db_bytes:
            return full
        is_full = disk.is_full(self._directory, 2 * checkpoints.size_bytes())
        return disk.full if is_full else None

    def _why_stuck(self) -> WhyFull:
        return full if self._checkpoints.map_full else disk.full

    def _run_on_loop(
        self, operations: list[Operation], layers: Sequence[Layer], why_full: WhyFull | None
    ) -> _Batch:
        """Runs operations here; if that took long, the next ones run on the writer's thread."""
        began_s = time.monotonic()
        try:
            return self._run_batch(operations, layers, why_full)
        finally:
            ended_s = time.monotonic()
            if ended_s - began_s > ON_LOOP_S:
                self._on_loop_from_s = ended_s + (ended_s - began_s) / ON_LOOP_SHARE

    def _run_batch(
        self, operations: list[Operation], layers: Sequence[Layer], why_full: WhyFull | None
    ) -> _Batch:
        """Runs operations together, those that are work enough; where one breaks that, singly."""
        try:
            with self._env.begin() as raw:
                below = Txn(raw, self._dbs)
                try:
                    return self._run_together(operations, layers, below, why_full)
                except environment.Error:
                    raise
                except BaseException as error:  # noqa: BLE001  as an executor: the caller's to raise
                    if len(operations) == 1:
                        return _Batch(refused(operations, error), Layer())
                return self._run_singly(operations, layers, below, why_full)
        except environment.Error as error:
            self._fail(error)
            raise failed(error) from error

    def _run_together(
        self,
        operations: list[Operation],
        layers: Sequence[Layer],
        below: Txn,
        why_full: WhyFull | None,
    ) -> _Batch:
        txn = WriteSet(layers, below)
        if len(self._vacant) > VACANT_MAX:
            self._vacant.clear()
        unit = Unit(txn, self.clock(), self._vacant, allowance=self.allowance)
        try:
            done = run_all(unit, operations, why_full)
        except BaseException:
            self._vacant.clear()
            raise
        return _Batch(Commit(done, unit.changed, unit.expired_incomplete), txn.own)

    def _run_singly(
        self,
        operations: list[Operation],
        layers: Sequence[Layer],
        below: Txn,
        why_full: WhyFull | None,
    ) -> _Batch:
        kept = Layer()
        done: list[Done] = []
        changed: set[Changed] = set()
        groups_incomplete = 0
        for operation in operations:
            try:
                one = self._run_together([operation], (kept, *layers), below, why_full)
            except environment.Error:
                raise
            except BaseException as error:  # noqa: BLE001  as above
                done.append(Done(operation, None, error))
                continue
            kept.update(one.layer)
            done += one.commit.done
            changed |= one.commit.changed
            groups_incomplete += one.commit.groups_incomplete
        return _Batch(Commit(done, changed, groups_incomplete), kept)

    async def _append(self, entry: bytes, spare_bytes: int) -> None:
        """Has an entry on disk. Raises DomainError; it is none then."""
        if not await self._checkpoints.make_room(entry, spare_bytes):
            raise self._why_stuck()() if self._failure is None else failed(self._failure)
        self._checkpoints.entry_open = True
        refusal = await self._in_thread(functools.partial(self._write_entry, entry, spare_bytes))
        self._checkpoints.entry_open = False
        if refusal is not None:
            raise refusal

    async def _in_thread(self, job: Callable[[], T]) -> T:
        """Has the writer's thread do something."""
        done: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((job, done))
        return await done

    async def _write_through(self, layer: Layer) -> None:
        """Writes what is too large for the journal straight into LMDB. Raises DomainError."""
        if not await self._checkpoints.write_all():
            raise self._why_stuck()() if self._failure is None else failed(self._failure)
        try:
            await self._checkpoints.write_through(layer)
        except environment.MapFull:
            raise full() from None
        except (environment.Error, OSError) as error:
            if environment.finds_no_room(self._env, self._directory, error):
                raise disk.full() from None
            self._fail(error)
            raise failed(error) from error

    def _space(self) -> Space | None:
        space = super()._space()
        if space is None:
            return None
        return space._replace(live_bytes=space.live_bytes + self._checkpoints.size_bytes())

    def _report_failure(self, error: BaseException) -> None:
        self._checkpoints.give_up()
        super()._report_failure(error)

    # The writer's thread, from here.

    def _run(self) -> None:
        while (given := self._jobs.get()) is not None:
            job, done = given
            try:
                tell, outcome = done.set_result, job()
            except Exception as error:  # noqa: BLE001  as an executor: the giver's to raise
                tell, outcome = done.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(tell, outcome)

    def _write_entry(self, entry: bytes, spare_bytes: int) -> DomainError | None:
        """Appends to the journal; why not, if it could not."""
        try:
            self._journal.append(entry, spare_bytes)
        except OSError as error:
            worse = error
            if disk.says_no_room(error):
                try:
                    self._journal.take_back()
                    return disk.full()
                except OSError as again:
                    worse = again
            self._fail(worse)
            return failed(worse)
        return None


def _may_grow(operations: list[Operation]) -> bool:
    return any(operation.grows for operation in operations)


def _is_short(operations: list[Operation]) -> bool:
    """Whether to run them takes less than the event loop may wait."""
    many = size_bytes = other_bytes = 0
    for operation in operations:
        many += operation.reports or 1
        size_bytes += operation.size_bytes
        if not operation.reports:
            other_bytes = max(other_bytes, operation.size_bytes)
    return (
        many <= ON_LOOP_OPERATIONS
        and size_bytes <= ON_LOOP_BYTES
        and other_bytes <= ON_LOOP_BYTES_OTHER
    )
