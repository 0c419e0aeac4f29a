"""`group ls` and `group show`: where groups stand and what they wait for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from resultd import states
from resultd.cli.options import DEFAULT_URL, CommandError, Format, Output, Url, connect
from resultd.cli.output import console, json_line, plain, state_text, table
from resultd.client import Client
from resultd.v1 import group_pb2, state_pb2, task_pb2

LIMIT_MAX = 1_000_000
# How many of the members a group still waits for are named.
WAITING_SHOWN_MAX = 20

app = typer.Typer(help="Look at groups.", no_args_is_help=True, rich_markup_mode=None)

Stuck = Annotated[
    bool, typer.Option("--stuck", help="Only groups that are not complete and do not move.")
]
Idle = Annotated[
    float, typer.Option("--idle", min=0, help="With --stuck: seconds without any change.")
]
Limit = Annotated[
    int, typer.Option("--limit", min=1, max=LIMIT_MAX, help="At most this many groups.")
]
GroupId = Annotated[str, typer.Argument(metavar="GROUP", help="The group's id.")]


@app.command("ls")
def list_(
    stuck: Stuck = False,
    idle: Idle = 600.0,
    limit: Limit = 100,
    url: Url = DEFAULT_URL,
    output: Output = Format.table,
) -> None:
    """List groups by id."""
    # However long that is: the protocol knows no time before 1970.
    since = max(0.0, time.time() - idle) if stuck else None
    with connect(url) as client:
        found = client.list_groups(incomplete=stuck, unchanged_since=since)
        groups = [_numbers(group) for group in itertools.islice(found, limit)]
    if output is Format.json:
        for group in groups:
            typer.echo(json_line(group))
        return
    rows = (
        (
            plain(group["group_id"]),
            plain(f"{group['done']}/{group['total'] or '?'}"),
            plain(group["failed"] + group["revoked"] + group["gone"] or ""),
            plain(_stands(group)),
            plain(group["updated"] or ""),
        )
        for group in groups
    )
    console().print(table(("group", "done", "failed", "is", "last change"), rows))


@app.command("show")
def show(group_id: GroupId, url: Url = DEFAULT_URL, output: Output = Format.table) -> None:
    """Show a group's numbers and what it waits for."""
    with connect(url) as client:
        meta = client.run(client.operations.group(group_id))
        if meta.existence != state_pb2.EXISTENCE_KNOWN:
            raise CommandError(f"there is no group {group_id}")
        group = _numbers(meta)
        missing = [] if group["complete"] else list(_waits_for(client, group))
    if output is Format.json:
        typer.echo(json_line(group | {"waits_for": missing}))
        return
    rows = ((plain(key), plain(value)) for key, value in group.items() if value is not None)
    console().print(table(("", _stands(group)), rows))
    if missing:
        console().print(
            table(
                ("waits for", "state"),
                ((plain(one["id"]), state_text(one["state"])) for one in missing),
            )
        )


def _numbers(group: group_pb2.GroupMeta) -> dict[str, Any]:
    counts = group.counts
    names = ("members", "done", "succeeded", "failed", "revoked", "ignored", "gone", "epoch")
    return {
        "group_id": group.group_id,
        "sealed": counts.sealed,
        "complete": counts.complete,
        "total": counts.expected_total,
        **{name: getattr(counts, name) for name in names},
        "outcome": state_pb2.State.Name(group.outcome)[6:] if group.outcome else None,
        "created": _time(group, "created_time"),
        "updated": _time(group, "updated_time"),
        "completed": _time(group, "completed_time"),
    }


def _time(group: group_pb2.GroupMeta, field: str) -> str | None:
    if not group.HasField(field):  # type: ignore[arg-type]  # a field of GroupMeta by its name
        return None
    return str(getattr(group, field).ToJsonString())


def _stands(group: dict[str, Any]) -> str:
    if group["complete"]:
        return f"complete, {group['outcome']}"
    if not group["sealed"]:
        return "open"
    short = group["total"] - group["members"]
    return f"sealed, {short} members unknown" if short > 0 else "sealed, waits for members"


def _waits_for(client: Client, group: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Name the first members that are not done."""
    left = min(group["members"] - group["done"], WAITING_SHOWN_MAX)
    if left <= 0:
        return
    members = client.group(group["group_id"]).members()
    for member in itertools.islice((one for one in members if not one.position), left):
        is_task = member.kind != task_pb2.MEMBER_KIND_GROUP
        state = client.AsyncResult(member.id).state if is_task else states.PENDING
        yield {"id": member.id, "kind": "task" if is_task else "group", "state": state}
