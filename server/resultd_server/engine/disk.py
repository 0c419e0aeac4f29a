"""What the system says where a store's files cannot be used, and what is to be done then.

raise disk.cannot_use("The store in /data", error) from error
with disk.explained("The data directory /data"):
    os.mkdir("/data/x")

A backup is named where a store is damaged, and nowhere else: who restores one over a store that
only lacks room loses what came after it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from resultd_server import limits
from resultd_server.errors import StoreFailed, StoreFull

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

LOW_BYTES = 4 * limits.MIB
"""Below this a failed write is a full disk, which ends; above it a broken one."""


class NoRoom(StoreFailed):
    """The disk, or what the user may have of it, is full: the store itself is well."""


class MayNotWrite(StoreFailed):
    """The files are there, and this process may not write them."""


_ROOM = "make room on its disk (the store itself is well)"
_MAY_NOT = "let the user who runs this read and write it, or name another directory"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: "raise the quota of the user who runs this, or make room (the store is well)",
    errno.ENOMEM: "lower max_db_bytes, or raise what a process may map (ulimit -v, LimitAS=)",
    errno.EACCES: _MAY_NOT,
    errno.EPERM: _MAY_NOT,
    errno.EROFS: "mount its disk for writing, or name another directory",
    errno.EMFILE: "raise how many files a process may open (ulimit -n, LimitNOFILE=)",
    errno.ENFILE: "end what keeps so many files open, or raise fs.file-max",
    errno.EIO: "see what the system's log says of its disk; a disk that fails is to be replaced",
    errno.ENOENT: "make the directory that is missing, or name another",
}
_CLASSES = {
    **dict.fromkeys(NO_ROOM, NoRoom),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), MayNotWrite),
}


def number_of(error: BaseException) -> int:
    """The system's number of what happened; 0 where it is not the system's error.

    LMDB hands the system's errors on as they are, and its own numbers are negative.
    """
    number = error.errno if isinstance(error, OSError) else getattr(error, "code", None)
    return number if isinstance(number, int) and number > 0 else 0


def says_no_room(error: BaseException) -> bool:
    """Whether the system said that there is no room: a quota may be full on an empty disk."""
    return number_of(error) in NO_ROOM


def is_full(directory: Path, needed_bytes: int = 0) -> bool:
    """Whether the disk has no room, or not for so much: why a write failed there, or would."""
    try:
        space = os.statvfs(directory)
    except OSError:
        return False  # a disk that will not even say is a broken one
    return space.f_bavail * space.f_frsize < LOW_BYTES + needed_bytes


def cannot_use(what: str, error: BaseException) -> StoreFailed:
    """Why something cannot be used that the system does not let us have, and the remedy."""
    number = number_of(error)
    if not number:
        return StoreFailed(f"{what} cannot be used: {error}.")
    remedy = _REMEDIES.get(number, "name another")
    return _CLASSES.get(number, StoreFailed)(
        f"{what} cannot be used: {os.strerror(number)}: {remedy}."
    )


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Raises StoreFailed, a sentence with a remedy, where the system says no inside.

    An OSError that is a sentence already, which has no number, is left as it is.
    """
    try:
        yield
    except OSError as error:
        if not number_of(error):
            raise
        raise cannot_use(what, error) from error


def full() -> StoreFull:
    """The refusal of what grows while the disk is full: forgetting frees the store's room only."""
    return StoreFull(
        "The disk of the store is full, or what the server's user may have of it: make room on "
        "it; reads, forgetting and expiry go on."
    )
