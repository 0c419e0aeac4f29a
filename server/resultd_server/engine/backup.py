"""Copies of a store while a server uses it, and stores made of copies.

A copy is what one transaction of LMDB sees, so it is a moment of the store. Which moment
(docs/decisions/0013-backup.md): LMDB has everything that the journal had when the copying
was asked for, and no half of a checkpoint. So a copy needs no journal, and has all that
was acknowledged before.

    file: data.mdb without free pages · the note, JSON · length of the note 4 · magic 8
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from resultd_server import limits
from resultd_server.engine import audit, disk, environment, journal, lease, recovery
from resultd_server.engine.environment import Environment, Transaction
from resultd_server.engine.recovery import Target
from resultd_server.errors import StoreFailed

CATCH_UP_S = 60.0
"""What a server has to write its journal into LMDB: a second as a rule."""

ROOM_BYTES_MIN = 128 * limits.MIB
"""Copying ends where the store grows meanwhile and has less of its map left than this:
no page that is freed can be used again before it does."""

_MAGIC = b"rsbackup"
_TRAILER_BYTES = 4 + len(_MAGIC)
_NOTE_BYTES_MAX = 4096
_CHUNK_BYTES = limits.MIB
_LOOK_S = 0.001


class BackupDamaged(StoreFailed):
    """The file is no backup, or not as it was written."""


class Copied(NamedTuple):
    """What came of a backup. `grown_bytes`: of the store's file, while it was copied."""

    path: Path
    store_id: str
    size_bytes: int
    grown_bytes: int


