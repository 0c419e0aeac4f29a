"""`wait` and `watch`: until tasks are done, with an exit code that says how it went."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

import typer

from resultd import _iterate, states
from resultd.cli.options import (
    DEFAULT_URL,
    CommandError,
    Format,
    Ids,
    Output,
    Timeout,
    Url,
    connect,
)
from resultd.cli.output import (
    console,
    escape,
    json_line,
    plain,
    record,
    state_text,
    summary,
    task_rows,
)
from resultd.cli.records import read
from resultd.client import Client
from resultd.errors import GroupNotFoundError, ResultGoneError
from resultd.errors import TimeoutError as WaitTimeout
from resultd.v1 import group_pb2

EXIT_FAILED = 1
EXIT_TIMEOUT = 124  # as of timeout(1)

_FAILED = states.PROPAGATE_STATES

WatchIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of tasks.")]
Group = Annotated[str | None, typer.Option("--group", help="Watch the members of this group.")]


def wait(
    ids: Ids,
    url: Url = DEFAULT_URL,
    output: Output = Format.table,
    timeout: Timeout = None,
) -> None:
    """Wait until tasks are done: exit code 0 all succeeded, 1 one failed, 124 timeout."""
    with connect(url) as client:
        client.server_info()  # a wait outlives the server, but one should be there to begin with
        done, pending = client.wait([client.AsyncResult(i) for i in set(ids)], timeout=timeout)
        metas = read(client, ids)
    if output is Format.json:
        for meta in metas:
            typer.echo(json_line(record(meta)))
    else:
        console().print(task_rows(metas))
    # By what was waited for: a record may have been forgotten before it was read again.
    _exit_as(any(result.state in _FAILED for result in done), timed_out=bool(pending))


def watch(
    ids: WatchIds = None,
    group: Group = None,
    url: Url = DEFAULT_URL,
    output: Output = Format.table,
    timeout: Timeout = None,
) -> None:
    """Print each change of tasks, or each member of a group as it is done; exit code as wait's."""
    if bool(ids) == bool(group):
        raise CommandError("watch takes ids of tasks, or --group with a group's id")
    changed = _show_json if output is Format.json else _show_line
    failed = timed_out = False
    with connect(url) as client:
        client.server_info()
        try:
            if group:
                failed = _watch_group(client, group, timeout, changed)
            else:
                failed = _watch_tasks(client, ids or [], timeout, changed)
        except WaitTimeout:
            timed_out = True
    _exit_as(failed, timed_out)


def _watch_tasks(
    client: Client,
    ids: Iterable[str],
    timeout: float | None,
    changed: Callable[[Mapping[str, Any]], None],
) -> bool:
    """Show each change until all are done; whether one of them failed."""
    results = client.ResultSet(client.AsyncResult(i) for i in dict.fromkeys(ids))
    # By their metas: a value that cannot be decoded here ends no wait.
    ended = [meta["status"] for _, meta in results.iter_native(timeout, on_message=changed)]
    return any(state in _FAILED for state in ended)


def _watch_group(
    client: Client,
    group_id: str,
    timeout: float | None,
    changed: Callable[[Mapping[str, Any]], None],
) -> bool:
    """Show each member until the group is complete; whether its outcome is a failure.

    By the group's own numbers as of the end: a member that failed counts as failed after its
    record has been forgotten too.
    """
    counts = group_pb2.GroupCounts()
    op = client.group(group_id)._frames(timeout, "completed", require_known=True)
    try:
        for fresh in client.iterate(op):
            for member in _iterate.members(client, fresh):
                changed(member.meta or _as_meta(member))
            counts = fresh.counts
    except (GroupNotFoundError, ResultGoneError) as error:
        raise CommandError(str(error)) from None
    return bool(counts.failed or counts.revoked or counts.gone)


def _as_meta(member: Any) -> dict[str, Any]:
    """Describe a group that is a member with the keys a task's meta has."""
    meta: dict[str, Any] = dict.fromkeys(
        ("traceback", "progress", "name", "worker", "group_id", "date_done")
    )
    meta |= {"task_id": member.id, "status": member.state, "result": member.result}
    meta |= {"existence": "KNOWN", "terminal": True, "attempt": 0, "version": 0}
    return meta | {"index": member.index, "labels": {}}


def _show_json(meta: Mapping[str, Any]) -> None:
    typer.echo(json_line(record(meta)))


def _show_line(meta: Mapping[str, Any]) -> None:
    line = plain(meta["task_id"]) + "  " + state_text(meta["status"])
    console().print(line + "  " + escape(summary(meta)), soft_wrap=True)


def _exit_as(failed: bool, timed_out: bool) -> None:
    if timed_out:
        raise typer.Exit(EXIT_TIMEOUT)
    if failed:
        raise typer.Exit(EXIT_FAILED)
