"""One LMDB environment, one writer thread, group commit: how several processes share a store.

The writer is handed everything that queued while the last commit ran as the next
transaction, so the disk's latency is shared by whoever came together, and the two threads
change places twice a commit, not for every call. A caller is answered after its commit
returned; only then are hints given. Reads are short transactions on the caller's thread,
never across an await.

A server of one process has a journal before it: `journaled`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from resultd_server import limits
from resultd_server.engine import disk, environment
from resultd_server.engine.base import EngineStats, Space
from resultd_server.engine.environment import Txn
from resultd_server.engine.journal import sync_directory
from resultd_server.engine.lease import SHARES, Lease, check_data, check_format, open_lock
from resultd_server.engine.transactional import T, TransactionalEngine
from resultd_server.errors import (
    DomainError,
    Overloaded,
    RecordCorrupt,
    StoreFailed,
    StoreFull,
)
from resultd_server.ledger import counters, usage
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Changed, Unit, View
from resultd_server.ledger.usage import UNLIMITED, Allowance

_LOOK_AGAIN_BYTES = 1 * limits.MIB
"""How much may be written before live data is counted again: it takes a look at every database."""

_NEAR_BYTES = 32 * limits.MIB
"""This near to the limit it is counted for every commit."""

HINTS_FIRST_MAX = 4
"""Up to so many keys and waiters of a commit are told before its callers are answered."""

GATHER_TURNS = 8
GATHER_S = 0.005
GATHER_OPERATIONS = 64
GATHER_BYTES = 24 * limits.KIB
"""How long a commit waits for calls that are on their way: so many turns of the event loop that
bring none, so long in all, until there are so many or so much. A commit has a price of its own
(two threads change places, a flush), and with fewer of them calls cost less."""

_ROWS_BYTES = 512
"""What an operation writes beside what it was given, roughly: keys, headers, counters."""


WhyFull = Callable[[], StoreFull]
"""Makes the refusal of what grows: `full`, or `disk.full`."""


class Operation(NamedTuple):
    run: Callable[[Unit], Any]
    grows: bool
    size_bytes: int
    reports: int
    future: asyncio.Future[Any]


class Done(NamedTuple):
    operation: Operation
    result: Any
    error: BaseException | None


class Commit(NamedTuple):
    """What came of one transaction."""

    done: list[Done]
    changed: set[Changed]
    groups_incomplete: int = 0


class LmdbEngine(TransactionalEngine):
    """Keeps everything in `directory`, up to `max_db_bytes` of live data.

    `shared`: other processes use it too, and whoever started them all holds its `Lease`.
    """

    name = "lmdb"
    _keeps_left = False
    """Whether it serves what lies in the journal before LMDB has room for it."""

    def __init__(
        self,
        clock: Callable[[], int],
        directory: Path,
        *,
        max_db_bytes: int,
        sync: bool = True,
        shared: bool = False,
        allowance: Allowance = UNLIMITED,
    ) -> None:
        super().__init__(clock, allowance)
        self._directory = directory
        self._max_db_bytes = max_db_bytes
        self._sync = sync
        self._shared = shared
        # At most one batch: the next is handed over when its answers have been given.
        self._batches: queue.SimpleQueue[list[Operation] | None] = queue.SimpleQueue()
        self._pending: deque[Operation] = deque()
        self._handing_over = False
        self._together = 1  # how many operations shared a commit lately
        self._idle = asyncio.Event()
        self._idle.set()
        self._queued = 0
        self._queued_bytes = 0
        self._live_bytes = 0
        self._written_bytes = _LOOK_AGAIN_BYTES
        self._failure: BaseException | None = None
        self._writer: threading.Thread | None = None
        self._writing_since_s: float | None = None
        self._lease: Lease | None = None
        self._share: int | None = None
        self._dbs: dict[Db, Any] = {}
        self.commits = 0

    async def start(self) -> None:
        """Opens or makes the store.

        Raises OSError where somebody else has it, StoreFailed where it cannot be used.
        """
        if self._shared:
            self.store_id = check_format(self._directory)
            check_data(self._directory)
            with disk.explained(f"The data directory {self._directory}"):
                self._share = open_lock(self._directory, SHARES)
            fcntl.flock(self._share, fcntl.LOCK_SH)  # as long as this process lives
        else:
            self._lease = Lease(self._directory, keeps_left=self._keeps_left)
            self.store_id = self._lease.store_id
        try:
            self._open_environment()
        except BaseException:
            self._end_lease()
            raise
        self._loop = asyncio.get_running_loop()
        self._writer = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._writer.start()

    def _open_environment(self) -> None:
        headroom = max(environment.HEADROOM_BYTES_MIN, self._max_db_bytes // 10)
        map_bytes = self._max_db_bytes + headroom
        if self._lease is not None and self._lease.left is not None:
            # What is acknowledged fits, though `max_db_bytes` be less than it was.
            map_bytes = max(map_bytes, environment.replay_map_bytes(self._directory))
        self._env = environment.open_environment(self._directory, map_bytes, sync=self._sync)
        self._dbs = environment.open_databases(self._env, self._directory)
        sync_directory(self._directory)  # LMDB syncs what is in its file, not that there is one

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        await self._idle.wait()
        self._batches.put(None)
        await asyncio.to_thread(writer.join)
        self._env.close()
        self._end_lease()

    def _end_lease(self) -> None:
        if self._lease is not None:
            self._lease.close()
            self._lease = None
        if self._share is not None:
            os.close(self._share)
            self._share = None

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise failed(self._failure)
        if self._writer is None:
            raise StoreFailed("The store is closed: the server is stopping, ask the next one.")

    async def _write(
        self,
        operation: Callable[[Unit], T],
        *,
        grows: bool = True,
        size_bytes: int = 0,
        reports: int = 0,
    ) -> T:
        self._check_usable()
        if self._queued >= limits.WRITES_QUEUED_MAX or (
            self._queued_bytes + size_bytes > limits.WRITES_QUEUED_BYTES_MAX
        ):
            raise Overloaded("Too many writes are queued: try again later, with backoff.")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queued += 1
        self._queued_bytes += size_bytes
        self._pending.append(Operation(operation, grows, size_bytes, reports, future))
        self._hand_over_soon()
        return await future

    def _hand_over_soon(self) -> None:
        """After what the loop has at hand now: calls that came together share a commit.

        Who is alone goes with the loop's next turn. Where several came lately the loop takes
        turns for as long as they bring more: turns it has no other work for take microseconds.
        """
        if not self._handing_over:
            self._handing_over = True
            self._idle.clear()
            turns = GATHER_TURNS if self._together > 1 else 0
            self._loop.call_soon(self._gather, 1, turns, time.monotonic() + GATHER_S)

    def _gather(self, seen: int, turns: int, until_s: float) -> None:
        """Hands over what is pending, once no more than was `seen` has come for `turns` turns."""
        pending = len(self._pending)
        if pending > seen:
            turns = GATHER_TURNS
        if (
            not turns
            or pending >= GATHER_OPERATIONS
            or self._queued_bytes >= GATHER_BYTES
            or time.monotonic() >= until_s
        ):
            self._together = max(pending, self._together // 2)
            self._hand_over()
        else:
            self._loop.call_soon(self._gather, pending, turns - 1, until_s)

    def _hand_over(self) -> None:
        size = min(len(self._pending), limits.COMMIT_OPERATIONS_MAX)
        self._batches.put([self._pending.popleft() for _ in range(size)])

    def _read(self, operation: Callable[[View], T]) -> T:
        self._check_usable()
        try:
            with self._env.begin() as txn:
                return operation(View(Txn(txn, self._dbs), self.clock()))
        except environment.Error as error:
            self._fail(error)
            raise failed(error) from error

    # The writer's thread, from here.

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            self._writing_since_s = time.monotonic()
            commits = self._commit(batch)
            self._writing_since_s = None
            done_s = time.monotonic()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._deliver, commits, done_s)

    def _commit(self, operations: list[Operation]) -> list[Commit]:
        """Runs operations in one transaction, or in as many as their work takes."""
        commits: list[Commit] = []
        while operations:
            some = self._commit_some(operations)
            commits += some
            operations = operations[sum(len(commit.done) for commit in some) :]
        return commits

    def _commit_some(self, operations: list[Operation]) -> list[Commit]:
        """The same of the first of them, at least one; where one breaks it, each in its own."""
        if self._failure is not None:
            return [refused(operations, failed(self._failure))]
        try:
            return [self._attempt(operations)]
        except environment.MapFull:
            if len(operations) > 1:
                return self._commit_singly(operations)
            return [refused(operations, full())]
        except (environment.Error, OSError) as error:
            if environment.finds_no_room(self._env, self._directory, error):
                return [refused(operations, disk.full())]
            self._fail(error)
            return [refused(operations, failed(error))]
        except BaseException as error:  # noqa: BLE001  as an executor: the caller's to raise
            if len(operations) > 1:
                return self._commit_singly(operations)
            return [refused(operations, error)]

    def _commit_singly(self, operations: list[Operation]) -> list[Commit]:
        return [commit for operation in operations for commit in self._commit([operation])]

    def _attempt(self, operations: list[Operation]) -> Commit:
        began_s = time.monotonic()
        with self._env.begin(write=True) as txn:
            unit = Unit(Txn(txn, self._dbs), self.clock(), allowance=self.allowance)
            why_full = full if self._is_full(txn, operations) else None
            done = run_all(unit, operations, why_full)
        self.commits += 1
        self._commit_seconds.observe(time.monotonic() - began_s)
        self._commit_operations.observe(len(done))
        return Commit(done, unit.changed, unit.expired_incomplete)

    def _is_full(self, txn: environment.Transaction, operations: list[Operation]) -> bool:
        """Whether live data has reached its limit; looked at after every mebibyte written."""
        near = self._live_bytes >= self._max_db_bytes - _NEAR_BYTES
        if near or self._written_bytes >= _LOOK_AGAIN_BYTES:
            self._written_bytes = 0
            self._env.reader_check()  # of a backup that was killed, say: it keeps pages
            self._live_bytes = environment.count_live_bytes(txn, self._dbs)
        self._written_bytes += sum(each.size_bytes + _ROWS_BYTES for each in operations)
        return self._live_bytes >= self._max_db_bytes

    def _fail(self, error: BaseException) -> None:
        """Fail-stop: what a failed write left behind is not known."""
        if self._failure is None:
            self._failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(self._report_failure, error)

    # The event loop's thread again.

    def _report_failure(self, error: BaseException) -> None:
        if self.on_failure is not None:
            self.on_failure(error)

    def _deliver(self, commits: list[Commit], done_s: float) -> None:
        self._handing_over = False
        if self._pending:
            self._hand_over_soon()
        else:
            self._idle.set()
        for commit in commits:
            self._answer(commit, done_s)

    def _answer(self, commit: Commit, done_s: float) -> None:
        """Answers the callers of a commit that was done then, and gives its hints.

        A few waiters come first: gRPC writes an answer for 0.3 ms on this thread. Many would
        hold up the answers, and none do not matter.
        """
        changed = commit.changed
        self._groups_incomplete += commit.groups_incomplete
        hints_first = (
            len(changed) <= HINTS_FIRST_MAX and self.hub.waiting(changed) <= HINTS_FIRST_MAX
        )
        if hints_first:
            self.hub.announce(changed, done_s)
        for operation, result, error in commit.done:
            self._queued -= 1
            self._queued_bytes -= operation.size_bytes
            if operation.future.done():
                continue
            if error is None:
                operation.future.set_result(result)
            else:
                operation.future.set_exception(error)
        if not hints_first:
            self.hub.announce(changed, done_s)

    def writing_s(self) -> float:
        since_s = self._writing_since_s  # the writer's, and may be gone with the next look
        return 0.0 if since_s is None else time.monotonic() - since_s

    def stats(self) -> EngineStats:
        return EngineStats(
            self._commit_seconds,
            self._commit_operations,
            writes_queued=self._queued,
            writes_queued_bytes=self._queued_bytes,
            writing_s=self.writing_s(),
            revocations=self._revocations,
            groups_incomplete=self._groups_incomplete,
            held=self._held(),
            allowance=self.allowance,
            space=self._space(),
        )

    def _space(self) -> Space | None:
        """None while the store is closed, or cannot be looked at."""
        if self._writer is None or self._failure is not None:
            return None
        try:
            with self._env.begin() as txn:
                live_bytes = environment.count_live_bytes(txn, self._dbs)
            info = self._env.info()
            # Lines of process, thread and the transaction read, "-" if none is.
            readers = [row.split()[-1] for row in self._env.readers().splitlines()[1:]]
            disk = os.statvfs(self._directory)
            file_bytes = (self._directory / environment.DATA).stat().st_blocks * 512
        except (environment.Error, OSError):
            return None
        reading = [int(transaction) for transaction in readers if transaction.isdigit()]
        newest = info["last_txnid"]
        return Space(
            live_bytes=live_bytes,
            limit_bytes=self._max_db_bytes,
            file_bytes=file_bytes,
            disk_free_bytes=disk.f_bavail * disk.f_frsize,
            readers=info["num_readers"],
            readers_limit=info["max_readers"],
            oldest_reader_transactions=max(newest - min(reading, default=newest), 0),
        )


def refused(operations: list[Operation], error: BaseException) -> Commit:
    return Commit([Done(each, None, error) for each in operations], set())


def run_all(unit: Unit, operations: list[Operation], why_full: WhyFull | None) -> list[Done]:
    """Runs operations one after another in one unit; raises where one of them breaks it.

    The first of them only, at least one, where that was work enough. `why_full`: what grows is
    refused with it.
    """
    done: list[Done] = []
    for operation in operations:
        if done and unit.exhausted:
            break
        if why_full is not None and operation.grows:
            done.append(Done(operation, None, why_full()))
            continue
        try:
            done.append(Done(operation, operation.run(unit), None))
        except RecordCorrupt:
            raise  # met in the middle: what came before it is to be taken back
        except DomainError as error:
            done.append(Done(operation, None, error))
    counters.flush(unit)
    usage.flush(unit)
    return done


def full() -> StoreFull:
    """The refusal of what grows while the store has all it may have."""
    return StoreFull(
        "The store is full: forget results, shorten their time to live, or raise max_db_bytes; "
        "reads, forgetting and expiry go on."
    )


def failed(error: BaseException) -> StoreFailed:
    return StoreFailed(f"The store failed and the server is stopping: {error}.")
