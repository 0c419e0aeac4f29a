"""Addresses for servers that are to have them again."""

from __future__ import annotations

import socket


def free_address() -> str:
    """An address the server can have again after it was killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
