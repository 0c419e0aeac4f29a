"""Calls with their retries, batches and pages, driven by a shell that plays the server."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from resultd import _operations, _url, errors
from resultd._effects import Call, Effect, Op, Sleep, iterate, run
from resultd._operations import Operations
from resultd._records import Report
from resultd.serialization import Registry
from resultd.v1 import (
    error_pb2,
    group_pb2,
    group_service_pb2,
    result_service_pb2,
    task_pb2,
    worker_service_pb2,
)


class Script:
    """Answers calls by method from a list each, and keeps what was asked."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.calls: list[Call] = []
        self.slept: list[float] = []

    def __call__(self, effect: Effect) -> Any:
        """Do an effect."""
        if isinstance(effect, Sleep):
            self.slept.append(effect.seconds)
            return None
        assert isinstance(effect, Call)
        self.calls.append(effect)
        answer = self.answers[effect.method].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer(effect.request) if callable(answer) else answer


@pytest.fixture
def operations() -> Operations:
    """Operations with the defaults."""
    return Operations(_url.parse("resultd://h?timeout=60"), Registry(), "json")


UNAVAILABLE = errors.make("UNAVAILABLE", "later", retry_delay=0.5)
INFO = result_service_pb2.GetServerInfoResponse(version="1")


def info(operations: Operations, **options: Any) -> Op[Any]:
    """Some call."""
    return operations.call("GetServerInfo", result_service_pb2.GetServerInfoRequest(), **options)


def test_what_may_succeed_later_is_tried_again(operations: Operations) -> None:
    """After a pause of at least what the server asks."""
    script = Script(GetServerInfo=[UNAVAILABLE, errors.make("DEADLINE_EXCEEDED", ""), INFO])
    assert run(info(operations), script) is INFO
    assert len(script.slept) == 2
    assert 0.5 <= script.slept[0] <= 0.75


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "INTERNAL"])
def test_everything_else_is_raised_at_once(operations: Operations, code: str) -> None:
    """No pause, no second call."""
    script = Script(GetServerInfo=[errors.make(code, "no")])
    with pytest.raises(errors.ResultdError, match="no"):
        run(info(operations), script)
    assert script.slept == []


def test_a_call_that_is_not_idempotent_is_made_once(operations: Operations) -> None:
    """Whatever it says."""
    with pytest.raises(errors.UnavailableError):
        run(info(operations, once=True), Script(GetServerInfo=[UNAVAILABLE]))


def test_no_try_begins_after_the_limit(operations: Operations) -> None:
    """A pause the server asks for that does not fit is not begun; a try has what is left."""
    script = Script(GetServerInfo=[UNAVAILABLE])
    with pytest.raises(errors.UnavailableError):
        run(info(operations, limit=0.2), script)
    assert script.slept == []
    assert script.calls[0].timeout <= 0.2


def test_where_there_is_no_server_the_second_try_waits_for_one(operations: Operations) -> None:
    """The first try fails at once, later ones wait for the connection, to the end of the time."""
    nobody = errors.make("UNAVAILABLE", "nobody listens")
    script = Script(GetServerInfo=[nobody, nobody, INFO])
    assert run(info(operations), script) is INFO
    assert [call.patient for call in script.calls] == [False, True, True]
    assert max(script.slept) <= 1.0


@pytest.mark.parametrize("tries", [1, 3])
def test_that_nobody_was_there_is_what_is_raised(tries: int) -> None:
    """When the time runs out while a try waits, the error says why it had to wait.

    However many tries that took: each has a time of its own.
    """
    nobody = errors.make("UNAVAILABLE", "nobody listens")
    over = errors.make("DEADLINE_EXCEEDED", "the deadline")
    script = Script(GetServerInfo=[nobody, *tries * [over]])
    short = Operations(_url.parse("resultd://h?timeout=0.05"), Registry(), "json")

    def late(effect: Effect) -> Any:
        if len(script.calls) == tries:
            time.sleep(0.05)
        return script(effect)

    with pytest.raises(errors.UnavailableError, match="nobody listens"):
        run(info(short), late)


