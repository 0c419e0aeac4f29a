"""LMDB itself: opening an environment, rows with checksums, how much lies in it.

Everything else knows LMDB through here. A value is stored with a checksum over key and
value: what a disk returns wrong is refused, never passed on.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import add, itemgetter
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import lmdb

from resultd_server import limits
from resultd_server.engine import disk
from resultd_server.errors import RecordCorrupt, StoreFailed
from resultd_server.ledger.txn import Db, Page

DATA = "data.mdb"
"""LMDB's file, as it calls it itself."""

LMDB_MAJOR = 0
"""The library's on-disk format: 0.9.x. The 1.0.x one cannot be read by it."""

READERS_MAX = 1_024
LOCK_BYTES = 192 + 64 * (READERS_MAX - 1)
"""Of lock.mdb, where LMDB keeps who reads: as large as it makes that file itself."""

DATABASES_MAX = 64
HEADROOM_BYTES_MIN = 256 * limits.MIB
"""Map beyond `max_db_bytes`, so that what was acknowledged always fits: 32 MiB of journal
make 64 MiB of pages at worst, and a checkpoint's transaction copies up to 40 MiB. The map
is sparse, so this costs nothing."""

_PAGES_MIN = 2
"""Of a file that is an environment: its meta pages."""

JOURNAL = b"journal"
"""The database that says how far the others have the journal; `recovery` reads it."""

_CHECKSUM = struct.Struct("<I")
_CHECKSUM_BYTES = _CHECKSUM.size
_RESIDUE = 0x2144DF1C
"""What a CRC-32 comes to over anything with its own, the low byte first, at the end."""
_AGAIN = bytes.fromhex("81d59d4c")
"""What takes it from there to 0, where a CRC-32 begins: so that one runs over many rows."""
_SMALL_BYTES = 2 * limits.KIB
"""Of rows: above it, on average, joining them costs more than to check each by itself."""
_FEW_ROWS = (8, 64)
"""How many keys a page looks at before it reads on: eight are as dear as to make their cursor."""

_KEY_BYTES_MAX = limits.ID_BYTES_MAX * 2  # no key is longer: LMDB refuses to look for more

Environment = lmdb.Environment
Transaction = lmdb.Transaction
Error = lmdb.Error
MapFull = lmdb.MapFullError


FILE_MODE = 0o640
"""Of files with what the store holds: the owner's, and its group may read."""


