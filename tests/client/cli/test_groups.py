"""Laws of `group ls` and `group show`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from resultd import Client
from tests.client.cli.conftest import Cli


def test_stuck_groups_are_those_that_wait_and_do_not_move(
    cli: Cli, client: Client, new_id: Callable[[], str]
) -> None:
    """`ls --stuck` leaves out complete groups and those that changed lately."""
    done, waiting, task = new_id(), new_id(), new_id()
    client.store_result(task, 1)
    client.group(done).create([task])
    client.group(waiting).create([new_id()])

    def listed(*arguments: str) -> set[str]:
        objects = cli("group", "ls", *arguments, "-o", "json").objects
        return {one["group_id"] for one in objects} & {done, waiting}

    assert listed() == {done, waiting}
    assert listed("--stuck", "--idle", "0") == {waiting}
    assert listed("--stuck") == set()


@pytest.mark.parametrize("idle", ["inf", "1e300", "3e9"])
def test_no_time_is_too_long_to_be_stuck(cli: Cli, idle: str) -> None:
    """Longer than there are times: no group is so old, and that is no error."""
    assert cli("group", "ls", "--stuck", "--idle", idle, "-o", "json")[:2] == (0, "")


def test_a_list_has_a_bound(cli: Cli) -> None:
    """More groups than any list may hold: a usage error in a sentence."""
    ran = cli("group", "ls", "--limit", str(10**23))
    assert ran.code == 2
    assert "--limit" in ran.err


def test_the_table_says_where_a_group_stands(
    cli: Cli, client: Client, new_id: Callable[[], str]
) -> None:
    """Open, sealed and waiting, sealed and short, complete: a person reads it in words."""
    task = new_id()
    client.store_result(task, 1)
    names = ["open", "sealed, waits", "sealed, 2 members unknown", "complete, SUCCESS"]
    ids = [new_id() for _ in names]
    client.group(ids[0]).create([task], seal=False)
    client.group(ids[1]).create([new_id()])
    client.group(ids[2]).create([task], seal=False)
    client.group(ids[2]).seal(3)
    client.group(ids[3]).create([task])
    rows = cli("group", "ls", "--limit", "1000").out.splitlines()
    for group_id, words in zip(ids, names, strict=True):
        (row,) = [row for row in rows if group_id in row]
        assert words in row


def test_show_names_what_a_group_waits_for(
    cli: Cli, client: Client, new_id: Callable[[], str]
) -> None:
    """Members that are not done are named with the state they are in."""
    group, done, started = new_id(), new_id(), new_id()
    inner = client.group(new_id()).create([new_id()])
    client.store_result(done, 1)
    client.store_result(started, None, "STARTED")
    client.group(group).create([done, client.AsyncResult(started), inner])
    (shown,) = cli("group", "show", group, "-o", "json").objects
    assert (shown["done"], shown["total"], shown["complete"]) == (1, 3, False)
    assert shown["waits_for"] == [
        {"id": started, "kind": "task", "state": "STARTED"},
        {"id": inner.id, "kind": "group", "state": "PENDING"},
    ]
    assert started in cli("group", "show", group).out


def test_show_of_an_unknown_group_is_an_error(cli: Cli, new_id: Callable[[], str]) -> None:
    """A group that is not there: one sentence, exit code 2."""
    ran = cli("group", "show", new_id())
    assert ran.code == 2
    assert "there is no group" in ran.err
