"""The embedded default: one LMDB environment, one writer thread, group commit.

The writer is handed everything that queued while the last commit ran as the next
transaction, so the disk's latency is shared by whoever came together, and the two threads
change places twice a commit, not for every call. A caller is answered after its commit
returned; only then are hints given. Reads are short
transactions on the caller's thread, never across an await.

A value is stored with a checksum over key and value: what a disk returns wrong is
refused, never passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import queue
import threading
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from resultd_server import limits
from resultd_server.engine.base import EngineStats, Space
from resultd_server.engine.transactional import T, TransactionalEngine
from resultd_server.errors import (
    DomainError,
    Overloaded,
    RecordCorrupt,
    StoreFailed,
    StoreFull,
)
from resultd_server.ledger import counters
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Changed, Unit, View

DATA_FORMAT = 1
LMDB_MAJOR = 0
"""The library's on-disk format: 0.9.x. The 1.0.x one cannot be read by it."""

READERS_MAX = 1_024
DATABASES_MAX = 64
HEADROOM_BYTES_MIN = 64 * limits.MIB
DISK_LOW_BYTES = 4 * limits.MIB
"""Below this a failed write is a full disk, which ends; above it a broken one."""

SHARES = "workers.lock"
"""Held by every process of a server that has several, for as long as it lives."""

LEFTOVERS_S = 5.0
"""What the workers of a killed supervisor have to end: they notice at once."""

_LOOK_S = 0.02

_LOOK_AGAIN_BYTES = 1 * limits.MIB
"""How much may be written before live data is counted again: it takes a look at every database."""

_NEAR_BYTES = 32 * limits.MIB
"""This near to the limit it is counted for every commit."""

_ROWS_BYTES = 512
"""What an operation writes beside what it was given, roughly: keys, headers, counters."""

_CHECKSUM_BYTES = 4
_KEY_BYTES_MAX = limits.ID_BYTES_MAX * 2  # no key is longer: LMDB refuses to look for more


class _Operation(NamedTuple):
    run: Callable[[Unit], Any]
    grows: bool
    size_bytes: int
    future: asyncio.Future[Any]


class _Done(NamedTuple):
    operation: _Operation
    result: Any
    error: BaseException | None


class _Commit(NamedTuple):
    """What came of one transaction."""

    done: list[_Done]
    changed: set[Changed]


