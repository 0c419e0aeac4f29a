"""What the system says of a disk, and what people are told to do about it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from resultd_server.engine import disk
from resultd_server.errors import StoreFailed
from tests.support.full_disk import error_of


@pytest.mark.parametrize("kind", ["LMDB's", "the system's"])
@pytest.mark.parametrize(
    ("number", "error", "remedy"),
    [
        (errno.ENOSPC, disk.NoRoom, "make room on its disk"),
        (errno.EDQUOT, disk.NoRoom, "raise the quota"),
        (errno.ENOMEM, StoreFailed, "lower max_db_bytes, or raise .*ulimit -v"),
        (errno.EACCES, disk.MayNotWrite, "let the user who runs this read and write it"),
        (errno.EROFS, disk.MayNotWrite, "mount its disk for writing"),
        (errno.EMFILE, StoreFailed, "ulimit -n"),
        (errno.EIO, StoreFailed, "the system's log"),
        (errno.ENOENT, StoreFailed, "make the directory that is missing"),
        (errno.ENOTDIR, StoreFailed, "name another"),
    ],
)
def test_each_trouble_has_its_own_remedy(
    number: int, error: type[StoreFailed], remedy: str, kind: str
) -> None:
    """What is full, forbidden or too large says so; and none of it asks for a backup."""
    said = error_of(number) if kind == "LMDB's" else OSError(number, "as the system says it")
    found = disk.cannot_use("The store in /x", said)
    assert type(found) is error
    sentence = found.sentence
    assert sentence.startswith(f"The store in /x cannot be used: {os.strerror(number)}: ")
    with pytest.raises(StoreFailed, match=remedy):
        raise found
    assert "backup" not in sentence


def test_a_sentence_stays_as_it_is() -> None:
    """An OSError that was written for people is not explained again."""
    with pytest.raises(OSError, match=r"^A server uses it\.$"), disk.explained("The store"):
        raise OSError("A server uses it.")
    said = "The store cannot be used: Permission denied"
    with pytest.raises(disk.MayNotWrite, match=said), disk.explained("The store"):
        raise PermissionError(errno.EACCES, "no", "/x")


def test_a_quota_is_as_full_as_a_disk() -> None:
    """The system's word counts, whatever the disk has left."""
    assert disk.says_no_room(OSError(errno.EDQUOT, "quota"))
    assert disk.says_no_room(error_of(errno.ENOSPC))
    assert not disk.says_no_room(error_of(errno.EIO))
    assert not disk.says_no_room(error_of(-30_000))  # LMDB's own
    assert not disk.says_no_room(ValueError("full"))


def test_a_full_disk_is_told_from_a_silent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk is full where there is less than is needed; one that says nothing is not full."""
    assert not disk.is_full(tmp_path)
    assert disk.is_full(tmp_path, 2**62)

    def gone(_: object) -> None:
        raise OSError(5, "EIO")

    monkeypatch.setattr(os, "statvfs", gone)
    assert not disk.is_full(tmp_path)


def test_who_is_refused_hears_that_it_is_the_disk() -> None:
    """A greater `max_db_bytes` would not help."""
    assert "disk" in disk.full().sentence
    assert "max_db_bytes" not in disk.full().sentence
