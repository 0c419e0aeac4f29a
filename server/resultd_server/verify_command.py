"""`resultd verify`: whether a store that nobody serves is whole."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import typer

from resultd_server.engine import audit
from resultd_server.errors import DomainError

EXIT_DAMAGED = 1
EXIT_CANNOT = 2


def verify(
    directory: Annotated[Path, typer.Argument(help="The server's data directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Look for damage in a store whose server is stopped; nothing is changed.

    Exit code 0: whole. 1: damaged, a line for each. 2: it could not be looked at.
    """
    try:
        found = audit.verify(directory, time.time_ns() // 1_000_000)
    except (DomainError, OSError) as error:
        typer.echo(f"resultd: {error}", err=True)
        raise typer.Exit(EXIT_CANNOT) from None
    if as_json:
        said = dataclasses.asdict(found)
        said["damages"] = [damage._asdict() for damage in found.damages]
        typer.echo(json.dumps({"whole": not found.count, **said}))
    else:
        typer.echo("\n".join(_lines(found)))
    if found.count:
        raise typer.Exit(EXIT_DAMAGED)


def _lines(found: audit.Verdict) -> list[str]:
    lines = [" ".join(filter(None, damage)) for damage in found.damages]
    if found.count > len(found.damages):
        lines.append(f"and {found.count - len(found.damages)} more")
    if found.unchecked:
        lines.append(f"not looked at: {found.unchecked}")
    lines += found.notes
    looked = f"{found.rows} rows, {found.entries} entries in the journal"
    if found.count:
        return [*lines, f"DAMAGED, {found.count} places ({looked}): restore it from a backup"]
    return [*lines, f"whole: {looked}, store {found.store_id}"]
