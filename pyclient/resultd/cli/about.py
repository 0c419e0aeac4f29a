"""`version`: of this program, and of the server if one says it."""

from __future__ import annotations

from importlib.metadata import version as installed

import typer

from resultd.cli.options import DEFAULT_URL, CommandError, Format, Output, Url, connect
from resultd.cli.output import escape, json_line
from resultd.errors import ResultdError


def version(url: Url = DEFAULT_URL, output: Output = Format.table) -> None:
    """Show the version here and the server's."""
    ours = installed("resultd")
    try:
        with connect(url) as client:
            info = client.server_info()
    except (CommandError, ResultdError, OSError):
        if output is Format.json:
            typer.echo(json_line({"client": ours, "server": None}))
        else:
            typer.echo(f"resultd {ours}")
        raise
    if output is Format.json:
        typer.echo(json_line({"client": ours, "server": info.version, "engine": info.engine}))
    else:
        typer.echo(f"resultd {ours}, server {escape(info.version)} ({escape(info.engine)})")
