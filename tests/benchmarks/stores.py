"""Loaded stores: big ones take minutes to build, so they are kept and found again.

They lie under `BENCH_DIR`, a directory of the user's cache unless said otherwise, and are
built by `python -m tests.benchmarks.load`. Ids are spread evenly over all there could be, as
those of UUIDs are, and follow from their number: nobody keeps a list of them. They are loaded
in their order, which is what makes loading fast.
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration

from resultd.v1 import result_service_pb2 as pb
from tests.benchmarks.reports import report

#: As long as a record may live: a store is to be good for years.
KEPT = Duration(seconds=10 * 365 * 86_400)
GROUP = "group"
GROUP_MEMBERS = 10_000
"""Of a store of single records so many are members of one group, spread over all of it."""

_NOTE = "loaded.json"


class Kind(enum.Enum):
    """What the records are: by themselves but for a group of 10,000, or all of one group."""

    RECORDS = "records"
    GROUP = "group"


class Wanted(NamedTuple):
    """A store: how many records of which kind."""

    records: int
    kind: Kind = Kind.RECORDS

    @property
    def members(self) -> int:
        """Members of its group."""
        return self.records if self.kind is Kind.GROUP else min(self.records, GROUP_MEMBERS)

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.kind.value}-{self.records}"

    def task_id(self, number: int) -> str:
        """The id of a record, shaped as a UUID."""
        start = (number << 64) // self.records
        end = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=8).hexdigest()
        text = f"{start:016x}{end}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def report(self, number: int) -> pb.StoreResultRequest:
        """The report that makes a record."""
        member = number % (self.records // self.members) == 0
        index = number // (self.records // self.members)
        made = report(self.task_id(number), GROUP if member and index < self.members else "")
        made.ttl.CopyFrom(KEPT)
        return made

    def absent(self) -> str:
        """Why there is no figure of it, and what helps."""
        return f"no such store; {self._command} builds it"

    def unusable(self, error: Exception) -> str:
        """The same where a server does not take it: another version may have built it."""
        return f"{error}; without {self.name} under BENCH_DIR {self._command} builds it anew"

    @property
    def _command(self) -> str:
        kind = " --one-group" if self.kind is Kind.GROUP else ""
        return f"`python -m tests.benchmarks.load --records {self.records}{kind}`"


def kept_directory() -> Path:
    """Where stores are kept."""
    said = os.environ.get("BENCH_DIR")
    if said:
        return Path(said)
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache is None and sys.platform == "darwin":
        cache = str(Path.home() / "Library" / "Caches")
    return Path(cache or Path.home() / ".cache") / "resultd-benchmarks"


def loaded(directory: Path, wanted: Wanted) -> int:
    """How many of its records a store has; all that were wanted once it is whole."""
    note = directory / wanted.name / _NOTE
    count: int = json.loads(note.read_text())["loaded"] if note.exists() else 0
    return count


def note_loaded(directory: Path, wanted: Wanted, count: int) -> None:
    """Remembers how far the loading came."""
    note = directory / wanted.name / _NOTE
    new = note.with_suffix(".new")
    new.write_text(json.dumps({"records": wanted.records, "loaded": count}) + "\n")
    new.rename(note)


def find(directory: Path, wanted: Wanted) -> Path | None:
    """The data directory of a whole store, None where there is none."""
    if loaded(directory, wanted) < wanted.records:
        return None
    return directory / wanted.name / "data"


@contextmanager
def directory_for(*, keep: bool) -> Iterator[Path]:
    """Where stores are looked for and built: the kept ones' place, or one that goes away."""
    if keep:
        kept_directory().mkdir(parents=True, exist_ok=True)
        yield kept_directory()
        return
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)
