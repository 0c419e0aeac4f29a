"""Addresses for servers: which can be had again, and which kinds there are."""

from __future__ import annotations

import socket


def free_address() -> str:
    """An address the server can have again after it was killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def why_no_ipv6() -> str | None:
    """Why no server can listen on ::1 here; None where it can."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        return f"no IPv6 here: {error}"
    return None
