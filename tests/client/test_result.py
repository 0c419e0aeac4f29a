"""What threads and asyncio results share, without a server."""

from __future__ import annotations

import copy

import pytest

from resultd import aio, client
from resultd._effects import Call
from resultd._result import ResultBase, ResultCore
from resultd.errors import ResultdError
from resultd.v1 import worker_service_pb2


def test_results_of_both_worlds_are_results() -> None:
    """And equal where their ids are."""
    one = client.Client("resultd://h").AsyncResult("x")
    two = aio.Client("resultd://h").AsyncResult("x")
    assert isinstance(one, ResultBase)
    assert isinstance(two, ResultBase)
    assert one == two
    assert copy.copy(two) == two
    assert ResultBase.parent is None


@pytest.mark.parametrize("count", [1, 3], ids=["result", "set"])
@pytest.mark.parametrize(
    ("wait", "timeout", "least", "most"),
    [(True, 0.6, 0.3, 0.6), (True, 0.0, 0.2, 0.25), (True, None, 4, 5), (False, 0.6, 4, 5)],
)
def test_a_revocation_that_is_waited_for_has_its_time(
    count: int, wait: bool, timeout: float | None, least: float, most: float
) -> None:
    """One time for the call and the wait; without a wait the call has its own."""
    made = client.Client("resultd://h?timeout=8&attempt_timeout=5")
    results = made.ResultSet([made.AsyncResult(str(number)) for number in range(count)])
    revoked = results if count > 1 else results[0]
    op = revoked._revoke(False, None, wait, timeout)
    call = next(op)
    assert isinstance(call, Call)
    assert list(call.request.task_ids) == [str(number) for number in range(count)]  # type: ignore[attr-defined]  # the request is of that method
    assert least < call.timeout <= most
    if wait:
        read = op.send(worker_service_pb2.RevokeTasksResponse())
        assert isinstance(read, Call)
        assert least < read.timeout <= most
    op.close()


def test_a_failure_that_is_no_exception_is_raised_all_the_same() -> None:
    """As a tuple may hold it."""
    result = ResultCore("x", object())
    for value in ("text", {"exc_type": "KeyError", "exc_module": "builtins"}, None, 7):
        with pytest.raises((ResultdError, KeyError)):
            result._outcome({"status": "FAILURE", "result": value}, True)
