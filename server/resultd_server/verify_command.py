"""`resultd verify`: whether a store that nobody serves is whole."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import typer

from resultd_server.engine import audit
from resultd_server.engine import recount as recounts
from resultd_server.engine.recount import Change
from resultd_server.errors import DomainError
from resultd_server.ledger import keys
from resultd_server.ledger.txn import Db

EXIT_DAMAGED = 1
EXIT_CANNOT = 2


def verify(
    directory: Annotated[Path, typer.Argument(help="The server's data directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    recount: Annotated[
        bool, typer.Option(help="First count again what namespaces hold, and set it right.")
    ] = False,
) -> None:
    """Look for damage in a store whose server is stopped; only --recount changes something.

    Exit code 0: whole. 1: damaged, a line for each. 2: it could not be looked at.
    """
    try:
        changes = recounts.repair(directory) if recount else []
        found = audit.verify(directory, time.time_ns() // 1_000_000)
    except (DomainError, OSError) as error:
        typer.echo(f"resultd: {error}", err=True)
        raise typer.Exit(EXIT_CANNOT) from None
    if as_json:
        said = dataclasses.asdict(found)
        said["damages"] = [damage._asdict() for damage in found.damages]
        said["recounted"] = [change._asdict() for change in changes]
        typer.echo(json.dumps({"whole": not found.count, **said}))
    else:
        typer.echo("\n".join([*map(_set_right, changes), *_lines(found)]))
    if found.count:
        raise typer.Exit(EXIT_DAMAGED)


def _set_right(change: Change) -> str:
    said = (
        "could not be read"
        if change.said is None
        else "said {} records, {} bytes".format(*change.said)
    )
    records, size_bytes = change.held
    return f"{change.namespace!r} holds {records} records, {size_bytes} bytes: its count {said}"


def _lines(found: audit.Verdict) -> list[str]:
    lines = [" ".join(filter(None, damage)) for damage in found.damages]
    if found.count > len(found.damages):
        lines.append(f"and {found.count - len(found.damages)} more")
    if found.unchecked:
        lines.append(f"not looked at: {found.unchecked}")
    lines += found.notes
    looked = f"{found.rows} rows, {found.entries} entries in the journal"
    if found.count:
        remedy = "run it with --recount" if _only_counts(found) else "restore it from a backup"
        return [*lines, f"DAMAGED, {found.count} places ({looked}): {remedy}"]
    return [*lines, f"whole: {looked}, store {found.store_id}"]


def _only_counts(found: audit.Verdict) -> bool:
    """Whether nothing is damaged but what namespaces are said to hold."""
    meta, counts = Db.META.value.decode(), keys.usage(b"").hex()
    return found.count == len(found.damages) and all(
        damage.where == meta and damage.key.startswith(counts) for damage in found.damages
    )
