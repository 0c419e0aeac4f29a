"""A disk without room under LMDB, in this process: its files become /dev/full for a while.

with no_room(directory):
    ...  # what LMDB writes fails with ENOSPC, as the kernel says it

with no_room(directory, of_meta=True):
    ...  # pages are written, and the meta page that leads to them is not
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from resultd_server.engine import environment, recovery


@contextmanager
def no_room(directory: Path, *, of_meta: bool = False) -> Iterator[None]:
    """Whatever is written to a store's open data.mdb fails; or its meta pages alone.

    LMDB has those synced with a descriptor of their own.
    """
    (number,) = (each for each, synced in _descriptors(directory) if synced is of_meta)
    kept, full = os.dup(number), os.open("/dev/full", os.O_RDWR)
    os.dup2(full, number)
    try:
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)
        os.close(full)


def attempts_to_write(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Gives how often something was to be written into LMDB, from now on."""
    begun, write = 0, recovery.write

    def counted(*given: Any, **more: Any) -> int:
        nonlocal begun
        begun += 1
        return write(*given, **more)

    monkeypatch.setattr(recovery, "write", counted)
    return lambda: begun


def _descriptors(directory: Path) -> Iterator[tuple[int, bool]]:
    """Those of data.mdb, and whether what they write is synced."""
    data = (directory / "data.mdb").stat()
    for entry in Path("/proc/self/fd").iterdir():
        number = int(entry.name)
        try:
            found = os.fstat(number)
            flags = fcntl.fcntl(number, fcntl.F_GETFL)
        except OSError:  # of the listing itself
            continue
        if (found.st_dev, found.st_ino) == (data.st_dev, data.st_ino) and flags & os.O_ACCMODE:
            yield number, bool(flags & os.O_DSYNC)


def error_of(number: int) -> Exception:
    """An error of LMDB's that hands on what the system said."""
    error: Any = environment.Error(f"mdb_txn_commit: {os.strerror(number)}")
    error.code = number
    assert isinstance(error, Exception)
    return error
