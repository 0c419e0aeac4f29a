"""Standard input, output and error, where whoever started the process closed them.

The next file that is opened would get the number of one that is missing: libuv ends a process
whose sockets have numbers so low, and what libraries write to standard error would lie in the
store.
"""

from __future__ import annotations

import os
import sys

_NUMBERS = range(3)


def fill() -> None:
    """Opens /dev/null for those that are missing. Raises OSError."""
    for number in _NUMBERS:
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, and those below are not.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python has None for what was closed when it began.
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115  like those it stands for, it stays open
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  the same
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  the same
