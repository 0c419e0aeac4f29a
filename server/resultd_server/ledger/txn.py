"""What the rules need of a store: an ordered map of bytes, several by name, in one transaction."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol


class Db(enum.Enum):
    """The named databases. The key layouts are in `keys`."""

    # Members are found in dicts several times for every report: an enum's own hash is
    # Python code, and identity says as much.
    __hash__ = object.__hash__

    META = b"meta"
    NAMESPACES = b"namespaces"
    TASKS = b"tasks"
    TOMBSTONES = b"tombstones"
    EXPIRY = b"expiry"
    GROUPS = b"groups"
    COUNTERS = b"counters"
    MEMBERS = b"members"
    MEMBERSHIPS = b"memberships"
    LOG = b"log"
    CLAIMS = b"claims"
    CLAIMABLE = b"claimable"
    TOTALS = b"totals"
    REVOCATIONS = b"revocations"
    GARBAGE = b"garbage"


Page = tuple[Sequence[bytes], Sequence[bytes]]
"""Keys, and their values."""


class ReadTxn(Protocol):
    """A consistent view. Held for one short step, never across an await."""

    def get(self, db: Db, key: bytes) -> bytes | None:
        """The value, or None."""

    def get_many(
        self, db: Db, keys: Sequence[bytes], room_bytes: int, skip_bytes: int = 0
    ) -> list[bytes | None]:
        """The same of each key in turn, and no more after the one that fills the room.

        Without so many bytes at the beginning of each.
        """

    def scan(
        self, db: Db, start: bytes, stop: bytes, *, passing: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < stop, in key order. Do not write while scanning.

        `passing`: over rows that are damaged, for who must go on. Else raises RecordCorrupt there.
        """

    def page(self, db: Db, start: bytes, stop: bytes, count: int) -> Page:
        """The first rows of a scan, up to `count`, at once: for small ones."""


class WriteTxn(ReadTxn, Protocol):
    """A view that can change; all of it becomes durable, or none."""

    def put(self, db: Db, key: bytes, value: bytes) -> None:
        """Sets the value."""

    def put_many(self, db: Db, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """The same of each key in turn, which is best their order."""

    def delete(self, db: Db, key: bytes) -> bool:
        """Removes the key; whether it was there."""

    def remove(self, db: Db, key: bytes) -> None:
        """Removes a key that is there: its row, which may be large, is not read for that."""


def within(
    room_bytes: int, values: Iterable[bytes | None], skip_bytes: int = 0
) -> list[bytes | None]:
    """The first of some values, no more after the one that fills the room."""
    taken: list[bytes | None] = []
    for value in values:
        taken.append(value and value[skip_bytes:])
        room_bytes -= len(value or b"")
        if room_bytes < 0:
            break
    return taken


def page_of(rows: Iterable[tuple[bytes, bytes]], count: int) -> Page:
    """The first rows of a scan."""
    taken = list(islice(rows, count))
    return [key for key, _ in taken], [value for _, value in taken]
