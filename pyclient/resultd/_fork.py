"""What happens when the process forks, which gRPC alone does not survive.

Before: streams are cancelled, their threads joined, channels closed, and gRPC's native
threads given up to a second to end; nothing of ours may be inside gRPC at the fork. After:
the parent goes on with what it waited for, the child begins anew; both open lazily.

gRPC registers a hook of its own with the first channel, and hooks that run before a fork run
in the reverse order of registration. Ours has to run first, so it is registered after that.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Protocol

# Seconds, at most, that a fork is held up for gRPC's threads. They need 1 to 5 ms.
REST_MAX = 1.0
# Where threads cannot be counted, a plain rest of this many seconds was enough every time.
REST_BLIND = 0.01

# How gRPC names its native threads (cut to 15 bytes by the kernel).
_NATIVE_NAMES = ("grpc", "event_engine", "lifeguard", "resolver", "default-exec", "timer_manager")
_TASKS = Path("/proc/self/task")


class Forkable(Protocol):
    """Something that holds channels open."""

    def before_fork(self, deadline: float) -> None:
        """Close everything, and let nothing open until `after_fork_*`."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew; no thread of the parent exists here."""

    def close_streams(self) -> None:
        """Cancel every stream: the interpreter is about to end."""


_known: weakref.WeakSet[Forkable] = weakref.WeakSet()
_registering = threading.Lock()
_registered = False
_held: list[Forkable] = []
# Threads that did not go when we waited for them: those of other channels in this process.
_foreign = 0


def guard(forkable: Forkable) -> None:
    """Look after something from now on. Call it after its first channel was made."""
    global _registered
    with _registering:
        _known.add(forkable)
        if _registered:
            return
        _registered = True
        atexit.register(_at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=_before,
                after_in_parent=_after_in_parent,
                after_in_child=_after_in_child,
            )


def native_threads() -> int:
    """Count gRPC's native threads in this process; -1 where that cannot be told."""
    try:
        names = [(task / "comm").read_text() for task in _TASKS.iterdir()]
    except FileNotFoundError:
        # No /proc, or a thread ended while it was looked at: then look again.
        return -1 if not _TASKS.exists() else native_threads()
    except OSError:
        return -1
    return sum(name.startswith(_NATIVE_NAMES) for name in names)


def _before() -> None:
    deadline = time.monotonic() + REST_MAX
    with _registering:
        _held[:] = list(_known)
    for forkable in _held:
        forkable.before_fork(deadline)
    _rest(deadline)


def _rest(deadline: float) -> None:
    if not sys.platform.startswith("linux"):
        time.sleep(REST_BLIND)
        return
    # Channels of other code in this process (grpc.aio's, too) keep their threads: the time
    # runs out once, and later forks know how many not to wait for.
    global _foreign
    count = native_threads()
    while count > _foreign and time.monotonic() < deadline:
        time.sleep(0.0005)
        count = native_threads()
    if count:
        time.sleep(REST_BLIND)
    _foreign = max(0, count)


def _after_in_parent() -> None:
    for forkable in _held:
        forkable.after_fork_in_parent()
    _held.clear()


def _after_in_child() -> None:
    global _registering, _foreign
    _registering = threading.Lock()
    _foreign = 0  # threads do not come along
    for forkable in _held:
        forkable.after_fork_in_child()
    _held.clear()


def _at_exit() -> None:
    # A sync stream alive when the interpreter ends can deadlock in grpc's finaliser.
    for forkable in list(_known):
        forkable.close_streams()
