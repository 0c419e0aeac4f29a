"""What threads and asyncio results share, without a server."""

from __future__ import annotations

import copy

import pytest

from resultd import aio, client
from resultd._result import ResultBase, ResultCore
from resultd.errors import ResultdError


def test_results_of_both_worlds_are_results() -> None:
    """And equal where their ids are."""
    one = client.Client("resultd://h").AsyncResult("x")
    two = aio.Client("resultd://h").AsyncResult("x")
    assert isinstance(one, ResultBase)
    assert isinstance(two, ResultBase)
    assert one == two
    assert copy.copy(two) == two
    assert ResultBase.parent is None


def test_a_failure_that_is_no_exception_is_raised_all_the_same() -> None:
    """As a tuple may hold it."""
    result = ResultCore("x", object())
    for value in ("text", {"exc_type": "KeyError", "exc_module": "builtins"}, None, 7):
        with pytest.raises((ResultdError, KeyError)):
            result._outcome({"status": "FAILURE", "result": value}, True)
