"""Laws of reading records for the command line."""

from __future__ import annotations

from collections.abc import Callable

from resultd import Client
from resultd.cli.records import read


def test_repeated_ids_are_read_once(client: Client, new_id: Callable[[], str]) -> None:
    """An id named twice gives one record, in the place of the first."""
    a, b = new_id(), new_id()
    assert [meta["task_id"] for meta in read(client, [a, b, a])] == [a, b]
