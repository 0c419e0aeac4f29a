"""Whether a store that nobody serves is whole: its pages, its rows, its journal, and
what must hold between rows.

LMDB has checksums of nothing and we have them of rows. So its pages are walked first,
as bytes; then each row is compared with its checksum and looked up by its key, which a
damaged page on the way to it would prevent; then the journal is laid over it, and
`ledger.consistency` looks at the whole.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from resultd_server.engine import environment, journal, lease, recovery
from resultd_server.engine.environment import Environment, Transaction, Txn
from resultd_server.engine.overlay import OverlayTxn
from resultd_server.engine.recovery import Target
from resultd_server.errors import DomainError, RecordCorrupt
from resultd_server.ledger import consistency

KEPT_MAX = 1_000
"""Damages that are spelled out; the others are only counted."""


class Damage(NamedTuple):
    """What is wrong, and where: a database and a key in hexadecimal, or "" for a file."""

    where: str
    key: str
    what: str


@dataclass
class Verdict:
    """What was found.

    Attributes:
        store_id: of the store.
        rows: how many were compared with their checksums.
        entries: how many of the journal LMDB has not got yet.
        count: how much is wrong; `damages` has the first of it.
        unchecked: what was not looked at, because of what was found before.
        notes: what is no damage and may be of interest.
    """

    store_id: str
    rows: int = 0
    entries: int = 0
    count: int = 0
    damages: list[Damage] = field(default_factory=list)
    unchecked: str = ""
    notes: list[str] = field(default_factory=list)

    def add(self, damage: Damage) -> None:
        """One more that is wrong."""
        self.count += 1
        if len(self.damages) < KEPT_MAX:
            self.damages.append(damage)


def verify(directory: Path, now_ms: int) -> Verdict:
    """Looks at everything, and changes nothing.

    Raises StoreFailed where there is no store, or another format's; OSError where a server
    uses it.
    """
    lease.check_there(directory)
    with lease.held(directory):
        return examine(directory, lease.check_format(directory), now_ms)


def examine(directory: Path, store_id: str, now_ms: int) -> Verdict:
    """The same where nobody can come in between. Raises StoreFailed."""
    verdict = Verdict(store_id)
    for what in environment.damage(directory):
        verdict.add(Damage(environment.DATA, "", what))
    if verdict.count:
        verdict.unchecked = "rows and journal: LMDB cannot be trusted with these pages"
        return verdict
    with contextlib.closing(environment.open_to_read(directory)) as opened:
        _look(opened, directory, now_ms, verdict)
    return verdict


def _look(opened: Environment, directory: Path, now_ms: int, verdict: Verdict) -> None:
    try:
        target = recovery.find_target(opened)
    except environment.Error as error:
        verdict.add(Damage(environment.DATA, "", f"a database is missing: {error}"))
        verdict.unchecked = "rows and journal"
        return
    with opened.begin() as raw:
        _compare(raw, target, verdict)
        if verdict.count:
            verdict.unchecked = "journal, and whether rows fit one another"
            return
        try:
            progress = recovery.progress_of(target)
            layers = []
            if progress is not None:
                last, layer = journal.read(directory, progress.run, progress.entry)
                verdict.entries = last - progress.entry
                layers = [layer]
                verdict.notes += _cut_short(directory, progress.run, last)
            elif left := [name for name in journal.FILES if (directory / name).exists()]:
                # It is in LMDB before these files are: what they have was acknowledged.
                what = f"does not know the journal, of which there is {' and '.join(left)}"
                verdict.add(Damage(environment.DATA, "", what))
                verdict.unchecked = "journal"
            txn = OverlayTxn(layers, Txn(raw, target.dbs))
            for broken in consistency.check(txn, now_ms):
                verdict.add(Damage(broken.db, broken.key.hex(), broken.what))
            strays = sum(1 for _ in consistency.strays(txn))
            if strays:
                verdict.notes.append(
                    f"{strays} entries of the expiry lists are for what is not there, or expires "
                    "at another time: no damage, they go when they are due."
                )
        except RecordCorrupt as error:
            verdict.add(Damage("", error.metadata["key"], error.sentence))
        except (struct.error, ValueError) as error:
            verdict.add(Damage("", "", f"a row is not what it should be: {error}"))
        except DomainError as error:
            verdict.add(Damage("journal", "", error.sentence))
            verdict.unchecked = "whether rows fit one another"


def _compare(raw: Transaction, target: Target, verdict: Verdict) -> None:
    """Rows with their checksums."""
    named = {db.value: opened for db, opened in target.dbs.items()}
    if target.progress_db is not None:
        named[b"journal"] = target.progress_db
    for unknown in environment.names(raw) - set(named):
        verdict.add(Damage(environment.DATA, unknown.hex(), "names a database that is not ours"))
    for name, opened in named.items():
        for key, sound in environment.sound_rows(raw, opened):
            verdict.rows += 1
            if not sound:
                verdict.add(Damage(name.decode(), key.hex(), "does not match its checksum"))


def _cut_short(directory: Path, run: bytes, last: int) -> Iterator[str]:
    """Of the last entry nobody can tell whether it was damaged or never written whole."""
    for entry in journal.begun(directory, run):
        if entry > last:
            yield (
                f"Entry {entry} of the journal is not whole: the server ended while it was "
                "written, and nobody was answered; or it was damaged since."
            )
