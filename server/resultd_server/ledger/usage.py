"""What each namespace holds, and that it is no more than it may.

    usage.check(unit, namespace, records=1, size_bytes=400)     raises Quota
    usage.add(unit, namespace.prefix, records=1, size_bytes=400)

Counted by who puts and deletes rows, in the transaction that does, and kept in one row a
namespace (in META; no row: nothing) that is written once a commit, however many operations
shared it. Bytes are keys and values of records, groups, members, revocations and
tombstones, of groups' numbers, claims, and requests to raise a total. A member is counted
with its entry in the completion log from the start, so that what becomes terminal later
needs no more room.

Not counted is what goes with a row that is, and is no larger than a small multiple of it: when it
expires (one entry a row, 17 bytes and the id, which goes with the row; one more, for a day, where
the row could not be read when it was due), the namespace's name in a group's numbers, and a claim
scope there and where it is looked up.
`consistency` counts again, and looks for entries without their row.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from resultd_server.errors import Quota, RecordCorrupt
from resultd_server.ledger import keys
from resultd_server.ledger.txn import Db, ReadTxn

if TYPE_CHECKING:
    from resultd_server.ledger.keys import Namespace
    from resultd_server.ledger.unit import Unit

# Signed: a count that was damaged must not end the writer. `consistency` finds it.
_FIELDS = struct.Struct(">qq")

ROWS_MAX = 10_000
"""Of counts, read at a time: some 20 ms of the event loop."""

_REMEDY = "forget results, give them a shorter time to live, or have the quota raised"


class Allowance:
    """How many records and bytes a namespace may hold; None: as many as fit.

    `refused` counts what was refused, by quota: "records" or "bytes".
    """

    __slots__ = ("bytes_max", "limited", "records_max", "refused")

    def __init__(self, records_max: int | None = None, bytes_max: int | None = None) -> None:
        self.records_max = records_max
        self.bytes_max = bytes_max
        self.limited = records_max is not None or bytes_max is not None
        self.refused: Counter[str] = Counter()


UNLIMITED = Allowance()


class Usage:
    """What one namespace holds now, in one unit. `stored`: what its row says of that."""

    __slots__ = ("records", "size_bytes", "stored")

    def __init__(self, records: int, size_bytes: int) -> None:
        self.records = records
        self.size_bytes = size_bytes
        self.stored = (records, size_bytes)


class Held(NamedTuple):
    """What all namespaces hold together, and the most that one of them does."""

    namespaces: int = 0
    records: int = 0
    size_bytes: int = 0
    records_max: int = 0
    bytes_max: int = 0


def of(unit: Unit, prefix: bytes) -> Usage:
    """What the namespace with this prefix holds."""
    used = unit.usages.get(prefix)
    if used is None:
        raw = unit.txn.get(Db.META, keys.usage(prefix))
        used = unit.usages[prefix] = Usage(0, 0) if raw is None else Usage(*unpack(raw))
    return used


def add(unit: Unit, prefix: bytes, records: int, size_bytes: int) -> None:
    """Rows were put that had not been there; negative: deleted."""
    used = unit.usages.get(prefix) or of(unit, prefix)
    used.records += records
    used.size_bytes += size_bytes


def add_if_sound(unit: Unit, prefix: bytes, records: int, size_bytes: int) -> None:
    """The same where the count can be read. Where not, nothing is lost: it is to be made anew."""
    with suppress(RecordCorrupt):
        add(unit, prefix, records, size_bytes)


def check(unit: Unit, namespace: Namespace, *, records: int = 0, size_bytes: int = 0) -> None:
    """Whether the namespace may hold so much more. Raises Quota.

    What does not grow is never refused, also where the quota is exceeded already.
    """
    if not unit.limited:
        return
    for quota, held, more, limit in _exceeded(unit, namespace, records, size_bytes):
        unit.allowance.refused[quota] += 1
        raise Quota(
            f"The namespace {namespace.name!r} holds {held} {quota} and may hold {limit}, "
            f"this adds {more}: {_REMEDY}.",
            namespace=namespace.name,
            quota=quota,
            held=held,
            limit=limit,
        )


def fits(unit: Unit, namespace: Namespace, *, records: int, size_bytes: int) -> bool:
    """Whether `check` would say nothing."""
    return not unit.limited or next(_exceeded(unit, namespace, records, size_bytes), None) is None


def _exceeded(
    unit: Unit, namespace: Namespace, records: int, size_bytes: int
) -> Iterator[tuple[str, int, int, int]]:
    """(quota, held, more, limit) of each quota that so much more would exceed."""
    allowed = unit.allowance
    used = of(unit, namespace.prefix)
    for quota, held, more, limit in (
        ("records", used.records, records, allowed.records_max),
        ("bytes", used.size_bytes, size_bytes, allowed.bytes_max),
    ):
        if limit is not None and more > 0 and held + more > limit:
            yield quota, held, more, limit


def put(unit: Unit, prefix: bytes, db: Db, key: bytes, value: bytes) -> bytes | None:
    """Puts a row that is no record, and counts by how much it grew; what was there."""
    before = unit.txn.get(db, key)
    unit.txn.put(db, key, value)
    add(unit, prefix, 0, len(value) + len(key) if before is None else len(value) - len(before))
    return before


def delete(unit: Unit, prefix: bytes, db: Db, key: bytes) -> bytes | None:
    """Deletes such a row; what was there."""
    before = unit.txn.get(db, key)
    if before is not None:
        add(unit, prefix, 0, -len(key) - len(before))
        unit.txn.delete(db, key)
    return before


def flush(unit: Unit) -> None:
    """Writes what the unit's operations changed. Called once before a commit."""
    for prefix, used in unit.usages.items():
        now = (used.records, used.size_bytes)
        if now != used.stored:
            unit.txn.put(Db.META, keys.usage(prefix), pack(*now))
            used.stored = now


def pack(records: int, size_bytes: int) -> bytes:
    """The row."""
    return _FIELDS.pack(records, size_bytes)


def unpack(raw: bytes) -> tuple[int, int]:
    """Records and bytes. Raises struct.error."""
    records, size_bytes = _FIELDS.unpack(raw)
    return records, size_bytes


def rows(txn: ReadTxn, first: bytes = b"") -> Iterator[tuple[bytes, int, int]]:
    """(prefix, records, bytes) of every namespace that has a row, from a prefix on."""
    start = keys.usage(b"")
    for key, raw in txn.scan(Db.META, keys.usage(first), keys.after_prefix(start)):
        yield key[len(start) :], *unpack(raw)


class Census:
    """What all hold together, for who asks again and again: so many rows are read each time.

    Where there are more namespaces, it takes several times to look at them all, and what is
    told is what the last look at them all came to.
    """

    def __init__(self) -> None:
        self._first = b""
        self._sum = Held()
        self._whole: Held | None = None

    def look(self, txn: ReadTxn) -> Held | None:
        """The sums; None until all were looked at. Raises RecordCorrupt: begins again then."""
        first, total = self._first, self._sum
        self._first, self._sum = b"", Held()
        for seen, (prefix, records, size_bytes) in enumerate(rows(txn, first)):
            if seen == ROWS_MAX:
                self._first, self._sum = prefix, total
                return self._whole
            total = Held(
                total.namespaces + 1,
                total.records + records,
                total.size_bytes + size_bytes,
                max(total.records_max, records),
                max(total.bytes_max, size_bytes),
            )
        self._whole = total
        return total
