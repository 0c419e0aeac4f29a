"""Channels that gRPC left without the thread that serves them.

What a channel's streams and futures hear is brought by one thread of gRPC's, begun with the first
of them. gRPC counts that call before it begins the thread. Where there can be no more threads just
then (a limit of processes, no memory for a stack), the channel counts on one that is not there,
and never begins one again: calls on it end at no timeout, and its close does not either.

So such a channel is given up and kept, as to drop it would close it. What it lacks stands in the
traceback. Once that thread can be begun the channel is closed in order, and until then nothing is
begun elsewhere that needs one: there is one such channel in a process, as a rule. Plain unary
calls need none.

All of this with the fork's gate, which keeps others from beginning a call on such a channel.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass
from typing import Any

import grpc

from resultd.errors import ResultdError, make

# What says that there can be no more threads.
NO_THREAD = (RuntimeError, MemoryError)
# What of gRPC's begins the thread, and what that calls it and the state it serves.
_BEGINS = "_run_channel_spin_thread"
_THREAD = "channel_spin_thread"
_STATE = "state"


@dataclass
class Stranded:
    """A channel, and the thread that it waits for."""

    channel: grpc.Channel
    state: Any
    thread: Any
    served: Any

    def __post_init__(self) -> None:
        # Its finaliser, when the interpreter ends, would close what it finds here and never end.
        self.state.channel = None

    def save(self) -> None:
        """Begin the thread, and close the channel.

        Raises:
            RuntimeError, MemoryError: it can still not be begun.
        """
        self.state.channel = self.served
        try:
            self.thread.start()
        except NO_THREAD:
            self.state.channel = None
            raise
        self.channel.close()


_stranded: list[Stranded] = []
_of_parents: list[Stranded] = []


def give_up(channel: grpc.Channel, error: BaseException) -> None:
    """Let go of a channel on which no call could be begun, since a thread was lacking."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == _BEGINS:
            state = frame.f_locals[_STATE]
            thread = frame.f_locals[_THREAD]
            _stranded.append(Stranded(channel, state, thread, state.channel))
            return
    channel.close()  # it was another thread, as that which sends what a stream sends


def save_all() -> bool:
    """Close what was given up, as soon as that can be; says whether nothing is left.

    Not where a signal's handler may raise.
    """
    while _stranded:
        if sys.is_finalizing():
            return False  # a thread would not run
        try:
            _stranded[-1].save()
        except NO_THREAD:
            return False
        _stranded.pop()
    return True


def left() -> bool:
    """Whether something is given up and not closed yet."""
    return bool(_stranded)


def error(cause: BaseException | None = None) -> ResultdError:
    """What is raised where a thread was needed; it may succeed later."""
    why = "" if cause is None else f": {cause!r}"
    return make("UNAVAILABLE", f"gRPC needs a thread for this, and none can be begun{why}")


def _leave_to_the_parent() -> None:
    """In a forked child: kept, and never touched. They are the parent's, and so are the threads."""
    _of_parents.extend(_stranded)
    _stranded.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
