"""The embedded default: one LMDB environment, one writer thread, group commit.

The writer takes everything that queued while the last commit ran into the next
transaction, so the disk's latency is shared by whoever came together. A caller is
answered after its commit returned; only then are hints given. Reads are short
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from resultd_server import limits
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
    """Keeps everything in `directory`, up to `max_db_bytes` of live data."""

    name = "lmdb"

    def __init__(
        self, clock: Callable[[], int], directory: Path, *, max_db_bytes: int, sync: bool = True
    ) -> None:
        super().__init__(clock)
        self._directory = directory
        self._max_db_bytes = max_db_bytes
        self._sync = sync
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._queued = 0
        self._queued_bytes = 0
        self._failure: BaseException | None = None
        self._writer: threading.Thread | None = None
        self._lock_file: int | None = None
        self._dbs: dict[Db, Any] = {}
        self.commits = 0

    async def start(self) -> None:
        """Opens or makes the store. Raises OSError, or StoreFailed for a foreign format."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock_file = _lock(self._directory)
        try:
            self.store_id = _check_format(self._directory)
            self._open_environment()
        except BaseException:
            self._unlock()
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
        self._queue.put(None)
        await asyncio.to_thread(writer.join)
        self._env.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

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
        self._queue.put(_Operation(operation, grows, size_bytes, future))
        return await future

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
        closing = False
        while not closing:
            batch = [self._queue.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < limits.COMMIT_OPERATIONS_MAX:
                    batch.append(self._queue.get_nowait())
            closing = None in batch
            operations = [operation for operation in batch if operation is not None]
            if operations:
                self._commit(operations)

    def _commit(self, operations: list[_Operation]) -> None:
        """Runs operations in one transaction; where one breaks it, each in its own."""
        if self._failure is not None:
            failure = _failed(self._failure)
            self._answer([_Done(each, None, failure) for each in operations], set())
            return
        try:
            done, changed = self._attempt(operations)
        except lmdb.MapFullError:
            if len(operations) > 1:
                self._commit_singly(operations)
                return
            done, changed = [_Done(operations[0], None, _full())], set()
        except (lmdb.Error, OSError) as error:
            refusal: DomainError = _full()
            if not self._disk_is_full():
                self._fail(error)
                refusal = _failed(error)
            done, changed = [_Done(each, None, refusal) for each in operations], set()
        except BaseException as error:  # noqa: BLE001  as an executor: the caller's to raise
            if len(operations) > 1:
                self._commit_singly(operations)
                return
            done, changed = [_Done(operations[0], None, error)], set()
        self._answer(done, changed)

    def _commit_singly(self, operations: list[_Operation]) -> None:
        for operation in operations:
            self._commit([operation])

    def _attempt(self, operations: list[_Operation]) -> tuple[list[_Done], set[Changed]]:
        done: list[_Done] = []
        with self._env.begin(write=True) as txn:
            unit = Unit(_Txn(txn, self._dbs), self.clock())
            full = self._live_bytes(txn) >= self._max_db_bytes
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
        return done, unit.changed

    def _live_bytes(self, txn: lmdb.Transaction) -> int:
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

    def _answer(self, done: list[_Done], changed: set[Changed]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._deliver, done, changed)

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

    def _deliver(self, done: list[_Done], changed: set[Changed]) -> None:
        for operation, result, error in done:
            self._queued -= 1
            self._queued_bytes -= operation.size_bytes
            if operation.future.done():
                continue
            if error is None:
                operation.future.set_result(result)
            else:
                operation.future.set_exception(error)
        self.hub.publish(changed)


def _full() -> StoreFull:
    return StoreFull(
        "The store is full: forget results, shorten their time to live, or raise max_db_bytes; "
        "reads, forgetting and expiry go on."
    )


def _failed(error: BaseException) -> StoreFailed:
    return StoreFailed(f"The store failed and the server is stopping: {error}.")


def _lock(directory: Path) -> int:
    """Keeps a second server off the directory. Raises OSError."""
    descriptor = os.open(directory / "resultd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OSError(
            f"Another server uses the data directory {directory}: stop it, or name another "
            "directory with --data."
        ) from None
    return descriptor


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
