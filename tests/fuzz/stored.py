"""What the disk returns: rows, the journal, backups."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from pathlib import Path

from resultd_server.engine import backup, journal, lease
from resultd_server.engine.environment import unseal
from resultd_server.engine.overlay import Layer
from resultd_server.errors import DomainError, StoreFailed
from resultd_server.ledger.txn import Db

RUN = bytes(range(journal.RUN_BYTES))
NOW_MS = 1_800_000_000_000


def row(raw: bytes) -> None:
    """What the disk returns for a key: the value that was stored, or RECORD_CORRUPT."""
    try:
        unseal(b"key", raw)
    except DomainError:
        return


def journal_file(raw: bytes) -> None:
    """What a server that was killed left: entries, none of them, or StoreFailed."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        Path(directory, journal.FILES[0]).write_bytes(raw)
        try:
            journal.read(Path(directory), RUN, 0)
        except StoreFailed:
            return


def backup_file(raw: bytes) -> None:
    """A backup: restored, found damaged, or StoreFailed."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        file = Path(directory, "backup")
        file.write_bytes(raw)
        try:
            backup.restore(file, Path(directory, "store"), NOW_MS)
        except StoreFailed:
            return


def backup_note(raw: bytes) -> None:
    """The same of one whose note alone is strange: its data and its end are as they should be."""
    backup_file(_DATA + raw + len(raw).to_bytes(4, "big") + backup._MAGIC)


_DATA = b"no pages"
TARGETS = {
    "row": row,
    "journal file": journal_file,
    "backup file": backup_file,
    "backup note": backup_note,
}


@functools.cache
def _journal() -> bytes:
    """Three sound entries."""
    found = b""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        made = journal.Journal(Path(directory), RUN, sync=False)
        for number in range(3):
            layer = Layer()
            layer.of(Db.TASKS).values.update({b"t%d" % number: b"value", b"gone": None})
            entry = made.encode(layer)
            made.append(entry)
            found += entry
        made.close()
    return found


def _note(**more: object) -> bytes:
    said = {
        "format": lease.DATA_FORMAT,
        "data_bytes": len(_DATA),
        "sha256": hashlib.sha256(_DATA).hexdigest(),
        "store_id": "s",
        **more,
    }
    return json.dumps(said).encode()


def seeds() -> dict[str, tuple[bytes, ...]]:
    """Where each begins."""
    whole = _DATA + _note() + len(_note()).to_bytes(4, "big") + backup._MAGIC
    return {
        "row": (b"value\x00\x00\x00\x00", b""),
        "journal file": (_journal(), b""),
        "backup file": (whole, b""),
        "backup note": (_note(), _note(store_id=[1]), b"[" * 4_000, b'{"data_bytes": 8}', b"8"),
    }
