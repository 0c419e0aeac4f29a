"""Whether an address is free, before gRPC takes it, and how many may connect.

gRPC tells nobody why it could not listen but its own log, and takes a unix socket away
from a server that lives.
"""

from __future__ import annotations

import errno
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import structlog

from resultd_server import limits

log = structlog.get_logger("resultd.server")

UNIX = "unix:"

_LACKING = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""This host lacks the address. Of a name with several, gRPC listens on the others."""


def check_free(address: str, flag: str = "--listen") -> None:
    """Raises OSError, a sentence with the remedy, if nobody can listen there.

    `flag`: what names another address.
    """
    if address.startswith(UNIX):
        _check_unix(address, Path(address.removeprefix(UNIX)), flag)
        return
    host, _, port = address.rpartition(":")
    lacking: OSError | None = None
    free = False
    for family, where in _resolve(address, host.strip("[]"), int(port)):
        try:
            _probe(family, where)
        except OSError as error:
            if error.errno not in _LACKING:
                raise _taken(address, error, flag) from None
            lacking = error
        else:
            free = True
    if lacking is not None and not free:
        raise _taken(address, lacking, flag)


def _probe(family: int, where: tuple[object, ...]) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)
        probe.listen(1)  # a port that somebody else listens on may still be bound


def _resolve(address: str, host: str, port: int) -> Iterator[tuple[int, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise OSError(f"Cannot listen on {address}: {error.strerror}. Name an address.") from None
    except UnicodeError:  # a part of the name is empty, or longer than 63 characters
        raise OSError(f"Cannot listen on {address}: no host is called so. Name another.") from None
    for family, _, _, _, where in found:
        yield family, where


def _check_unix(address: str, path: Path, flag: str) -> None:
    if not path.parent.is_dir():
        raise OSError(f"Cannot listen on {address}: {path.parent} is not a directory. Make it.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return  # none, or what a server that was killed left behind
        except OSError as error:
            raise _taken(address, error, flag) from None
    raise _taken(address, OSError(errno.EADDRINUSE, "Address already in use"), flag)


def _taken(address: str, error: OSError, flag: str) -> OSError:
    remedy = f"name another address with {flag}"
    if error.errno == errno.EADDRINUSE:
        remedy = f"stop the server that listens there, or {remedy}"
    return OSError(f"Cannot listen on {address}: {error.strerror or error}: {remedy}.")


def connections_max(wanted: int = limits.CONNECTIONS_MAX) -> int:
    """How many connections the process has descriptors for; asks the system for more first.

    Out of descriptors nobody could connect, and the store could not work either. Whoever is one
    too many is closed without a word, so it is logged here that there are fewer than wanted.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + limits.DESCRIPTORS_KEPT
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    granted = max(1, min(wanted, soft - limits.DESCRIPTORS_KEPT))
    if granted < wanted:
        log.warning(
            "few connections: open files leave room for no more",
            connections=granted,
            wanted=wanted,
            open_files=soft,
        )
    return granted
