"""Files that an address names."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from resultd import _files


def test_a_file_is_read_whole_up_to_a_bound(tmp_path: Path) -> None:
    """As many bytes as may be, and not one more; the error names the file."""
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert _files.read(str(file), 5) == b"12345"
    with pytest.raises(OSError, match=r"File too large: .*/file"):
        _files.read(str(file), 4)


def test_what_has_no_end_is_an_error() -> None:
    """A device that gives bytes for ever is read as far as the bound."""
    with pytest.raises(OSError, match="File too large"):
        _files.read("/dev/zero", 100_000)


def test_a_name_with_a_nul_is_an_error_like_others() -> None:
    """Python has another for it, which who reads files would not foresee."""
    with pytest.raises(OSError, match=r"Invalid argument: '/a\\x00b'"):
        _files.read("/a\0b", 5)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """Piece by piece as it comes, as a shell's <(command) does."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("wb", buffering=0) as file:
            for piece in (b"a", b"b" * 70_000, b"c"):
                file.write(piece)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert _files.read(str(pipe), 100_000) == b"a" + b"b" * 70_000 + b"c"
    finally:
        writer.join()
