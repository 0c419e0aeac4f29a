"""Sets without a server."""

from __future__ import annotations

from resultd import EagerResult
from resultd._set import SetCore, leaves
from resultd.results import ResultSet


def test_leaves_are_found_at_any_depth() -> None:
    """In order."""
    one, two = (EagerResult(i, i, "SUCCESS") for i in "ab")
    assert leaves([one, ResultSet([two, ResultSet([one])])]) == [one, two, one]


def test_a_set_of_eager_results_needs_no_server() -> None:
    """Order, callbacks and iteration are those of any set."""
    results = ResultSet([EagerResult(i, i, "SUCCESS") for i in "ab"])
    assert SetCore.__eq__(results, 1) is NotImplemented
    results.then(lambda _: None)
    assert results.on_ready.ready
