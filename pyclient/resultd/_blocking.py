"""Whether this process may wait for results: Celery's guard against deadlocked workers.

A worker that runs tasks calls `forbid_joins(True)` in its children; `get()` then raises, unless
it stands in `with allow_join_result():`. The flag is one for the process, as in Celery.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

E_WOULDBLOCK = (
    "Never call result.get() within a task: the worker it waits for may be the one it blocks. "
    "Chain the tasks instead, or pass disable_sync_subtasks=False."
)

_join_will_block = False


def task_join_will_block() -> bool:
    """Say whether waiting is forbidden here."""
    return _join_will_block


def forbid_joins(forbidden: bool) -> None:
    """Forbid or allow waiting in this process."""
    global _join_will_block
    _join_will_block = forbidden


def assert_will_not_block() -> None:
    """Raise RuntimeError where waiting is forbidden."""
    if _join_will_block:
        raise RuntimeError(E_WOULDBLOCK)


@contextlib.contextmanager
def allow_join_result() -> Iterator[None]:
    """Allow waiting inside the block."""
    with _set_to(False):
        yield


@contextlib.contextmanager
def denied_join_result() -> Iterator[None]:
    """Forbid waiting inside the block."""
    with _set_to(True):
        yield


@contextlib.contextmanager
def _set_to(forbidden: bool) -> Iterator[None]:
    before = _join_will_block
    forbid_joins(forbidden)
    try:
        yield
    finally:
        forbid_joins(before)
