"""Reports going out, records coming in."""

from __future__ import annotations

import datetime
import math
from typing import Any

import pytest

from resultd import _records
from resultd._records import Progress, Report, StoreOutcome
from resultd.errors import SerializationError
from resultd.serialization import Registry
from resultd.v1 import group_service_pb2, result_service_pb2, state_pb2, task_pb2, value_pb2

REGISTRY = Registry()


def meta_of(report: Report) -> task_pb2.TaskMeta:
    """What a report sends."""
    return report.request(REGISTRY, "json").meta


@pytest.mark.parametrize(
    ("state", "result", "field"),
    [
        ("SUCCESS", None, "value"),
        ("SUCCESS", {"a": 1}, "value"),
        ("STARTED", {"pid": 1}, "value"),
        ("STARTED", None, None),
        ("MY_OWN", "x", "value"),
        ("IGNORED", "x", None),
        ("FAILURE", ValueError(), "failure"),
        ("FAILURE", "boom", "failure"),
        ("RETRY", None, "failure"),
        ("REVOKED", "why", "failure"),
        ("REJECTED", KeyError(), "failure"),
        ("REJECTED", None, None),
    ],
)
def test_each_state_carries_what_belongs_to_it(state: str, result: Any, field: str | None) -> None:
    """A value or a failure, never both."""
    meta = meta_of(Report("t", result, state))
    assert _records.state_name(meta.state, meta.custom_state) == state
    for name in ("value", "failure"):
        assert meta.HasField(name) == (name == field)


def test_custom_states_keep_their_names() -> None:
    """CUSTOM is not one, an unknown number is shown, no state is PENDING."""
    assert _records.state_fields("MINE") == (state_pb2.STATE_CUSTOM, "MINE")
    assert _records.state_fields("CUSTOM") == (state_pb2.STATE_CUSTOM, "CUSTOM")
    assert _records.state_name(99) == "STATE_99"
    assert _records.state_name(0) == "PENDING"
    with pytest.raises(ValueError, match="names a state"):
        meta_of(Report("t", 1, ""))


@pytest.mark.parametrize(
    ("result", "progress"),
    [
        ({"current": 1, "total": 2}, (1, 2, "")),
        ({"current": True, "total": 2}, None),
        ({"current": 1.5, "total": 2}, None),
        ({"current": 2**70, "total": 2}, None),
        ({"total": 2}, None),
        ([1, 2], None),
    ],
)
def test_progress_is_taken_from_whole_numbers_only(
    result: Any, progress: tuple[int, int, str] | None
) -> None:
    """And given explicitly it wins."""
    found = _records.meta_dict(meta_of(Report("t", result, "PROGRESS")), REGISTRY)
    assert found["progress"] == progress
    given = meta_of(Report("t", result, "PROGRESS", progress=(5, 6)))
    assert _records.meta_dict(given, REGISTRY)["progress"] == Progress(5, 6)


@pytest.mark.parametrize(
    ("ttl", "seconds", "forever"),
    [
        (None, None, False),
        (1.5, 1.5, False),
        (datetime.timedelta(minutes=1), 60.0, False),
        (math.inf, None, True),
    ],
)
def test_ttls_are_seconds_for_ever_or_the_servers_affair(
    ttl: Any, seconds: float | None, forever: bool
) -> None:
    """A negative one is refused."""
    request = Report("t", ttl=ttl).request(REGISTRY, "json")
    assert request.HasField("ttl") == (seconds is not None)
    assert request.ttl.seconds + request.ttl.nanos / 1e9 == (seconds or 0)
    assert request.no_expiry == forever
    for wrong in (-1, math.nan, -math.inf):
        with pytest.raises(ValueError, match="ttl is seconds"):
            Report("t", ttl=wrong).request(REGISTRY, "json")


def test_children_are_named_in_any_form() -> None:
    """Ids, pairs, tuples of results and of groups."""
    forms = [
        "a",
        ("b", None),
        (("c", None), None),
        (("d", None), []),
        ["e", [["x", None]]],
        ("f", 2),
    ]
    kinds = [
        (c.id, _records.is_group(c.kind)) for c in meta_of(Report("t", children=forms)).children
    ]
    assert kinds == [
        ("a", False),
        ("b", False),
        ("c", False),
        ("d", True),
        ("e", True),
        ("f", True),
    ]


def test_reports_come_in_any_form() -> None:
    """A report, a mapping, a tuple; a wrong field is a TypeError."""
    report = Report("t", 1, "STARTED")
    assert Report.of(report) is report
    assert Report.of({"task_id": "t", "result": 1, "state": "STARTED"}) == report
    assert Report.of(("t", 1, "STARTED")) == report
    with pytest.raises(TypeError, match="stat"):
        Report.of({"task_id": "t", "stat": 1})


def test_answers_are_read_whole_whether_kept_or_not() -> None:
    """Those alike are read once; another version, or many groups, is another answer."""
    claim = group_service_pb2.ClaimGroupResponse(outcome=group_service_pb2.CLAIM_OUTCOME_HELD)
    for version in (1, 2, 1):
        for groups in ((), ("g",), tuple(f"group-{number}" for number in range(64))):
            answer = result_service_pb2.StoreResultResponse(
                disposition=result_service_pb2.DISPOSITION_APPLIED,
                version=version,
                state=state_pb2.STATE_SUCCESS,
                complete_group_ids=groups,
                claimable_group_ids=groups[:1],
                cancel_requested=version == 2,
                groups_omitted=version == 1,
                claim=None if version == 1 else claim,
            )
            assert _records.store_outcome(answer) == StoreOutcome(
                *("APPLIED", "SUCCESS", version, "", groups, groups[:1]),
                *(version == 2, version == 1),
                claim="" if version == 1 else "HELD",
            )


def test_a_value_that_cannot_be_encoded_leaves_nothing_behind() -> None:
    """Not even the content type of what was tried."""
    payload = value_pb2.Payload()
    with pytest.raises(SerializationError, match="registered"):
        REGISTRY.encode_into(payload, 1, "none")
    with pytest.raises(SerializationError, match="JSON"):
        REGISTRY.encode_into(payload, object())
    assert payload == value_pb2.Payload()


def test_a_failure_without_details_is_still_an_exception() -> None:
    """A worker of few words."""
    meta = task_pb2.TaskMeta(task_id="t", state=state_pb2.STATE_FAILURE, terminal=True)
    assert "said nothing more" in str(_records.meta_dict(meta, REGISTRY)["result"])


def test_a_value_that_cannot_be_read_is_its_error() -> None:
    """It stands where the value would."""
    meta = task_pb2.TaskMeta(task_id="t", state=state_pb2.STATE_SUCCESS)
    meta.value.content_type = "x/y"
    assert isinstance(_records.meta_dict(meta, REGISTRY)["result"], SerializationError)


def test_times_go_both_ways() -> None:
    """To the microsecond, in UTC; unset is None."""
    when = datetime.datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=datetime.timezone.utc)
    meta = task_pb2.TaskMeta(done_time=_records.timestamp(when))
    found = _records.moment(meta, "done_time")
    assert found is not None
    assert abs(found - when) < datetime.timedelta(microseconds=2)
    assert _records.moment(meta, "started_time") is None
