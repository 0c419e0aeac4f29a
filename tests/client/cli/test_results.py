"""Laws of `get` and `forget`."""

from __future__ import annotations

from collections.abc import Callable

from resultd import Client
from tests.client.cli.conftest import Cli


def test_get_shows_what_is_known_now(cli: Cli, client: Client, new_id: Callable[[], str]) -> None:
    """Records and unknown ids stand in one table, in the order asked for."""
    known, unknown = new_id(), new_id()
    client.store_result(known, {"sum": 30})
    ran = cli("get", unknown, known)
    assert ran.code == 0
    assert ran.out.index(unknown) < ran.out.index(known)
    assert "{'sum': 30}" in ran.out


def test_get_as_json_is_an_object_a_line(
    cli: Cli, client: Client, new_id: Callable[[], str]
) -> None:
    """`-o json` gives each task's state, value and error on a line of its own."""
    good, bad = new_id(), new_id()
    client.store_result(good, [1, 2])
    client.store_result(bad, ValueError("no"), "FAILURE")
    first, second = cli("get", good, bad, "-o", "json").objects
    assert (first["task_id"], first["state"], first["result"]) == (good, "SUCCESS", [1, 2])
    assert second["error"] == {"type": "ValueError", "module": "builtins", "message": "no"}


def test_one_failed_task_comes_with_its_traceback(
    cli: Cli, client: Client, new_id: Callable[[], str]
) -> None:
    """`get` of one failure prints the remote stack below the table."""
    task = new_id()
    client.store_result(task, ValueError("no"), "FAILURE", traceback="Traceback: line 7\x1b")
    assert "Traceback: line 7\\x1b" in cli("get", task).out


def test_forget_says_how_many_there_were(
    cli: Cli, client: Client, new_id: Callable[[], str]
) -> None:
    """`forget` deletes records and counts those that were there."""
    known, unknown = new_id(), new_id()
    client.store_result(known, 1)
    assert cli("forget", known, unknown).out == "1 of 2 forgotten\n"
    assert cli("forget", known, "-o", "json").objects == [{"forgotten": 0}]
    assert cli("get", known, "-o", "json").objects[0]["existence"] == "FORGOTTEN"
