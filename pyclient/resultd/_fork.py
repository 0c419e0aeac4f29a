"""What happens when the process forks, which gRPC alone does not survive.

Before: streams are cancelled, their threads joined, channels closed, and gRPC's native
threads given up to a second to end; nothing of ours may be inside gRPC at the fork. After:
the parent goes on with what it waited for, the child begins anew; both open lazily.

gRPC registers a hook of its own with the first channel, and hooks that run before a fork run
in the reverse order of registration. Ours has to run first, so it is registered after that.
Until then, or while another thread opens that first channel, it is registered all the same
from the import on: it then runs last, when the gate tells whether there is a channel by now.

A signal's handler may raise in the midst of it, Ctrl-C say. Python would drop that, and fork with
half of the work done. So the work is done again, and the signal comes again after the fork.
"""

from __future__ import annotations

import _thread
import atexit
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from resultd import _signals
from resultd._deputies import deputies

# Seconds, at most, that a fork is held up for gRPC's threads. They need 1 to 5 ms.
REST_MAX = 1.0
# Seconds that streams are waited for when the interpreter ends. They need some 2 ms.
EXIT_MAX = 0.5
# Where threads cannot be counted, a plain rest of this many seconds was enough every time.
REST_BLIND = 0.01

# How gRPC names its native threads (cut to 15 bytes by the kernel).
_NATIVE_NAMES = (
    b"grpc",
    b"event_engine",
    b"lifeguard",
    b"resolver",
    b"default-exec",
    b"timer_manager",
)
_TASKS = Path("/proc/self/task")


class Forkable(Protocol):
    """Something that holds channels open."""

    def before_fork(self, deadline: float) -> None:
        """Close everything. The gate is held until after the fork."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew; no thread of the parent exists here."""

    def close_streams(self, deadline: float) -> None:
        """End every stream, and open none again: the interpreter is about to end."""


# Held while anything is opened, and over a whole fork: nothing opens meanwhile.
gate = threading.RLock()

_known: weakref.WeakSet[Forkable] = weakref.WeakSet()
_knowing = threading.Lock()
_registered = False
_forking = 0  # the thread that forks
_held: list[Forkable] = []
# The signal that comes again after the fork, by the hook of the import or by the later one.
_lost_first: list[int] = []
_lost: list[int] = []
# How many of gRPC's threads were there when nothing of ours was open: those of others' channels.
_foreign = 0
# Threads that were there then and that neither Python nor gRPC named.
_others: frozenset[int] = frozenset()


def know(forkable: Forkable) -> None:
    """Look after something from now on."""
    if not _registered:
        _look_around()
    with _knowing:
        _known.add(forkable)


def guard() -> None:
    """Run before gRPC's own hook from now on. Called with the gate, after a channel was made."""
    global _registered
    if _registered:
        return
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_before,
            after_in_parent=_after_in_parent,
            after_in_child=_after_in_child,
        )
        os.register_at_fork(after_in_parent=_coming_again(_lost))
    atexit.register(_at_exit)
    _registered = True


def forks_here() -> bool:
    """Whether this very thread is forking, and holds the gate."""
    return _forking == threading.get_ident()


def native_threads() -> int:
    """Count gRPC's native threads in this process; -1 where that cannot be told.

    A thread that is being born is one as well: until it runs, which takes long on a busy
    machine, it has no name of its own. So what Python does not know counts, unless it was there
    when nothing of ours was open and is not named by gRPC.
    """
    try:
        named, unseen = _unknown_to_python()
    except OSError:
        return -1
    return unseen + sum(
        tid not in _others or name.startswith(_NATIVE_NAMES) for tid, name in named.items()
    )


def _unknown_to_python() -> tuple[dict[int, bytes], int]:
    """The names of this process's threads that no Thread object stands for, by their ids.

    And how many there are that were not seen: when a thread ends while they are listed, Linux
    may end the list there (``next_tid`` in fs/proc/base.c). The links of the directory tell.
    """
    named: dict[int, bytes] = {}
    for task in _TASKS.iterdir():
        # A thread may end while it is looked at: it is gone, then.
        with suppress(FileNotFoundError, ProcessLookupError):
            named[int(task.name)] = (task / "comm").read_bytes()
    unseen = max(0, _TASKS.stat().st_nlink - 2 - len(named))
    for thread in threading.enumerate():
        named.pop(thread.native_id or 0, None)
    return named, unseen


