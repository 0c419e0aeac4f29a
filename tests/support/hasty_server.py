"""A planted fault: a server that answers before the journal is written. `python -m …`."""

from __future__ import annotations

import runpy
from collections import deque

from resultd_server.engine.journal import Journal

LATE = 4
"""So many writes are still to come when a caller is answered."""

_write = Journal._write
_waiting: deque[tuple[bytes, int]] = deque()


def _write_later(self: Journal, data: bytes, offset: int) -> None:
    _waiting.append((data, offset))
    while len(_waiting) > LATE:
        _write(self, *_waiting.popleft())


Journal._write = _write_later  # type: ignore[method-assign]  # that is the fault
runpy.run_module("resultd_server", run_name="__main__")
