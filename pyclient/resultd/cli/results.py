"""`get` and `forget`: records as they are now."""

from __future__ import annotations

import typer

from resultd.cli.options import DEFAULT_URL, Format, Ids, Output, Url, connect
from resultd.cli.output import console, json_line, record, remote_traceback, task_rows
from resultd.cli.records import read


def get(ids: Ids, url: Url = DEFAULT_URL, output: Output = Format.table) -> None:
    """Show what is known of tasks now."""
    with connect(url) as client:
        metas = read(client, ids)
    if output is Format.json:
        for meta in metas:
            typer.echo(json_line(record(meta)))
        return
    console().print(task_rows(metas))
    if len(metas) == 1 and (trace := remote_traceback(metas[0])):
        console().print(trace)


def forget(ids: Ids, url: Url = DEFAULT_URL, output: Output = Format.table) -> None:
    """Delete the records of tasks."""
    with connect(url) as client:
        forgotten = client.forget(ids)
    if output is Format.json:
        typer.echo(json_line({"forgotten": forgotten}))
    else:
        typer.echo(f"{forgotten} of {len(set(ids))} forgotten")
