"""The journal: what each commit wrote, on disk with one flush, before LMDB has it.

Two files are written in turn. An entry is one commit: a header, then its rows; it begins
on a block of its own, so that no later write touches a block that holds an earlier one.
Entries are numbered, and carry the number of the *run* (one use of the store by one
process) that wrote them. LMDB keeps the run and the last entry it has; so bytes of
another run, or of an earlier use of the file, never pass for an entry to do again.

    header: magic 4 · crc32 of all that follows 4 · length of the rows 4 · entry 8 · run 8
    rows:   for each database: its number 4 · how many 4 · lengths of keys, of values 4 each
            (of a deleted row's: 2³² - 1) · the keys · the values

Numbers are little-endian.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from resultd_server import limits
from resultd_server.engine import disk
from resultd_server.engine.environment import FILE_MODE
from resultd_server.engine.overlay import Layer
from resultd_server.errors import StoreFailed
from resultd_server.ledger.txn import Db

SEGMENT_BYTES = 16 * limits.MIB
"""A file's greatest size; two of them bound what a start has to do again."""

FIRST_BYTES = 1 * limits.MIB
"""A file's size at first. It is doubled where it is too small, so that quiet stores stay small."""

SPARE_BYTES = 256 * limits.KIB
"""What commits that may be refused leave free, for those that make room: 64 of them at least."""

BLOCK_BYTES = 4096
FILES = ("journal.0", "journal.1")

FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_DSYNC
"""O_DSYNC: a write returns when it is on disk. One call, where the file's data would have
to be synced with another; and each call that waits gives Python's lock away and back."""

_PLENTY = 8

_MAGIC = b"rsj1"
_HEADER = struct.Struct("<4sIIQ8s")
_CHECKED_FROM = 8  # the bytes before it are the magic and the checksum
_SECTION = struct.Struct("<II")
_DELETED = 2**32 - 1
RUN_BYTES = 8

DATABASES = (
    Db.META,
    Db.NAMESPACES,
    Db.TASKS,
    Db.TOMBSTONES,
    Db.EXPIRY,
    Db.GROUPS,
    Db.COUNTERS,
    Db.MEMBERS,
    Db.MEMBERSHIPS,
    Db.LOG,
    Db.CLAIMS,
    Db.CLAIMABLE,
    Db.TOTALS,
    Db.REVOCATIONS,
    Db.GARBAGE,
)
"""Their places are their numbers on disk."""

_NUMBERS = {db: number for number, db in enumerate(DATABASES)}


class Place(NamedTuple):
    """In which of the files, and where in it."""

    segment: int
    offset: int


class Journal:
    """The files of a data directory, open for a new run. One append at a time.

    `sync`: whether an append waits for the disk; without it nothing survives a power cut.
    """

    def __init__(
        self,
        directory: Path,
        run: bytes,
        segment_bytes: int = SEGMENT_BYTES,
        *,
        sync: bool = True,
    ) -> None:
        self.run = run
        self.entry = 0
        self._segment_bytes = segment_bytes
        flags = FLAGS if sync else FLAGS & ~os.O_DSYNC
        self._descriptors = [os.open(directory / name, flags, FILE_MODE) for name in FILES]
        self._filled = [os.fstat(each).st_size for each in self._descriptors]
        self._capacity_bytes = segment_bytes
        self._segment = 0
        self._offset = 0
        sync_directory(directory)

    def reserve(self) -> None:
        """Has both files at their first size, if the disk has room: deletions need one later."""
        for self._segment in reversed(range(len(FILES))):
            try:
                self._fill(min(FIRST_BYTES, self._segment_bytes))
            except OSError as error:
                if not disk.says_no_room(error):
                    raise

    def go_on(self, entry: int, place: Place | None) -> None:
        """Goes on after the last entry there is, which has this number and ends at `place`.

        None: LMDB has all that is in the files, and the larger one is written over. What lies in
        them is on disk on return. Raises OSError.
        """
        for descriptor in self._descriptors:
            os.fsync(descriptor)
        self.entry = entry
        if place is None:
            place = Place(self._filled.index(max(self._filled)), 0)
        self._segment, self._offset = place

    def encode(self, layer: Layer) -> bytes:
        """The next entry: whole blocks."""
        parts = [b""]
        for db, rows in layer.dbs.items():
            parts += _section(db, rows.values)
        length = sum(map(len, parts))
        parts[0] = _HEADER.pack(_MAGIC, 0, length, self.entry + 1, self.run)[_CHECKED_FROM:]
        checked = b"".join(parts)
        padding = bytes(-(len(checked) + _CHECKED_FROM) % BLOCK_BYTES)
        return b"".join((_MAGIC, zlib.crc32(checked).to_bytes(4, "little"), checked, padding))

    def fits(self, entry: bytes) -> bool:
        """Whether the entry can be appended to any file at all."""
        return len(entry) + SPARE_BYTES <= self._segment_bytes

    def has_room(self, entry: bytes, spare_bytes: int = 0) -> bool:
        """Whether it can be appended to this one."""
        return self._offset + len(entry) + spare_bytes <= self._capacity_bytes

    def append(self, entry: bytes, spare_bytes: int = 0) -> None:
        """Writes an entry; it is on disk on return. Raises OSError: `take_back` then."""
        end = self._offset + len(entry)
        self._fill(end + spare_bytes)
        self._write(entry, self._offset)
        self._offset = end
        self.entry += 1

    def take_back(self) -> None:
        """Makes sure that an entry that was not written whole is none. Raises OSError.

        The disk is full: the file is taken to be as large as it can be, until the next use.
        """
        self._capacity_bytes = self._filled[self._segment]
        if self._offset < self._capacity_bytes:
            self._write(bytes(BLOCK_BYTES), self._offset)

    def rotate(self) -> None:
        """Goes on in the other file, from its start: LMDB has all that is in it."""
        self._segment = 1 - self._segment
        self._offset = 0
        self._capacity_bytes = self._segment_bytes

    def close(self) -> None:
        """Lets the files go."""
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _fill(self, end: int) -> None:
        """Writes blocks once before they are used.

        Only data is flushed when they are written again; and a disk that is full says so
        here, before an entry is begun.
        """
        filled = self._filled[self._segment]
        while filled < end:
            size = max(filled, FIRST_BYTES) if self._has_plenty(filled) else FIRST_BYTES
            size = min(size, self._segment_bytes - filled)
            self._write(bytes(size), filled)
            filled += size
            self._filled[self._segment] = filled

    def _has_plenty(self, size_bytes: int) -> bool:
        """Whether the disk has so much that it does not matter who takes it."""
        space = os.fstatvfs(self._descriptors[self._segment])
        return space.f_bavail * space.f_frsize > _PLENTY * size_bytes

    def _write(self, data: bytes, offset: int) -> None:
        descriptor = self._descriptors[self._segment]
        written = os.pwrite(descriptor, data, offset)
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], offset + written)