def _look_around() -> None:
    """Learn whose threads are here, while nothing of ours is open."""
    global _others, _foreign
    try:
        unknown, _ = _unknown_to_python()
    except OSError:
        return
    _others = frozenset(tid for tid, name in unknown.items() if not name.startswith(_NATIVE_NAMES))
    _foreign = len(unknown) - len(_others)


def _all() -> list[Forkable]:
    with _knowing:
        return list(_known)


def _coming_again(lost: list[int]) -> Callable[[], object]:
    """What has a signal come again; none, or one (of two, None would be compared with None).

    All of C, whatever it looks like: what a handler raises inside of a hook is dropped.
    """
    return functools.partial(sorted, lost, key=_thread.interrupt_main)


def _surely(step: Callable[[], object]) -> None:
    """Take a step of a fork; again, where a signal's handler broke it off."""
    try:
        step()
    except BaseException as error:
        number = _signals.raised_by(error)
        if number is None:
            raise
        (_lost if _registered else _lost_first)[:] = [number]
        step()


def _before() -> None:
    global _forking
    if forks_here():
        return  # done: this is the registration of the import, which runs after gRPC's hook
    gate.acquire()  # another thread that forks is waited for
    _forking = threading.get_ident()
    _lost.clear()
    _lost_first.clear()
    _surely(_prepare)


def _prepare() -> None:
    deadline = time.monotonic() + REST_MAX
    _held[:] = _all()  # those that become known from here on cannot open anything
    for forkable in _held:
        forkable.before_fork(deadline)
    deputies.pause(deadline)
    if _registered:
        _rest(deadline)


def _rest(deadline: float) -> None:
    if not sys.platform.startswith("linux"):
        time.sleep(REST_BLIND)
        return
    # Channels of other code in this process (grpc.aio's, too) keep their threads. Where those came
    # after ours the time runs out once: the next fork knows how many not to wait for.
    count = native_threads()
    while count > _foreign and time.monotonic() < deadline:
        time.sleep(0.0005)
        count = native_threads()
    if count:
        time.sleep(REST_BLIND)


def _after_in_parent() -> None:
    _surely(_open_gate)
    _surely(deputies.resume)
    for forkable in _held:
        _surely(forkable.after_fork_in_parent)
    _held.clear()


def _open_gate() -> None:
    global _forking
    if _registered:
        _look_around()
    _forking = 0
    with suppress(RuntimeError):  # it was given back, and the step broken off after that
        gate.release()


def _after_in_child() -> None:
    _surely(_begin_anew)
    _lost.clear()
    _lost_first.clear()


def _begin_anew() -> None:
    global gate, _knowing, _forking, _foreign, _others
    gate, _knowing = threading.RLock(), threading.Lock()
    deputies.begin_anew()
    _held.clear()
    _forking = 0
    _foreign, _others = 0, frozenset()  # threads do not come along
    # Also what became known while the fork was on its way, in a thread that is not here.
    for forkable in _all():
        forkable.after_fork_in_child()


def _first_after_in_parent() -> None:
    if not _registered:
        _after_in_parent()


def _first_after_in_child() -> None:
    if not _registered:
        _after_in_child()


if hasattr(os, "register_at_fork"):
    # After a fork the later registration, if there is one, runs after gRPC's hook.
    os.register_at_fork(
        before=_before,
        after_in_parent=_first_after_in_parent,
        after_in_child=_first_after_in_child,
    )
    os.register_at_fork(after_in_parent=_coming_again(_lost_first))


def _at_exit() -> None:
    # A sync stream alive when the interpreter ends can deadlock in grpc's finaliser. What is
    # waited for from here on, by functions that run after this one, opens one again.
    deadline = time.monotonic() + EXIT_MAX
    for forkable in _all():
        forkable.close_streams(deadline)
