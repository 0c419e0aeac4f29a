"""`resultd backup` copies a store while its server runs; `resultd restore` makes one of a copy."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from resultd_server.engine import backup as backups
from resultd_server.engine import disk
from resultd_server.errors import DomainError, StoreFailed

EXIT_DAMAGED = 1
EXIT_CANNOT = 2


def backup(
    directory: Annotated[Path, typer.Argument(help="The server's data directory.")],
    into: Annotated[Path, typer.Option(help="A new file, or a directory for one.")],
) -> None:
    """Copy a store into one file; its server may run, and goes on.

    What was acknowledged before is in it. Exit code 0: done. 2: not, and there is no file.
    """
    try:
        copied = backups.back_up(directory, into)
    except (DomainError, OSError) as error:
        raise _cannot(error) from None
    _say(
        f"{copied.path}: {copied.size_bytes} bytes of store {copied.store_id}, which grew by "
        f"{copied.grown_bytes} bytes meanwhile"
    )


def restore(
    file: Annotated[Path, typer.Argument(help="What `resultd backup` made.")],
    into: Annotated[Path, typer.Option(help="A new or empty directory.")],
) -> None:
    """Make a store of a backup, once all of it was looked at.

    Exit code 0: done. 1: the backup is damaged. 2: it could not be done.
    """
    try:
        _look_at(file)
        found = backups.restore(file, into, time.time_ns() // 1_000_000)
    except backups.BackupDamaged as error:
        raise _cannot(error, EXIT_DAMAGED) from None
    except (DomainError, OSError) as error:
        raise _cannot(error) from None
    if found.count:
        _say("\n".join(" ".join(filter(None, damage)) for damage in found.damages))
        typer.echo(f"{file} is DAMAGED in {found.count} places: use another backup", err=True)
        raise typer.Exit(EXIT_DAMAGED)
    _say(f"{into}: {found.rows} rows, now store {found.store_id}")


def _look_at(file: Path) -> None:
    """Raises StoreFailed where there is nothing that can be a backup."""
    with disk.explained(f"The backup {file}"):
        try:
            mode = file.stat().st_mode
        except FileNotFoundError:
            raise StoreFailed(f"There is no {file}: name what `resultd backup` made.") from None
    if not stat.S_ISREG(mode):
        # A device need have no end, and none of these has a note to find at it.
        raise StoreFailed(f"{file} is no regular file: name what `resultd backup` made.")


def _say(what: str) -> None:
    """What came of it. It has come of it where nobody can be told, too: the exit code stays."""
    try:
        typer.echo(what)
    except (OSError, UnicodeEncodeError) as error:
        with contextlib.suppress(OSError):
            typer.echo(f"resultd: this cannot be written to stdout ({error}):\n{what}", err=True)
        # Python tries what it still has of it again at the exit, and would make 120 of the code.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _cannot(error: Exception, code: int = EXIT_CANNOT) -> typer.Exit:
    typer.echo(f"resultd: {error}", err=True)
    return typer.Exit(code)
