"""Results of tasks run in place."""

from __future__ import annotations

import copy
import pickle

import pytest

import resultd
from resultd.errors import TaskRevokedError


def test_an_eager_result_is_ready_and_asks_nobody() -> None:
    """No client, no server, no wait."""
    result = resultd.EagerResult("e", 5, "SUCCESS", name="add")
    assert (result.get(), result.wait(), result.result, result.state) == (5, 5, 5, "SUCCESS")
    assert (result.ready(), result.successful(), result.failed()) == (True, True, False)
    assert (result.backend, result.parent, result.name) == (None, None, "add")
    assert (result.exists(), result.supports_native_join) == (True, False)
    assert result.children is None
    assert repr(result) == "<EagerResult: e>"
    heard: list[object] = []
    result.then(heard.append)
    assert heard == [result]
    result.forget()
    for back in (copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert (back.id, back.get(), back.name) == ("e", 5, "add")
    assert list(result.iterdeps()) == [(None, result)]
    assert result.get_leaf() == 5


def test_an_eager_failure_is_raised_or_returned() -> None:
    """RETRY gives None, as in Celery."""
    result = resultd.EagerResult("e", ValueError("x"), "FAILURE", "stack")
    with pytest.raises(ValueError, match="x"):
        result.get()
    assert isinstance(result.get(propagate=False), ValueError)
    assert result.traceback == "stack"
    assert resultd.EagerResult("e", ValueError(), "RETRY").get() is None


def test_revoking_makes_it_revoked() -> None:
    """As Celery 5.7 does."""
    result = resultd.EagerResult("e", 5, "SUCCESS")
    result.revoke()
    assert result.state == "REVOKED"
    with pytest.raises(TaskRevokedError):
        result.get()


def test_waiting_rules_hold_for_it_too() -> None:
    """Inside a task it raises."""
    result = resultd.EagerResult("e", 5, "SUCCESS")
    with resultd.denied_join_result():
        with pytest.raises(RuntimeError):
            result.get()
        assert result.get(disable_sync_subtasks=False) == 5
