"""Sockets between the processes of one server: they have names, and no files.

door = local_sockets.listen(name)               # the supervisor, for each of its processes
connection = await local_sockets.connect(name)  # the other processes, and the supervisor

The names are Linux's abstract ones (unix(7)). Nothing lies in a directory for others to clean
away, and no path can be too long. The supervisor keeps what listens open, and hands it to the
process of the moment: a name is never free for somebody else to take, and who connects to a
process that is away waits for the next one. A name has no permissions, and everybody in the
network namespace can see it: both sides ask the kernel who the other one is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import uuid
from typing import Protocol

WAITING_MAX = 128
"""Connections that nobody has accepted yet: 64 processes and a few scrapes at most."""

_CREDENTIALS = struct.Struct("3i")
"""The kernel's `struct ucred`: process, user, group."""


class Asked(Protocol):
    """A socket, or what an event loop shows of one."""

    def getsockopt(self, level: int, option: int, buflen: int, /) -> bytes:
        """As a socket's."""


def new_name() -> str:
    """What the sockets of one server are called by, and no other's."""
    return f"resultd-{uuid.uuid4().hex}"


def hints_name(server: str, number: int) -> str:
    """Where a process tells the others what it changed."""
    return f"{server}-hints-{number}"


def admin_name(server: str, number: int) -> str:
    """Where a process answers its supervisor."""
    return f"{server}-admin-{number}"


def listen(name: str) -> socket.socket:
    """A socket that listens under a name. Raises OSError."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        door.bind(f"\0{name}")
        door.listen(WAITING_MAX)
    except OSError:
        door.close()
        raise
    door.setblocking(False)
    return door


async def connect(name: str) -> socket.socket:
    """A connection to who listens under a name. Raises OSError, for a stranger too."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, f"\0{name}")
        if not is_ours(connection):
            raise PermissionError(f"Another user listens as {name}.")
    except BaseException:
        connection.close()
        raise
    return connection


def is_ours(connection: Asked) -> bool:
    """Whether the other side is a process of the same user."""
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(said)
    return bool(user == os.geteuid())
