"""Laws of `wait` and `watch`: what they print, and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from resultd import Client
from resultd.cli import records, waiting
from resultd.serialization import Registry
from tests.client.cli.conftest import Cli

if TYPE_CHECKING:
    from resultd.testing import Server

OUTCOMES = [("SUCCESS", 0), ("FAILURE", 1), ("REVOKED", 1), ("IGNORED", 0)]


@pytest.mark.parametrize(("state", "code"), OUTCOMES)
def test_the_exit_code_of_wait_says_how_it_went(
    cli: Cli, client: Client, new_id: Callable[[], str], state: str, code: int
) -> None:
    """0 when all succeeded, 1 when one failed or was revoked."""
    good, task = new_id(), new_id()
    client.store_result(good, 1)
    client.store_result(task, None if code == 0 else ValueError("no"), state)
    assert cli("wait", good, task).code == code


def test_wait_that_runs_out_of_time_exits_as_timeout_does(
    cli: Cli, client: Client, new_id: Callable[[], str]
) -> None:
    """124 when something is still pending, whatever else failed."""
    bad, pending = new_id(), new_id()
    client.store_result(bad, ValueError("no"), "FAILURE")
    ran = cli("wait", bad, pending, "--timeout", "0.1", "-o", "json")
    assert ran.code == 124
    assert [one["state"] for one in ran.objects] == ["FAILURE", "PENDING"]


def test_wait_goes_by_the_state_it_waited_for(
    cli: Cli, client: Client, new_id: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure is one though its record is forgotten before it is read to be shown."""
    bad = new_id()
    client.store_result(bad, ValueError("no"), "FAILURE")

    def late(reader: Client, ids: list[str]) -> list[dict[str, Any]]:
        client.forget([bad])
        return records.read(reader, ids)

    monkeypatch.setattr(waiting, "read", late)
    assert cli("wait", bad).code == 1


def test_wait_returns_when_the_last_report_comes(
    cli: Cli, client: Client, new_id: Callable[[], str]
) -> None:
    """A result stored while `wait` waits ends it."""
    task = new_id()
    later = threading.Timer(0.2, client.store_result, (task, "done"))
    later.start()
    ran = cli("wait", task, "--timeout", "20")
    later.join()
    assert ran.code == 0
    assert "'done'" in ran.out


def test_watch_prints_each_change(
    server: Server, client: Client, new_id: Callable[[], str]
) -> None:
    """States that are not terminal are shown too, at once and to a pipe too; then the result."""
    task = new_id()
    client.store_result(task, None, "STARTED", progress=(1, 4))
    script = "from resultd.cli import main; main()"
    command = [sys.executable, "-c", script, "watch", task, "--timeout", "20", "-o", "json"]
    environment = {**os.environ, "RESULTD_URL": server.url}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as watch:
        assert watch.stdout is not None
        shown = [json.loads(watch.stdout.readline())]
        client.store_result(task, 7)
        shown += map(json.loads, watch.stdout)
    assert watch.returncode == 0
    assert [one["state"] for one in shown] == ["STARTED", "SUCCESS"]
    assert shown[0]["progress"] == {"current": 1, "total": 4, "message": ""}


def test_watch_goes_on_past_a_value_it_cannot_decode(
    cli: Cli, server: Server, client: Client, new_id: Callable[[], str]
) -> None:
    """One task succeeded with a value of a strange type: the next is shown, and both succeeded."""
    strange, later = new_id(), new_id()
    registry = Registry()
    registry.register("x/strange", lambda _: b"?", lambda _: None, name="strange")
    with Client(server.url, serializer="strange", serializers=registry) as worker:
        worker.store_result(strange, 1)
    timer = threading.Timer(0.2, client.store_result, (later, 7))
    timer.start()
    ran = cli("watch", strange, later, "--timeout", "20", "-o", "json")
    timer.join()
    assert (ran.code, [one["task_id"] for one in ran.objects]) == (0, [strange, later])
    assert "x/strange" in ran.objects[0]["error"]["message"]


def test_watch_of_a_group_prints_members_as_they_are_done(
    cli: Cli, client: Client, new_id: Callable[[], str]
) -> None:
    """Each member is a line, in the order of completion; one failure makes exit code 1."""
    group, a, b = new_id(), new_id(), new_id()
    client.group(group).create([a, b])
    client.store_result(b, 2)
    client.store_result(a, ValueError("no"), "FAILURE")
    ran = cli("watch", "--group", group)
    assert ran.code == 1
    assert ran.out == f"{b}  SUCCESS  2\n{a}  FAILURE  ValueError: no\n"


def test_watch_of_a_group_says_how_the_group_went(
    cli: Cli, client: Client, new_id: Callable[[], str]
) -> None:
    """The exit code is the group's outcome, whichever members' records are still there."""
    failed, good = (client.group(new_id()).create([new_id(), new_id()]) for _ in range(2))
    for group, outcome in ((failed, ValueError("no")), (good, 1)):
        first, second = (member.id for member in group.members())
        client.store_result(first, outcome, "SUCCESS" if group is good else "FAILURE")
        client.store_result(second, 2)
        client.forget([first])
    codes = {
        group.get_info().outcome: cli("watch", "--group", group.id).code for group in (failed, good)
    }
    assert codes == {"FAILURE": 1, "SUCCESS": 0}


def test_watch_of_a_group_without_members_ends(
    cli: Cli, client: Client, new_id: Callable[[], str]
) -> None:
    """A sealed group of nothing succeeded; nothing is printed."""
    ran = cli("watch", "--group", client.group(new_id()).create().id)
    assert (ran.code, ran.out) == (0, "")


def test_watch_shows_a_group_that_is_a_member(
    cli: Cli, client: Client, new_id: Callable[[], str]
) -> None:
    """A member group is a line with its outcome."""
    outer, inner, task = new_id(), new_id(), new_id()
    client.group(outer).create([client.group(inner).create([task])])
    client.store_result(task, 1)
    (only,) = cli("watch", "--group", outer, "-o", "json").objects
    assert (only["task_id"], only["state"]) == (inner, "SUCCESS")


def test_watch_of_an_unknown_group_is_an_error(cli: Cli, new_id: Callable[[], str]) -> None:
    """A mistyped group is said at once instead of being waited for."""
    assert cli("watch", "--group", new_id()).code == 2


def test_watch_runs_out_of_time_as_wait_does(cli: Cli, new_id: Callable[[], str]) -> None:
    """124 when the time is over first."""
    assert cli("watch", new_id(), "--timeout", "0.1").code == 124


@pytest.mark.parametrize("arguments", [[], ["t1", "--group", "g1"]])
def test_watch_takes_tasks_or_a_group(cli: Cli, arguments: list[str]) -> None:
    """Nothing, or both, is a usage error in a sentence."""
    ran = cli("watch", *arguments)
    assert ran.code == 2
    assert "--group" in ran.err
