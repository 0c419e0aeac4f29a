"""Errors."""

from __future__ import annotations

import builtins
import pickle

import pytest

from resultd import errors
from resultd.v1 import error_pb2


@pytest.mark.parametrize(
    "reason", [r for r in error_pb2.ErrorReason.keys() if r[-11:] != "UNSPECIFIED"]
)
def test_every_reason_of_the_protocol_has_a_class(reason: str) -> None:
    """The one table knows each reason the server can give."""
    assert reason.removeprefix("ERROR_REASON_") in errors.BY_REASON


def test_the_table_names_no_reason_the_protocol_lacks() -> None:
    """A reason that is gone from the protocol is gone from the table."""
    known = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.keys()}
    assert set(errors.BY_REASON) <= known


@pytest.mark.parametrize(
    ("code", "reason", "retryable", "final"),
    [
        ("UNAVAILABLE", "", True, False),
        ("DEADLINE_EXCEEDED", "", True, False),
        ("RESOURCE_EXHAUSTED", "", False, False),
        ("RESOURCE_EXHAUSTED", "STORE_FULL", True, False),
        ("RESOURCE_EXHAUSTED", "QUOTA", True, False),
        ("INTERNAL", "", False, False),
        ("INVALID_ARGUMENT", "FIELD_INVALID", False, True),
        ("NOT_FOUND", "GROUP_NOT_FOUND", False, True),
        ("UNAUTHENTICATED", "", False, True),
        ("UNIMPLEMENTED", "", False, True),
    ],
)
def test_what_is_tried_again_and_what_is_not(
    code: str, reason: str, retryable: bool, final: bool
) -> None:
    """Calls are retried by code or reason; streams resumed after all but the hard errors."""
    error = errors.make(code, "sentence", reason)
    assert (error.retryable, error.final) == (retryable, final)


def test_an_unknown_reason_falls_back_to_the_code() -> None:
    """What a newer server says is still an error of the right family."""
    error = errors.make("NOT_FOUND", "", "SHELF_NOT_FOUND")
    assert type(error) is errors.NotFoundError
    assert str(error) == "SHELF_NOT_FOUND"
    assert type(errors.make("ABORTED", "x")) is errors.InternalError


def test_a_timeout_is_the_builtin_one_too() -> None:
    """`except TimeoutError` works with the builtin and with ours."""
    assert issubclass(errors.TimeoutError, builtins.TimeoutError)
    assert issubclass(errors.TimeoutError, errors.ResultdError)


@pytest.mark.parametrize(
    "error",
    [
        errors.TaskError("HTTPError", "404", "stack", "requests", (404, "x")),
        errors.TaskRevokedError("enough", "stack"),
    ],
)
def test_task_errors_survive_pickling(error: errors.TaskError) -> None:
    """Every field comes back."""
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    assert back.args == error.args
    assert str(back) == str(error)


def test_a_task_error_says_class_and_message() -> None:
    """Builtins go without their module, the rest with it."""
    assert str(errors.TaskError("KeyError", "x", module="builtins")) == "KeyError: x"
    assert str(errors.TaskError("E", module="m")) == "m.E"
    assert str(errors.RemoteTraceback("  stack\n")) == "\n  stack"


class Picky(Exception):
    """Cannot be made of its arguments alone."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


@pytest.mark.parametrize("error", [errors.make("UNAVAILABLE", "away"), OSError(2, "missing")])
def test_each_thread_is_told_by_an_error_of_its_own(error: Exception) -> None:
    """With the cause of the one that it was made from, and a traceback that is not shared."""
    error.__cause__ = ValueError("why")
    told = errors.own(error)
    assert told is not error
    assert (type(told), str(told), told.__cause__) == (type(error), str(error), error.__cause__)
    assert vars(told) == vars(error)


def test_an_error_that_cannot_be_copied_is_told_as_it_is() -> None:
    """Who waits would else be told nothing."""
    error = Picky("a", "b")
    assert errors.own(error) is error
