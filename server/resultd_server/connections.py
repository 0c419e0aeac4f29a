"""The connections to this process' port as the system has them: gRPC has no word to close one."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from resultd_server.listening import UNIX

_DESCRIPTORS = Path("/proc/self/fd")


def close_share(address: str, share: float) -> int:
    """Closes a share of the connections that were made to an address, drawn by lot; how many.

    `address`: as a server says it, `host:port` or `unix:PATH`. Whatever gRPC holds for a
    connection is freed, as when its peer hangs up. Not for the event loop's thread: it looks at
    every descriptor.
    """
    # Looked for first and opened one by one: there need not be so many descriptors left.
    found = [number for number in _numbers() if _is_connection(number, address)]
    chosen = random.sample(found, math.ceil(share * len(found)))
    return sum(_close(number, address) for number in chosen)


def _numbers() -> Iterator[int]:
    for entry in _DESCRIPTORS.iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if str(entry.readlink()).startswith("socket:"):
                yield int(entry.name)


@contextlib.contextmanager
def _opened(number: int, address: str) -> Iterator[socket.socket | None]:
    """A copy of a connection to the address; None where the descriptor is something else."""
    try:
        copy = os.dup(number)
    except OSError as error:
        if error.errno != errno.EBADF:  # closed meanwhile
            raise
        yield None
        return
    try:
        connection = socket.socket(fileno=copy)
    except OSError:  # something else meanwhile
        os.close(copy)
        yield None
        return
    with connection:
        try:
            connection.getpeername()  # what listens has none
            name = connection.getsockname()
        except OSError:
            name = None
        if address.startswith(UNIX):
            ours = name == unquote(address.removeprefix(UNIX))  # as gRPC reads it
        else:
            ours = isinstance(name, tuple) and str(name[1]) == address.rpartition(":")[2]
        yield connection if ours else None


def _is_connection(number: int, address: str) -> bool:
    with _opened(number, address) as connection:
        return connection is not None


def _close(number: int, address: str) -> bool:
    with _opened(number, address) as connection:
        if connection is None:
            return False  # another now
        with contextlib.suppress(OSError):  # its peer was first
            connection.shutdown(socket.SHUT_RDWR)
        return True
