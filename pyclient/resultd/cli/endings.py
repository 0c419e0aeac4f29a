"""How a command ends that could not do what it was asked: a sentence, and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import typer

from resultd.cli import EXIT_USAGE
from resultd.cli.options import CommandError
from resultd.cli.output import escape
from resultd.errors import ResultdError

EXIT_PIPE = 141  # 128 + SIGPIPE, as of any program whose reader has gone

# Of text that cannot be written: what is shown of it.
_SHOWN_CHARS_MAX = 80


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn what goes wrong outside of us into one sentence on stderr and exit code 2.

    Without it Python's traceback ends with 1, which says of `wait` and `watch` that a task
    failed, and of `health` that a server does not serve. A reader that has gone is told
    nothing; the exit code is 141 then.

    Raises:
        typer.Exit: a setting, the server, a file or the output was not as it has to be.
    """
    try:
        yield
    except BrokenPipeError:
        _leave(sys.stdout)
        raise typer.Exit(EXIT_PIPE) from None
    except (CommandError, ResultdError, OSError, UnicodeError) as error:
        with contextlib.suppress(OSError):  # nobody can be told: the exit code has to do
            typer.echo(f"resultd: {escape(_sentence(error))}", err=True)
        _leave(sys.stdout)
        _leave(sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None


def _sentence(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        begin = max(0, error.start - _SHOWN_CHARS_MAX // 2)
        shown = error.object[begin : begin + _SHOWN_CHARS_MAX]
        return f"{shown!a} cannot be written as {error.encoding}"
    # Some of ours are the system's as well, as TimeoutError, and their sentences are better.
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ResultdError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _leave(stream: TextIO | None) -> None:
    """Give what is left of an output that cannot be written nowhere to go.

    At the exit Python would write it again, fail again, and make 120 of the exit code.
    """
    if stream is None:  # it was closed before we began
        return
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
