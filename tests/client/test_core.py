"""What both clients have in common."""

from __future__ import annotations

import pytest

from resultd import EagerResult
from resultd._core import ClientCore, ids_of
from resultd.results import ResultSet


def test_ids_are_found_in_anything() -> None:
    """An id, a result, sets in sets."""
    one, two = (EagerResult(i, None, "SUCCESS") for i in "ab")
    assert ids_of("x") == ["x"]
    assert ids_of(one) == ["a"]
    assert ids_of([one, "x", ResultSet([two, ResultSet([one])])]) == ["a", "x", "b", "a"]


def test_a_client_stands_where_an_app_does() -> None:
    """Its backend is itself; what it is needs a shell."""
    client = ClientCore("resultd://h")
    assert client.backend is client
    assert repr(client) == "<resultd._core.ClientCore resultd://h:7758>"
    with pytest.raises(NotImplementedError):
        client.watcher()
