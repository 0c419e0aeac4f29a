"""Small files that an address names: tokens and certificates."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def read(path: str, bytes_max: int) -> bytes:
    """Read a file whole, a pipe too; what has no end, such as /dev/zero, is not read to it.

    Raises:
        OSError: it cannot be read, or has more than `bytes_max`.
    """
    try:
        with Path(path).open("rb") as file:
            found = file.read(bytes_max + 1)
    except ValueError:  # a NUL in its name, which the system is not even asked about
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path) from None
    if len(found) > bytes_max:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
    return found