def back_up(directory: Path, into: Path) -> Copied:
    """Copies a store, served or not, into a new file, durably.

    `into` may be a directory: the file gets a name then. Until it is whole it is a hidden file
    beside it, `.NAME.PROCESS-RANDOM.partial`, which is nobody else's and goes with the end. What a
    backup that was killed left there stays: its process may be on another host. Raises
    StoreFailed, OSError.
    """
    lease.check_there(directory)
    # A server has it, and its journal is its business; or nobody can, on a disk that is read only.
    with contextlib.suppress(OSError, disk.MayNotWrite):
        lease.Lease(directory).close()
    store_id = lease.check_format(directory)
    taken = time.gmtime()
    if into.is_dir():
        into = into / f"resultd-{time.strftime('%Y%m%dT%H%M%SZ', taken)}.backup"
    partial = into.with_name(f".{into.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    if into.exists():
        raise _there_already(into)
    note = {
        "format": lease.DATA_FORMAT,
        "lmdb": environment.library(),
        "store_id": store_id,
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", taken),
    }
    try:
        with contextlib.closing(environment.open_to_read(directory)) as opened:
            grown_bytes = _copy(opened, directory, partial, note)
        with disk.explained(f"The directory {into.parent}"):
            try:
                os.link(partial, into)  # and not a rename: nobody's file is lost
            except FileExistsError:
                raise _there_already(into) from None
            journal.sync_directory(into.parent)
    except environment.Error as error:
        raise StoreFailed(f"The store in {directory} cannot be copied: {error}.") from error
    finally:
        with contextlib.suppress(OSError):  # it was never made: that is being said already
            partial.unlink()
    return Copied(into, store_id, into.stat().st_size, grown_bytes)


def _there_already(into: Path) -> StoreFailed:
    return StoreFailed(f"{into} is there already: name another file, or a directory.")


def _copy(opened: Environment, directory: Path, partial: Path, note: dict[str, Any]) -> int:
    target = recovery.find_target(opened)
    written = disk.explained(f"The directory {partial.parent}")
    with _caught_up(target, directory) as txn, written, environment.create_file(partial) as file:
        growth = _Growth(opened, directory)
        digest, size_bytes = hashlib.sha256(), 0
        for chunk in _stream(opened, txn):
            growth.check()
            digest.update(chunk)
            size_bytes += file.write(chunk)
        said = {**note, "data_bytes": size_bytes, "sha256": digest.hexdigest()}
        text = json.dumps(said).encode()
        file.write(text + len(text).to_bytes(4, "big") + _MAGIC)
        file.flush()
        os.fsync(file.fileno())
    return growth.bytes()


@contextlib.contextmanager
def _caught_up(target: Target, directory: Path) -> Iterator[Transaction]:
    """A transaction that sees whole commits, and all that was in the journal at first."""
    before = recovery.progress_of(target)
    wanted = 0 if before is None else journal.last(directory, before.run)
    end_s = time.monotonic() + CATCH_UP_S
    while time.monotonic() < end_s:
        with target.environment.begin() as txn:
            now = recovery.progress_in(target, txn)
            # Another run began with everything that the one before had left.
            of_run = before is not None and now is not None and now.run == before.run
            behind = of_run and now is not None and now.entry < wanted
            if not behind and recovery.between_checkpoints(target, txn):
                yield txn
                return
        time.sleep(_LOOK_S)
    raise StoreFailed(
        f"The server of {directory} has not written its journal into the store for "
        f"{CATCH_UP_S:.0f} s: see whether its disk is full or broken, and try again."
    )


class _Growth:
    """How much a store grew since this was made."""

    def __init__(self, opened: Environment, directory: Path) -> None:
        self._opened = opened
        self._directory = directory
        self._page_bytes = opened.stat()["psize"]
        self._before = opened.info()["last_pgno"]

    def bytes(self) -> int:
        """So much."""
        grown: int = self._opened.info()["last_pgno"] - self._before
        return grown * self._page_bytes

    def check(self) -> None:
        """Raises StoreFailed where it must not grow further."""
        info = self._opened.info()
        left_bytes = info["map_size"] - info["last_pgno"] * self._page_bytes
        if info["last_pgno"] == self._before:
            return
        if left_bytes < ROOM_BYTES_MIN or disk.is_full(self._directory, ROOM_BYTES_MIN):
            raise StoreFailed(
                "The store would be full before it was copied: try again when less is written, "
                "copy to a faster disk, or raise max_db_bytes."
            )


def _stream(opened: Environment, txn: Transaction) -> Iterator[bytes]:
    """What LMDB copies, as it comes; closed early, the copying ends."""
    source, sink = os.pipe()
    errors: list[BaseException] = []

    def copy() -> None:
        try:
            environment.copy_to(opened, txn, sink)
        except environment.Error as error:
            errors.append(error)
        finally:
            os.close(sink)

    thread = threading.Thread(target=copy, name="backup")
    thread.start()
    try:
        while chunk := os.read(source, _CHUNK_BYTES):
            yield chunk
    finally:
        os.close(source)
        thread.join()
    if errors:
        raise errors[0]


def restore(backup: Path, directory: Path, now_ms: int) -> audit.Verdict:
    """Makes a store of a backup, in an empty directory, and looks at all of it first.

    It is another store: its id is new. Raises BackupDamaged, StoreFailed, OSError; the directory
    is empty then, unless there is a verdict: what was found wrong.
    """
    with disk.explained(f"The backup {backup}"):
        note = read_note(backup)
    with disk.explained(f"The directory {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise StoreFailed(f"{directory} is not empty: name a new directory.")
    data = directory / environment.DATA
    verdict = None
    try:
        with disk.explained(f"The directory {directory}"):
            _unpack(backup, note, data)
        verdict = audit.examine(directory, note["store_id"], now_ms)
    finally:
        (directory / "lock.mdb").unlink(missing_ok=True)
        if verdict is None or verdict.count:
            data.unlink(missing_ok=True)
    if not verdict.count:
        verdict.store_id = lease.write_note(directory)
    return verdict


def read_note(backup: Path) -> dict[str, Any]:
    """What a backup says of itself. Raises BackupDamaged, StoreFailed, OSError."""
    with backup.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(size_bytes - _TRAILER_BYTES, 0))
        trailer = file.read()
        length = int.from_bytes(trailer[:4], "big")
        begin = size_bytes - _TRAILER_BYTES - length
        if trailer[4:] != _MAGIC or length > _NOTE_BYTES_MAX or begin < 0:
            raise _damaged(backup, "it has no end that is ours")
        file.seek(begin)
        text = file.read(length)
    try:
        note: dict[str, Any] = json.loads(text)
        size_is_right, data_format = note["data_bytes"] == begin, note["format"]
        note["store_id"] = str(note["store_id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _damaged(backup, "its note is damaged") from None
    if data_format != lease.DATA_FORMAT:
        raise StoreFailed(
            f"{backup} has data format {data_format}, and this version reads format "
            f"{lease.DATA_FORMAT}: restore it with the version that made it."
        )
    if not size_is_right:
        raise _damaged(backup, "it is not whole")
    return note


def _unpack(backup: Path, note: dict[str, Any], data: Path) -> None:
    digest, left_bytes = hashlib.sha256(), int(note["data_bytes"])
    with backup.open("rb") as source, environment.create_file(data) as file:
        while left_bytes and (chunk := source.read(min(_CHUNK_BYTES, left_bytes))):
            digest.update(chunk)
            left_bytes -= file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if left_bytes or digest.hexdigest() != note.get("sha256"):
        raise _damaged(backup, "its bytes do not match its checksum")


def _damaged(backup: Path, why: str) -> BackupDamaged:
    return BackupDamaged(f"{backup} cannot be restored: {why}. Use another backup.")
