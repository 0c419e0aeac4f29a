"""Which signal an exception is of: one whose handler raised it, and nothing that was called."""

from __future__ import annotations

import types
from typing import Any


def raised_by(error: BaseException) -> int | None:
    """Return the signal whose handler raised this, a soft time limit of Celery, say; else None.

    A handler's frame stands in the traceback like that of any function that was called. That of
    Ctrl-C is C's as a rule, and has none.
    """
    import signal  # late: only for what has failed

    numbers = {_code(signal.getsignal(number)): number for number in signal.valid_signals()}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in numbers:
            return int(numbers[trace.tb_frame.f_code])
        trace = trace.tb_next
    return int(signal.SIGINT) if isinstance(error, KeyboardInterrupt) else None


def _code(handler: Any) -> types.CodeType | None:
    """Return what a signal's handler runs; None if that is not Python."""
    function = getattr(handler, "func", handler)  # of a partial
    if not hasattr(function, "__code__") and callable(function):
        function = function.__call__
    return getattr(function, "__code__", None)
