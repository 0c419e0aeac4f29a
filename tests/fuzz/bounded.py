"""How long one input may take: a second of this process's CPU, however busy the machine is."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType

CPU_S = 1.0
"""Of user and system time, all threads together: a server in this process is counted too."""

_AGAIN_S = 1.0
"""The interruption may be swallowed by what it interrupts; then it comes again."""


class TooLong(BaseException):
    """An input that took more than `CPU_S`. No `except Exception` of the target hides it."""


def bounded(target: Callable[[bytes], None], cpu_s: float = CPU_S) -> Callable[[bytes], float]:
    """The target, interrupted where an input takes more than `cpu_s` seconds of CPU.

    It returns the seconds of CPU an input took, and raises TooLong, or what the target raises.
    For the main thread, and alone in it: it takes SIGPROF.
    """
    interrupted = False

    def interrupt(_: int, __: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise TooLong(f"more than {cpu_s:g} s of CPU, interrupted")

    def timed(raw: bytes) -> float:
        nonlocal interrupted
        interrupted = False
        before = signal.signal(signal.SIGPROF, interrupt)
        began = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_PROF, cpu_s, _AGAIN_S)
            try:
                target(raw)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0.0)
                took = time.process_time() - began
                # Whatever it raised meanwhile; and C code is not interrupted.
                if interrupted or took > cpu_s:
                    raise TooLong(f"{took:.2f} s of CPU")
        finally:
            signal.signal(signal.SIGPROF, before)
        return took

    return timed