def test_deferred_ids_are_asked_for_again(operations: Operations) -> None:
    """Until all have come; a server that never gives any is an error."""
    answer = result_service_pb2.BatchGetResultsResponse
    first = answer(metas=[task_pb2.TaskMeta(task_id="a")], deferred_task_ids=["b", "c"])
    second = answer(metas=[task_pb2.TaskMeta(task_id=i) for i in "bc"])
    script = Script(BatchGetResults=[first, second])
    metas = run(operations.read(["a", "b", "c"]), script)
    assert [meta.task_id for meta in metas] == ["a", "b", "c"]
    stuck = Script(BatchGetResults=[answer(deferred_task_ids=["a", "b"])])
    with pytest.raises(errors.InternalError):
        run(operations.read(["a", "b"]), stuck)


def test_a_limit_is_for_all_pages_of_a_reading(operations: Operations) -> None:
    """Each call is given what those before it left."""

    def slow(_: Any) -> result_service_pb2.BatchGetResultsResponse:
        time.sleep(0.02)
        return result_service_pb2.BatchGetResultsResponse()

    script = Script(BatchGetResults=[slow] * 3)
    run(operations.read([str(n) for n in range(2_001)], limit=9.0), script)
    assert [len(call.request.task_ids) for call in script.calls] == [1_000, 1_000, 1]  # type: ignore[attr-defined]  # the request is of that method
    assert [call.timeout for call in script.calls] == sorted(
        {call.timeout for call in script.calls}, reverse=True
    )


def test_many_ids_are_many_calls(operations: Operations) -> None:
    """10,000 each, for forgetting and revoking."""
    ids = [str(n) for n in range(20_001)]
    pages = [10_000, 10_000, 1]
    script = Script(
        ForgetResults=[
            lambda r: result_service_pb2.ForgetResultsResponse(forgotten=len(r.task_ids))
        ]
        * 3,
        RevokeTasks=[
            lambda r: worker_service_pb2.RevokeTasksResponse(requested_task_ids=r.task_ids)
        ]
        * 3,
    )
    assert run(operations.forget(ids), script) == 20_001
    assert len(run(operations.revoke(ids, False, None, ""), script).requested) == 20_001
    assert [len(call.request.task_ids) for call in script.calls] == pages * 2  # type: ignore[attr-defined]  # the request is of that method


def test_batches_end_at_a_thousand_reports_or_twelve_mebibytes(operations: Operations) -> None:
    """Whichever comes first; one alone goes as a call of its own."""

    def stored(request: Any) -> Any:
        outcome = result_service_pb2.StoreOutcome(result=result_service_pb2.StoreResultResponse())
        return result_service_pb2.BatchStoreResultsResponse(
            outcomes=[outcome] * len(request.reports)
        )

    script = Script(
        BatchStoreResults=[stored] * 9, StoreResult=[result_service_pb2.StoreResultResponse()]
    )
    run(operations.store_many([(str(n), n) for n in range(1001)]), script)
    large = "x" * 3_000_000
    run(operations.store_many([(str(n), large) for n in range(8)]), script)
    sizes = [len(c.request.reports) for c in script.calls if c.method == "BatchStoreResults"]  # type: ignore[attr-defined]  # the request is of that method
    assert sizes == [1000, 4, 4]