def create_file(path: Path) -> BinaryIO:
    """A new file that strangers cannot read, to write to. Raises OSError, if it is there too."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return open(os.open(path, flags, FILE_MODE), "wb")  # noqa: PTH123  a descriptor


def library() -> str:
    """The version of the LMDB library."""
    return ".".join(map(str, lmdb.version(lib_version=LMDB_MAJOR)))


def open_environment(directory: Path, map_bytes: int, *, sync: bool = True) -> Environment:
    """Opens or makes an environment. Raises StoreFailed."""
    try:
        _reserve_readers(directory)
        environment = lmdb.open(
            str(directory),
            # At its full size from the start: the map is sparse, and growing it later
            # breaks other processes' reads.
            map_size=map_bytes,
            max_dbs=DATABASES_MAX,
            max_readers=READERS_MAX,
            sync=sync,
            metasync=sync,
            writemap=False,  # with it a full disk is SIGBUS
            mode=FILE_MODE,
            lib_version=LMDB_MAJOR,
        )
        environment.reader_check()
    except (lmdb.Error, OSError) as error:
        raise cannot_open(directory, error) from error
    return environment


def make(directory: Path) -> None:
    """Makes an environment with empty databases; it may be done over. Raises StoreFailed.

    What is in its file is on disk then; for the file's name the caller syncs the directory.
    """
    data = directory / DATA
    with contextlib.suppress(FileNotFoundError):
        if data.stat().st_size < _PAGES_MIN * mmap.PAGESIZE:
            data.unlink()  # where a disk was full: LMDB wants both of its first pages, or no file
    with contextlib.closing(open_environment(directory, HEADROOM_BYTES_MIN)) as opened:
        open_databases(opened, directory)


def _reserve_readers(directory: Path) -> None:
    """Has lock.mdb on disk before LMDB maps it. Raises OSError.

    LMDB makes it as long as it is to be, without a block: who writes into a map of that, on a
    disk that is full, is killed by SIGBUS. It is left alone once it is there: a file that is closed
    takes along what locks this process has on it.
    """
    path = directory / "lock.mdb"
    if path.exists() and path.stat().st_blocks * 512 >= LOCK_BYTES:
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        os.posix_fallocate(descriptor, 0, LOCK_BYTES)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a disk that reserves nothing
            raise
    finally:
        os.close(descriptor)


def replay_map_bytes(directory: Path) -> int:
    """A map that has room for what a journal may have, whatever lies in the store."""
    return (directory / DATA).stat().st_size + HEADROOM_BYTES_MIN


def open_to_read(directory: Path) -> Environment:
    """Opens a store as it lies there, to look at it. Raises StoreFailed.

    A reader like any other: what is freed after it began a transaction is kept for it.
    """
    try:
        try:
            _reserve_readers(directory)
        except OSError as error:
            if disk.says_no_room(error):  # on a disk that is read only LMDB does without
                raise
        return lmdb.open(
            str(directory),
            map_size=0,  # as large as the file says
            max_dbs=DATABASES_MAX,
            max_readers=READERS_MAX,
            readonly=True,
            lib_version=LMDB_MAJOR,
        )
    except (lmdb.Error, OSError) as error:
        raise cannot_open(directory, error) from error


def find_database(environment: Environment, name: bytes) -> Any:
    """A database, None where there is none of that name. Raises Error."""
    try:
        return environment.open_db(name, create=False)
    except lmdb.NotFoundError:
        return None


def names(txn: Transaction) -> set[bytes]:
    """The names of all databases."""
    with txn.cursor() as cursor:
        return {bytes(name) for name in cursor.iternext(values=False)}


def keys_of(txn: Transaction, db: Any) -> list[bytes]:
    """All keys of a database, whatever their rows are."""
    with txn.cursor(db=db) as cursor:
        return [bytes(key) for key in cursor.iternext(values=False)]


def sound_rows(txn: Transaction, db: Any) -> Iterator[tuple[bytes, bool]]:
    """Every key of a database, and whether its row is found and matches its checksum."""
    with txn.cursor(db=db) as cursor:
        rows: Iterator[tuple[Any, Any]] = iter(cursor)  # bytes, since buffers=False
        for key, row in rows:
            yield key, crc32(row, crc32(key)) == _RESIDUE and txn.get(key, None, db) == row


def damage(directory: Path) -> list[str]:
    """What is wrong with the pages of a store that nobody uses, a sentence each.

    The file is read as bytes: LMDB itself trusts what it is given, and may crash.
    """
    from lmdb import verify  # here: a server has no use for it

    try:
        return [str(each) for each in verify.verify(str(directory))]  # type: ignore[no-untyped-call]  # it has no types
    except (verify.VerifyError, OSError) as error:
        return [str(error)]


def copy_to(environment: Environment, txn: Transaction, descriptor: int) -> None:
    """Writes what a transaction sees, without free pages. Raises Error."""
    environment.copyfd(descriptor, compact=True, txn=txn)


def open_databases(environment: Environment, directory: Path) -> dict[Db, Any]:
    """The named databases, made where there are none. Raises StoreFailed.

    Either all are there or none: one that is missing has a damaged name, and what was in it
    would seem never to have been.
    """
    try:
        with environment.begin(write=True) as txn:
            there, ours = names(txn), {db.value for db in Db}
            if there and there - {JOURNAL} != ours:
                wrong = sorted(there - {JOURNAL} ^ ours)
                raise cannot_open(directory, f"its databases are not ours, see {wrong}")
            return {db: environment.open_db(db.value, txn=txn) for db in Db}
    except lmdb.Error as error:
        raise cannot_open(directory, error) from error


def cannot_open(directory: Path, error: BaseException | str) -> StoreFailed:
    """Why a store cannot be opened: what the system does not let us have, or else damage."""
    if isinstance(error, BaseException) and (number := disk.number_of(error)):
        if number == errno.EIO and disk.is_full(directory):  # LMDB's word for half a write
            error = OSError(errno.ENOSPC, "")
        return disk.cannot_use(f"The store in {directory}", error)
    return StoreFailed(
        f"The store in {directory} cannot be opened: {error}. Restore it from a "
        "backup, or name another directory."
    )


def finds_no_room(opened: Environment, directory: Path, error: BaseException) -> bool:
    """Whether a transaction failed because the disk is full, and is as if it had never been.

    LMDB says what the system said, or "Input/output error" where only part of a write was done:
    then the disk is asked. It writes pages that nothing leads to yet, syncs them, and then the
    meta page that leads to them. Until that one nothing of the store has changed, whatever came
    of the writes: the pages were free, and stay so. If the meta page's write fails nobody knows
    which one a disk has; LMDB marks the environment then, and gives no transaction any more.
    """
    if isinstance(error, lmdb.MapFullError):
        return True
    if not disk.says_no_room(error) and not disk.is_full(directory):
        return False
    try:
        opened.begin().abort()
    except lmdb.Error:
        return False
    return True


class Txn:
    """An LMDB transaction as the rules see one."""

    __slots__ = ("_dbs", "_probes", "_txn")

    def __init__(self, txn: lmdb.Transaction, dbs: dict[Db, Any]) -> None:
        self._txn = txn
        self._dbs = dbs
        self._probes: dict[Db, lmdb.Cursor] = {}

    def get(self, db: Db, key: bytes) -> bytes | None:
        row: Any = self._txn.get(key, None, self._dbs[db])  # bytes, since buffers=False
        if row is None:
            return None
        return unseal(key, row)

    def get_many(
        self, db: Db, keys: Sequence[bytes], room_bytes: int, skip_bytes: int = 0
    ) -> list[bytes | None]:
        rows: list[Any] = []  # bytes, since buffers=False, or None
        left_bytes = room_bytes
        with self._txn.cursor(db=self._dbs[db]) as cursor:
            for row in map(cursor.get, keys):
                rows.append(row)
                if row is not None:
                    left_bytes -= len(row) - _CHECKSUM_BYTES
                    if left_bytes < 0:
                        break
        keys = keys[: len(rows)]
        if room_bytes - left_bytes > _SMALL_BYTES * len(rows) or None in rows:
            found = zip(keys, rows, strict=True)
            return [None if row is None else unseal(key, row, skip_bytes) for key, row in found]
        return [*unseal_all(keys, rows, skip_bytes)]

    def scan(
        self, db: Db, start: bytes, stop: bytes, *, passing: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        # Most scans find nothing: looked up with a cursor that is kept, making one costs more.
        probe = self._probes.get(db)
        if probe is None:
            probe = self._probes[db] = self._txn.cursor(db=self._dbs[db])
        if probe.set_range(start[:_KEY_BYTES_MAX]) and probe.key() < stop:  # type: ignore[operator]  # bytes, since buffers=False
            return self._rows(db, start, stop, passing=passing)
        return iter(())

    def page(self, db: Db, start: bytes, stop: bytes, count: int) -> Page:
        with self._txn.cursor(db=self._dbs[db]) as cursor:
            if not cursor.set_range(start[:_KEY_BYTES_MAX]):
                return [], []
            # Not in pairs: hundreds of tuples at once have Python look for garbage. A few first:
            # who follows a group asks for hundreds, and one is there, before those of others.
            each, keys = cursor.iternext(values=False), list[Any]()  # of bytes, as above
            for few in (*_FEW_ROWS, count):
                keys += islice(each, max(0, min(few, count) - len(keys)))
                if len(keys) < few or keys[-1] >= stop:
                    break
            del keys[bisect_left(keys, stop) :]
            cursor.set_range(start[:_KEY_BYTES_MAX])
            rows: list[Any] = [*islice(cursor.iternext(keys=False), len(keys))]
        return keys, unseal_all(keys, rows)

    def _rows(
        self, db: Db, start: bytes, stop: bytes, *, passing: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        with self._txn.cursor(db=self._dbs[db]) as cursor:
            if not cursor.set_range(start[:_KEY_BYTES_MAX]):
                return
            rows: Iterator[tuple[Any, Any]] = iter(cursor)  # bytes, since buffers=False
            for key, row in rows:
                if key >= stop:
                    return
                if crc32(row, crc32(key)) != _RESIDUE:
                    if passing:
                        continue
                    raise _corrupt(key)
                yield key, row[:-_CHECKSUM_BYTES]

    def put(self, db: Db, key: bytes, value: bytes) -> None:
        self._txn.put(key, seal(key, value), db=self._dbs[db])

    def put_many(self, db: Db, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        with self._txn.cursor(db=self._dbs[db]) as cursor:
            cursor.putmulti(zip(keys, seal_all(keys, values), strict=True))

    def delete(self, db: Db, key: bytes) -> bool:
        return bool(self._txn.delete(key, db=self._dbs[db]))

    def remove(self, db: Db, key: bytes) -> None:
        self._txn.delete(key, db=self._dbs[db])


def seal(key: bytes, value: bytes) -> bytes:
    """The value with its checksum."""
    return value + _CHECKSUM.pack(crc32(value, crc32(key)))


def seal_all(keys: Sequence[bytes], values: Sequence[bytes]) -> Iterator[bytes]:
    """Many values with their checksums, without a line of Python for each."""
    return map(add, values, map(_CHECKSUM.pack, map(crc32, values, map(crc32, keys))))


def unseal(key: bytes, row: bytes, skip_bytes: int = 0) -> bytes:
    """The value of a row, without so many bytes at its beginning. Raises RecordCorrupt."""
    if crc32(row, crc32(key)) != _RESIDUE:
        raise _corrupt(key)
    return row[skip_bytes:-_CHECKSUM_BYTES]


def unseal_all(keys: Sequence[bytes], rows: Sequence[bytes], skip_bytes: int = 0) -> list[bytes]:
    """The same of many small rows, without a line of Python for each. Raises RecordCorrupt.

    One checksum runs over them all. What damage does to it is changed by what comes after, and
    never undone: one row's is found as by its own checksum. Two rows' might cancel each other
    out, which is as rare as that one is not found.
    """
    parts = [_AGAIN] * (3 * len(rows))
    parts[::3] = keys
    parts[1::3] = rows
    if crc32(b"".join(parts)) != 0:
        return list(map(unseal, keys, rows))  # raises, and says where
    return list(map(itemgetter(slice(skip_bytes, -_CHECKSUM_BYTES)), rows))


def _corrupt(key: bytes) -> RecordCorrupt:
    return RecordCorrupt(
        "A record does not match its checksum: restore the store from a backup.",
        key=key.hex(),
    )


def count_live_bytes(txn: Transaction, dbs: dict[Db, Any]) -> int:
    """Pages in use. The file's size says nothing: it never shrinks."""
    pages = 0
    page_bytes = 4096
    for db in dbs.values():
        stat = txn.stat(db)
        pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        page_bytes = stat["psize"]
    return pages * page_bytes
