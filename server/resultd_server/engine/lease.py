"""Who may use a data directory, and what the note beside the data says of its format."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from resultd_server.engine import disk, environment, journal, recovery
from resultd_server.errors import StoreFailed

DATA_FORMAT = 3
"""2: a journal may lie beside the data, and what is in it is acknowledged. 3: a row ends with
its checksum's low byte first, and the log's rows say places as events do."""

NOTE = "resultd.json"

SHARES = "workers.lock"
"""Held by every process of a server that has several, for as long as it lives."""

LEFTOVERS_S = 5.0
"""What the workers of a killed supervisor have to end: they notice at once."""

_LOOK_S = 0.02


class Lease:
    """The right to use a data directory, which is made if it is missing.

    What a server left in its journal is in the store once this returns. Where there is no room
    for it: `left` has it for who `keeps_left`, for others NoRoom is raised. Raises OSError where
    somebody else has the directory, StoreFailed where it cannot be used, for a foreign format or a
    damaged journal.
    """

    def __init__(self, directory: Path, *, keeps_left: bool = False) -> None:
        with disk.explained(f"The data directory {directory}"):
            if not directory.exists():
                directory.mkdir(parents=True, exist_ok=True)
                journal.sync_directory(directory.parent)
            self._descriptor = _lock(directory)
            try:
                _await_leftovers(directory)
                self.store_id = _find_or_make(directory)
                check_data(directory)
                self.left = recovery.replay(directory)
                if self.left is not None and not keeps_left:
                    raise disk.NoRoom(
                        f"What lies in the journal in {directory} cannot be written into the "
                        "store: make room on its disk (nothing is lost, and a server of one "
                        "process serves it as it is)."
                    )
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Lets others have it."""
        os.close(self._descriptor)


def check_there(directory: Path) -> None:
    """Raises StoreFailed where there is no store, or none yet."""
    with disk.explained(f"The data directory {directory}"):
        if not (directory / NOTE).exists():
            raise StoreFailed(
                f"There is no store in {directory}: name the server's data directory."
            )
    if _read_note(directory).new:
        raise StoreFailed(
            f"There is no store in {directory} yet: its server is making one, or ended before it "
            "had. Start it again then."
        )


def check_data(directory: Path) -> None:
    """Raises StoreFailed where a store's data is gone: LMDB would begin anew, and silently."""
    data = directory / environment.DATA
    with disk.explained(f"The data directory {directory}"):
        if not data.exists():
            raise environment.cannot_open(directory, f"its {environment.DATA} is missing")
        if not data.stat().st_size:
            raise environment.cannot_open(directory, f"its {environment.DATA} is empty")


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """The right to look at a store as it was left. Raises OSError where somebody else has it."""
    with disk.explained(f"The data directory {directory}"):
        descriptor = _lock(directory)
    try:
        _await_leftovers(directory)
        yield
    finally:
        os.close(descriptor)


def _lock(directory: Path) -> int:
    """Keeps a second server off the directory. Raises OSError."""
    descriptor = open_lock(directory, "resultd.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OSError(
            f"A server uses the data directory {directory}: stop it, or name another directory."
        ) from None
    return descriptor


def open_lock(directory: Path, name: str) -> int:
    """A file to lock. Raises OSError."""
    return os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, environment.FILE_MODE)


def _await_leftovers(directory: Path) -> None:
    """Until the workers of a supervisor that was killed have noticed. Raises OSError."""
    descriptor = open_lock(directory, SHARES)
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


class _Note(NamedTuple):
    """What the note says. `new`: nobody was served yet, and the data need not be there."""

    store_id: str
    new: bool


def check_format(directory: Path) -> str:
    """The store's id, from the note beside the data. Raises StoreFailed."""
    return _read_note(directory).store_id


def _find_or_make(directory: Path) -> str:
    """The id of the store in a directory, which becomes one if it was none. Raises StoreFailed.

    The note is first, so that an environment without one is somebody else's. Until the data is on
    disk it says that the store is new: data that is not there afterwards was lost.
    """
    with disk.explained(f"The data directory {directory}"):
        if not (directory / NOTE).exists():
            if (directory / environment.DATA).exists():
                raise StoreFailed(
                    f"{directory} holds an LMDB environment that is not ours: name another "
                    "directory."
                )
            write_note(directory, new=True)
    said = _read_note(directory)
    if said.new:
        environment.make(directory)
        with disk.explained(f"The data directory {directory}"):
            journal.sync_directory(directory)
            write_note(directory, said.store_id)
    return said.store_id


def _read_note(directory: Path) -> _Note:
    note = directory / NOTE
    with disk.explained(f"The data directory {directory}"):
        text = note.read_bytes()
    try:
        said = json.loads(text)
        store_id, data_format, library = said["store_id"], said["format"], said["lmdb"]
    except (ValueError, KeyError, TypeError):
        raise StoreFailed(
            f"{note} is damaged: restore it from a backup, or name another directory."
        ) from None
    if data_format != DATA_FORMAT or not str(library).startswith(f"{environment.LMDB_MAJOR}."):
        raise StoreFailed(
            f"{directory} has data format {data_format} (LMDB {library}) and this server "
            f"reads format {DATA_FORMAT} (LMDB {environment.LMDB_MAJOR}.x): use the version that "
            "wrote it."
        )
    return _Note(str(store_id), said.get("new") is True)


def write_note(directory: Path, store_id: str = "", *, new: bool = False) -> str:
    """Makes what lies in a directory a store; its id, another than any before if none is given."""
    store_id = store_id or uuid.uuid4().hex
    said = {
        "format": DATA_FORMAT,
        "lmdb": environment.library(),
        "store_id": store_id,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if new:
        said["new"] = True
    _write_durably(directory / NOTE, json.dumps(said, indent=2) + "\n")
    return store_id


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    journal.sync_directory(path.parent)