def test_batches_end_where_lists_would_be_too_long(
    operations: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports, children, labels and extra count together; one beyond that goes alone."""
    monkeypatch.setattr(_operations, "ELEMENTS_PER_CALL", 10)

    def stored(request: Any) -> Any:
        outcome = result_service_pb2.StoreOutcome(result=result_service_pb2.StoreResultResponse())
        return result_service_pb2.BatchStoreResultsResponse(
            outcomes=[outcome] * len(request.reports)
        )

    script = Script(
        BatchStoreResults=[stored] * 9, StoreResult=[result_service_pb2.StoreResultResponse()] * 2
    )
    labels = {"a": "1", "b": "2", "c": "3", "d": "4"}
    wide = {f"l{number}": "v" for number in range(20)}
    items = [*(Report(str(n), n, labels=labels) for n in range(5)), Report("wide", labels=wide)]
    run(operations.store_many(items), script)
    assert [c.method for c in script.calls] == [*["BatchStoreResults"] * 2, *["StoreResult"] * 2]


def test_a_store_that_is_full_is_no_outcome(operations: Operations) -> None:
    """It is tried again, then raised: the next report would not fare better."""
    full = errors.make("RESOURCE_EXHAUSTED", "full", "STORE_FULL", retry_delay=99)
    with pytest.raises(errors.StoreFullError):
        run(operations.store_many([("a", 1)]), Script(StoreResult=[full]))
    too_large = errors.make("INVALID_ARGUMENT", "large", "VALUE_TOO_LARGE")
    (outcome,) = run(operations.store_many([Report("a", 1)]), Script(StoreResult=[too_large]))
    assert outcome.error is too_large


@pytest.mark.parametrize("alone", [True, False])
def test_a_report_beyond_a_quota_is_an_outcome(operations: Operations, alone: bool) -> None:
    """Whether it went with others or alone, its own and nobody else's: those after it are sent."""
    refused = errors.make("RESOURCE_EXHAUSTED", "too much", "QUOTA", retry_delay=99)
    answer = result_service_pb2.StoreOutcome(result=result_service_pb2.StoreResultResponse())
    error = result_service_pb2.ReportError(
        code=8, reason=error_pb2.ERROR_REASON_QUOTA, message="too much"
    )
    too_much = result_service_pb2.StoreOutcome(error=error)
    batch = result_service_pb2.BatchStoreResultsResponse(outcomes=[answer, too_much])
    script = Script(StoreResult=[refused]) if alone else Script(BatchStoreResults=[batch])
    reports = [("c", 3)] if alone else [("a", 1), ("c", 3)]
    *others, outcome = run(operations.store_many(reports), script)
    assert [each.error for each in others] == [None] * len(others)
    assert isinstance(outcome.error, errors.QuotaExceededError)
    assert outcome.error.retryable


def pages(response: Any, field: str, item: Any) -> list[Any]:
    """Two pages."""
    return [response(**{field: [item]}, next_page_token="more"), response(**{field: [item]})]


@pytest.mark.parametrize(
    ("method", "make", "answers"),
    [
        (
            "ListResults",
            lambda o: o.list_results(result_service_pb2.ListResultsRequest()),
            pages(result_service_pb2.ListResultsResponse, "metas", {"task_id": "t"}),
        ),
        (
            "ListGroups",
            lambda o: o.list_groups(group_service_pb2.ListGroupsRequest()),
            pages(group_service_pb2.ListGroupsResponse, "groups", {"group_id": "g"}),
        ),
        (
            "ListGroupMembers",
            lambda o: o.group_members("g"),
            pages(group_service_pb2.ListGroupMembersResponse, "members", {"id": "m"}),
        ),
    ],
)
def test_lists_are_read_page_by_page(
    operations: Operations,
    method: str,
    make: Callable[[Operations], Op[None]],
    answers: list[Any],
) -> None:
    """Until the last."""
    script = Script(**{method: answers})
    assert len(list(iterate(make(operations), script))) == 2
    assert len(script.calls) == 2


def test_a_large_group_is_declared_in_pages(operations: Operations) -> None:
    """Created with the first 10,000, added to, sealed; a new epoch is not begun twice."""
    members = [group_pb2.GroupMember(index=n, id=str(n)) for n in range(10_001)]
    script = Script(
        CreateGroup=[group_service_pb2.CreateGroupResponse(), UNAVAILABLE],
        AddGroupMembers=[group_service_pb2.AddGroupMembersResponse()],
        SealGroup=[group_service_pb2.SealGroupResponse()],
    )
    request = group_service_pb2.CreateGroupRequest(group_id="g")
    run(operations.declare_group(request, members, seal=True), script)
    assert [c.method for c in script.calls] == ["CreateGroup", "AddGroupMembers", "SealGroup"]
    assert script.calls[2].request.expected_total == 10_001  # type: ignore[attr-defined]  # the request is of that method
    again = group_service_pb2.CreateGroupRequest(group_id="g", new_epoch=True)
    with pytest.raises(errors.UnavailableError):
        run(operations.declare_group(again, [], seal=False), script)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, ""),
        ("TERM", "SIGTERM"),
        ("sigkill", "SIGKILL"),
        (signal.SIGINT, "SIGINT"),
        (9, "SIGKILL"),
    ],
)
def test_signals_have_names(given: Any, name: str) -> None:
    """In any form Celery takes."""
    assert _operations.signal_name(given) == name
