"""What can go wrong: a reason, a sentence with the remedy, facts for programs."""

from __future__ import annotations

import inspect

import pytest

from resultd.v1 import error_pb2
from resultd_server import errors
from resultd_server.errors import DomainError

CLASSES = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if issubclass(each, DomainError) and each is not DomainError
]


def test_every_error_has_a_reason_of_its_own() -> None:
    """Each class stands for one reason of the protocol, and no two for the same."""
    reasons = [each.reason for each in CLASSES]
    assert len(set(reasons)) == len(reasons)
    assert error_pb2.ERROR_REASON_UNSPECIFIED not in reasons
    assert {each.__name__.upper() for each in CLASSES} <= {
        name.removeprefix("ERROR_REASON_").replace("_", "") for name in error_pb2.ErrorReason.keys()
    }


@pytest.mark.parametrize(
    ("error", "sentence", "metadata"),
    [
        (
            errors.FieldInvalid("task_id", "is empty", "name the task"),
            "task_id is empty: name the task.",
            {"field": "task_id"},
        ),
        (
            errors.LimitExceeded("task_ids", 11, 10, "ask in two calls"),
            "task_ids: 11 are more than the 10 there may be: ask in two calls.",
            {"field": "task_ids", "count": "11", "limit": "10"},
        ),
        (
            errors.ValueTooLarge("The record", 11, 10),
            (
                "The record would take 11 bytes and may take 10: keep large values elsewhere "
                "and report where."
            ),
            {"size_bytes": "11", "limit_bytes": "10"},
        ),
        (
            errors.GroupNotFound("g"),
            "There is no group 'g': create it first, or check its id and namespace.",
            {"group_id": "g"},
        ),
    ],
)
def test_an_error_is_a_sentence_with_the_remedy(
    error: DomainError, sentence: str, metadata: dict[str, str]
) -> None:
    """What a person reads ends with what to do; what a program reads are strings by name."""
    assert (error.sentence, str(error), error.metadata) == (sentence, sentence, metadata)
    assert error.reason_name == error_pb2.ErrorReason.Name(error.reason)[len("ERROR_REASON_") :]