class _Txn:
    """An LMDB transaction as the rules see one."""

    __slots__ = ("_dbs", "_probes", "_txn")

    def __init__(self, txn: lmdb.Transaction, dbs: dict[Db, Any]) -> None:
        self._txn = txn
        self._dbs = dbs
        self._probes: dict[Db, lmdb.Cursor] = {}

    def get(self, db: Db, key: bytes) -> bytes | None:
        row: Any = self._txn.get(key, db=self._dbs[db])  # bytes, since buffers=False
        return None if row is None else _open(key, row)

    def scan(self, db: Db, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        # Most scans find nothing: looked up with a cursor that is kept, making one costs more.
        probe = self._probes.get(db)
        if probe is None:
            probe = self._probes[db] = self._txn.cursor(db=self._dbs[db])
        if probe.set_range(start[:_KEY_BYTES_MAX]) and probe.key() < stop:  # type: ignore[operator]  # bytes, since buffers=False
            return self._rows(db, start, stop)
        return iter(())

    def _rows(self, db: Db, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._txn.cursor(db=self._dbs[db]) as cursor:
            if not cursor.set_range(start[:_KEY_BYTES_MAX]):
                return
            rows: Iterator[tuple[Any, Any]] = iter(cursor)  # bytes, since buffers=False
            for key, row in rows:
                if key >= stop:
                    return
                yield key, _open(key, row)

    def put(self, db: Db, key: bytes, value: bytes) -> None:
        checksum = zlib.crc32(value, zlib.crc32(key)).to_bytes(_CHECKSUM_BYTES, "big")
        self._txn.put(key, value + checksum, db=self._dbs[db])

    def delete(self, db: Db, key: bytes) -> bool:
        return bool(self._txn.delete(key, db=self._dbs[db]))


def _open(key: bytes, row: bytes) -> bytes:
    value = row[:-_CHECKSUM_BYTES]
    if zlib.crc32(value, zlib.crc32(key)).to_bytes(_CHECKSUM_BYTES, "big") != row[-4:]:
        raise RecordCorrupt(
            "A record does not match its checksum: restore the store from a backup.",
            key=key.hex(),
        )
    return value


class LmdbEngine(TransactionalEngine):
    """Keeps everything in `directory`, up to `max_db_bytes` of live data.

    `shared`: other processes use it too, and whoever started them all holds its `Lease`.
    """

    name = "lmdb"

    def __init__(
        self,
        clock: Callable[[], int],
        directory: Path,
        *,
        max_db_bytes: int,
        sync: bool = True,
        shared: bool = False,
    ) -> None:
        super().__init__(clock)
        self._directory = directory
        self._max_db_bytes = max_db_bytes
        self._sync = sync
        self._shared = shared
        # At most one batch: the next is handed over when its answers have been given.
        self._batches: queue.SimpleQueue[list[_Operation] | None] = queue.SimpleQueue()
        self._pending: deque[_Operation] = deque()
        self._handing_over = False
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
        """Opens or makes the store. Raises OSError, or StoreFailed for a foreign format."""
        if self._shared:
            self.store_id = _check_format(self._directory)
            self._share = _open_lock(self._directory, SHARES)
            fcntl.flock(self._share, fcntl.LOCK_SH)  # as long as this process lives
        else:
            self._lease = Lease(self._directory)
            self.store_id = self._lease.store_id
        try:
            self._open_environment()
        except BaseException:
            self._end_lease()
            raise
        self._loop = asyncio.get_running_loop()
        self._writer = threading.Thread(target=self._run, name="lmdb-writer", daemon=True)
        self._writer.start()

    def _open_environment(self) -> None:
        headroom = max(HEADROOM_BYTES_MIN, self._max_db_bytes // 10)
        try:
            self._env = lmdb.open(
                str(self._directory),
                # At its full size from the start: the map is sparse, and growing it later
                # breaks other processes' reads.
                map_size=self._max_db_bytes + headroom,
                max_dbs=DATABASES_MAX,
                max_readers=READERS_MAX,
                sync=self._sync,
                metasync=self._sync,
                writemap=False,  # with it a full disk is SIGBUS
                lib_version=LMDB_MAJOR,
            )
            self._env.reader_check()
            self._dbs = {db: self._env.open_db(db.value) for db in Db}
        except lmdb.Error as error:
            raise StoreFailed(
                f"The store in {self._directory} cannot be opened: {error}. Restore it from a "
                "backup, or name another directory."
            ) from error

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
            raise _failed(self._failure)
        if self._writer is None:
            raise StoreFailed("The store is closed: the server is stopping, ask the next one.")

    async def _write(
        self, operation: Callable[[Unit], T], *, grows: bool = True, size_bytes: int = 0
    ) -> T:
        self._check_usable()
        if self._queued >= limits.WRITES_QUEUED_MAX or (
            self._queued_bytes + size_bytes > limits.WRITES_QUEUED_BYTES_MAX
        ):
            raise Overloaded("Too many writes are queued: try again later, with backoff.")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queued += 1
        self._queued_bytes += size_bytes
        self._pending.append(_Operation(operation, grows, size_bytes, future))
        self._hand_over_soon()
        return await future

    def _hand_over_soon(self) -> None:
        """After what the loop has at hand now: calls that came together share a commit."""
        if not self._handing_over:
            self._handing_over = True
            self._idle.clear()
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        size = min(len(self._pending), limits.COMMIT_OPERATIONS_MAX)
        self._batches.put([self._pending.popleft() for _ in range(size)])

    def _read(self, operation: Callable[[View], T]) -> T:
        self._check_usable()
        try:
            with self._env.begin() as txn:
                return operation(View(_Txn(txn, self._dbs), self.clock()))
        except lmdb.Error as error:
            self._fail(error)
            raise _failed(error) from error

    # The writer's thread, from here.

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            self._writing_since_s = began_s = time.monotonic()
            commits = self._commit(batch)
            self._writing_since_s = None
            done_s = time.monotonic()
            self._commit_seconds.observe(done_s - began_s)
            self._commit_operations.observe(len(batch))
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._deliver, commits, done_s)

    def _commit(self, operations: list[_Operation]) -> list[_Commit]:
        """Runs operations in one transaction; where one breaks it, each in its own."""
        if self._failure is not None:
            return _refused(operations, _failed(self._failure))
        try:
            return [self._attempt(operations)]
        except lmdb.MapFullError:
            if len(operations) > 1:
                return self._commit_singly(operations)
            return _refused(operations, _full())
        except (lmdb.Error, OSError) as error:
            refusal: DomainError = _full()
            if not self._disk_is_full():
                self._fail(error)
                refusal = _failed(error)
            return _refused(operations, refusal)
        except BaseException as error:  # noqa: BLE001  as an executor: the caller's to raise
            if len(operations) > 1:
                return self._commit_singly(operations)
            return _refused(operations, error)

    def _commit_singly(self, operations: list[_Operation]) -> list[_Commit]:
        return [commit for operation in operations for commit in self._commit([operation])]

    def _attempt(self, operations: list[_Operation]) -> _Commit:
        done: list[_Done] = []
        with self._env.begin(write=True) as txn:
            unit = Unit(_Txn(txn, self._dbs), self.clock())
            full = self._is_full(txn, operations)
            for operation in operations:
                if full and operation.grows:
                    done.append(_Done(operation, None, _full()))
                    continue
                try:
                    done.append(_Done(operation, operation.run(unit), None))
                except RecordCorrupt:
                    raise  # met in the middle: what came before it is to be taken back
                except DomainError as error:
                    done.append(_Done(operation, None, error))
            counters.flush(unit)
        self.commits += 1
        return _Commit(done, unit.changed)

    def _is_full(self, txn: lmdb.Transaction, operations: list[_Operation]) -> bool:
        """Whether live data has reached its limit; looked at after every mebibyte written."""
        near = self._live_bytes >= self._max_db_bytes - _NEAR_BYTES
        if near or self._written_bytes >= _LOOK_AGAIN_BYTES:
            self._written_bytes = 0
            self._live_bytes = self._count_live_bytes(txn)
        self._written_bytes += sum(each.size_bytes + _ROWS_BYTES for each in operations)
        return self._live_bytes >= self._max_db_bytes

    def _count_live_bytes(self, txn: lmdb.Transaction) -> int:
        """Pages in use. The file's size says nothing: it never shrinks."""
        pages = 0
        page_bytes = 4096
        for db in self._dbs.values():
            stat = txn.stat(db)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            page_bytes = stat["psize"]
        return pages * page_bytes

    def _disk_is_full(self) -> bool:
        try:
            space = os.statvfs(self._directory)
        except OSError:
            return False  # a disk that will not even say is a broken one
        return space.f_bavail * space.f_frsize < DISK_LOW_BYTES

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

    def _deliver(self, commits: list[_Commit], done_s: float) -> None:
        self._handing_over = False
        if self._pending:
            self._hand_over_soon()
        else:
            self._idle.set()
        for commit in commits:
            for operation, result, error in commit.done:
                self._queued -= 1
                self._queued_bytes -= operation.size_bytes
                if operation.future.done():
                    continue
                if error is None:
                    operation.future.set_result(result)
                else:
                    operation.future.set_exception(error)
            self.hub.announce(commit.changed, done_s)

    def stats(self) -> EngineStats:
        since_s = self._writing_since_s  # the writer's, and may be gone with the next look
        return EngineStats(
            self._commit_seconds,
            self._commit_operations,
            writes_queued=self._queued,
            writes_queued_bytes=self._queued_bytes,
            writing_s=0.0 if since_s is None else time.monotonic() - since_s,
            revocations=self._revocations,
            space=self._space(),
        )

    def _space(self) -> Space | None:
        """None while the store is closed, or cannot be looked at."""
        if self._writer is None or self._failure is not None:
            return None
        try:
            with self._env.begin() as txn:
                live_bytes = self._count_live_bytes(txn)
            info = self._env.info()
            # Lines of process, thread and the transaction read, "-" if none is.
            readers = [row.split()[-1] for row in self._env.readers().splitlines()[1:]]
            disk = os.statvfs(self._directory)
            file_bytes = (self._directory / "data.mdb").stat().st_blocks * 512
        except (lmdb.Error, OSError):
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


def _refused(operations: list[_Operation], error: BaseException) -> list[_Commit]:
    return [_Commit([_Done(each, None, error) for each in operations], set())]


def _full() -> StoreFull:
    return StoreFull(
        "The store is full: forget results, shorten their time to live, or raise max_db_bytes; "
        "reads, forgetting and expiry go on."
    )


def _failed(error: BaseException) -> StoreFailed:
    return StoreFailed(f"The store failed and the server is stopping: {error}.")


class Lease:
    """The right to use a data directory, which is made if it is missing.

    Raises OSError where somebody else has it, StoreFailed for a foreign format.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._descriptor = _lock(directory)
        try:
            _await_leftovers(directory)
            self.store_id = _check_format(directory)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets others have it."""
        os.close(self._descriptor)


def _lock(directory: Path) -> int:
    """Keeps a second server off the directory. Raises OSError."""
    descriptor = _open_lock(directory, "resultd.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OSError(
            f"Another server uses the data directory {directory}: stop it, or name another "
            "directory with --data."
        ) from None
    return descriptor


def _open_lock(directory: Path, name: str) -> int:
    return os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _await_leftovers(directory: Path) -> None:
    """Until the workers of a supervisor that was killed have noticed. Raises OSError."""
    descriptor = _open_lock(directory, SHARES)
    try:
        for _ in range(int(LEFTOVERS_S / _LOOK_S)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(_LOOK_S)
    finally:
        os.close(descriptor)
    raise OSError(
        f"Workers of an earlier server still use {directory}, though it is gone: end them."
    )


def _check_format(directory: Path) -> str:
    """The store's id, from the note beside the data; written for a new store."""
    note = directory / "resultd.json"
    if not note.exists():
        if (directory / "data.mdb").exists():
            raise StoreFailed(
                f"{directory} holds an LMDB environment that is not ours: name another directory."
            )
        store_id = uuid.uuid4().hex
        said = {
            "format": DATA_FORMAT,
            "lmdb": ".".join(map(str, lmdb.version(lib_version=LMDB_MAJOR))),
            "store_id": store_id,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        _write_durably(note, json.dumps(said, indent=2) + "\n")
        return store_id
    try:
        said = json.loads(note.read_text())
        store_id, data_format, library = said["store_id"], said["format"], said["lmdb"]
    except (ValueError, KeyError, TypeError):
        raise StoreFailed(
            f"{note} is damaged: restore it from a backup, or name another directory."
        ) from None
    if data_format != DATA_FORMAT or not str(library).startswith(f"{LMDB_MAJOR}."):
        raise StoreFailed(
            f"{directory} has data format {data_format} (LMDB {library}) and this server "
            f"reads format {DATA_FORMAT} (LMDB {LMDB_MAJOR}.x): use the version that wrote it."
        )
    return str(store_id)


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