def read(directory: Path, run: bytes, after: int) -> tuple[int, Layer]:
    """What a run's entries after one come to; and which is the last.

    The last commit may have been cut short, and is then none. Raises StoreFailed where
    an earlier one is missing.
    """
    found: dict[int, bytes] = {}
    for name in FILES:
        if (directory / name).exists():
            entries = _entries((directory / name).read_bytes(), run, after)
            found.update((entry, rows) for entry, rows, _ in entries)
    if found and max(found) != after + len(found):
        missing = next(entry for entry in range(after + 1, max(found)) if entry not in found)
        raise StoreFailed(
            f"The journal in {directory} is damaged: entry {missing} cannot be read, though later "
            f"ones can. Restore the store from a backup; or remove {' and '.join(FILES)} to go on "
            "without what was stored last."
        )
    layer = Layer()
    for entry in sorted(found):
        _decode(found[entry], layer)
        layer.size_bytes += len(found[entry])
    return after + len(found), layer


def last(directory: Path, run: bytes) -> int:
    """The last whole entry of a run that is in the files now; 0 if none is."""
    entries = [
        entry
        for name in FILES
        if (directory / name).exists()
        for entry, *_ in _entries((directory / name).read_bytes(), run, 0)
    ]
    return max(entries, default=0)


def end_of(directory: Path, run: bytes, wanted: int) -> Place | None:
    """Where the next entry after one goes in the same file; None if no file has that one."""
    for segment, name in enumerate(FILES):
        if (directory / name).exists():
            for entry, _, end in _entries((directory / name).read_bytes(), run, wanted - 1):
                if entry == wanted:
                    return Place(segment, end)
    return None


def begun(directory: Path, run: bytes) -> Iterator[int]:
    """The numbers of a run's entries that begin in the files, whole or not."""
    for name in FILES:
        if (directory / name).exists():
            segment = (directory / name).read_bytes()
            for offset in range(0, len(segment) - _HEADER.size + 1, BLOCK_BYTES):
                magic, _, _, entry, of_run = _HEADER.unpack_from(segment, offset)
                if (magic, of_run) == (_MAGIC, run):
                    yield entry


def _entries(segment: bytes, run: bytes, after: int) -> Iterator[tuple[int, bytes, int]]:
    """The whole entries of a run after one: number, rows, where its last block ends."""
    offset = 0
    while offset + _HEADER.size <= len(segment):
        magic, checksum, length, entry, of_run = _HEADER.unpack_from(segment, offset)
        end = offset + _HEADER.size + length
        if (
            (magic, of_run) == (_MAGIC, run)
            and end <= len(segment)
            and zlib.crc32(memoryview(segment)[offset + _CHECKED_FROM : end]) == checksum
        ):
            rows_at = offset + _HEADER.size
            offset = end + -end % BLOCK_BYTES
            if entry > after:
                yield entry, segment[rows_at:end], offset
        else:
            offset += BLOCK_BYTES


def _section(db: Db, rows: dict[bytes, bytes | None]) -> Iterable[bytes]:
    """A database's rows: made of few calls over many rows, since all writes pass here."""
    values = [value for value in rows.values() if value is not None]
    lengths = (
        map(len, values)
        if len(values) == len(rows)
        else (_DELETED if value is None else len(value) for value in rows.values())
    )
    yield _SECTION.pack(_NUMBERS[db], len(rows))
    yield struct.pack(f"<{2 * len(rows)}I", *map(len, rows), *lengths)
    yield from rows
    yield from values


def _decode(payload: bytes, into: Layer) -> None:
    offset = 0
    while offset < len(payload):
        number, count = _SECTION.unpack_from(payload, offset)
        offset += _SECTION.size
        lengths = struct.unpack_from(f"<{2 * count}I", payload, offset)
        offset += 4 * len(lengths)
        value_at = offset + sum(lengths[:count])
        rows = into.of(DATABASES[number]).values
        for key_bytes, value_bytes in zip(lengths[:count], lengths[count:], strict=True):
            key = payload[offset : offset + key_bytes]
            offset += key_bytes
            if value_bytes == _DELETED:
                rows[key] = None
            else:
                rows[key] = payload[value_at : value_at + value_bytes]
                value_at += value_bytes
        offset = value_at


def sync_directory(directory: Path) -> None:
    """Has on disk which files there are."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
