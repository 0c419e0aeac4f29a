"""Exceptions to failures and back."""

from __future__ import annotations

import builtins
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resultd import _failures
from resultd.errors import RemoteTraceback, TaskError, TaskRevokedError
from resultd.serialization import Registry
from resultd.v1 import value_pb2


class Refused(Exception):
    """An application's exception."""


class Stubborn(Exception):
    """One whose constructor does not take its args."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(code)
        self.hint = hint


class Mute(Exception):
    """One that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError


def there_and_back(error: object, registry: Registry | None = None) -> Exception:
    """Send an exception over the wire."""
    data = _failures.failure_from(error).SerializeToString()
    return _failures.exception_from(value_pb2.Failure.FromString(data), registry or Registry())


@pytest.mark.parametrize(
    "error",
    [ValueError("x", 1), KeyError("k"), ZeroDivisionError(), OSError(2, "no"), LookupError(None)],
)
def test_builtins_come_back_as_their_class(error: Exception) -> None:
    """With their arguments."""
    back = there_and_back(error)
    assert type(back) is type(error)
    assert back.args == error.args


def test_registered_classes_come_back_as_theirs() -> None:
    """And others as TaskError, with everything that was said."""
    registry = Registry()
    registry.register_exception(Refused)
    assert type(there_and_back(Refused("no"), registry)) is Refused
    back = there_and_back(Refused("no"))
    assert isinstance(back, TaskError)
    assert (back.type, back.message, back.args) == ("Refused", "no", ("no",))
    assert back.module == Refused.__module__


def test_a_constructor_that_does_not_fit_gives_a_task_error() -> None:
    """The class is known, the arguments are not enough: nothing is lost."""
    registry = Registry()
    registry.register_exception(Stubborn)
    back = there_and_back(Stubborn(7, hint="x"), registry)
    assert isinstance(back, TaskError)
    assert back.args == (7,)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "SystemExit"),
        ("builtins", "KeyboardInterrupt"),
        ("builtins", "GeneratorExit"),
        ("builtins", "StopIteration"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "__import__"),
        ("builtins", "open"),
        ("builtins", "str"),
        ("builtins", "ValueError.__init__"),
        ("os", "system"),
        ("subprocess", "Popen"),
        ("antigravity", "Error"),
        ("", ""),
        ("../../etc/passwd", "\x00"),
    ],
)
def test_hostile_names_run_nothing(module: str, name: str) -> None:
    """No import, no call: a name that is not an Exception of builtins is only shown."""
    before = set(sys.modules)
    failure = value_pb2.Failure(module=module, type=name, message="1")
    failure.args.data = b'["touch /tmp/owned"]'
    back = _failures.exception_from(failure, Registry())
    assert type(back) is TaskError
    assert set(sys.modules) == before


@given(st.binary(max_size=300))
def test_any_bytes_that_are_a_failure_give_an_exception(data: bytes) -> None:
    """Whatever a store returns, reading it raises nothing else than a decode error."""
    try:
        failure = value_pb2.Failure.FromString(data)
    except Exception:  # noqa: BLE001 (not a message: not our affair)
        return
    assert isinstance(_failures.exception_from(failure, Registry()), Exception)


@given(st.sampled_from(sorted(_failures._BUILTINS)), st.lists(st.integers() | st.text()))
def test_every_builtin_takes_any_arguments(name: str, args: list[Any]) -> None:
    """A class that refuses them becomes a TaskError, no other error escapes."""
    failure = value_pb2.Failure(module="builtins", type=name)
    failure.args.data = json.dumps(args).encode()
    back = _failures.exception_from(failure, Registry())
    assert isinstance(back, (getattr(builtins, name), TaskError, OSError))


def test_causes_and_stacks_are_kept() -> None:
    """`raise ... from` is rebuilt; without a cause the remote stack stands there."""
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as error:
        failure = _failures.failure_from(error)
    back = _failures.exception_from(failure, Registry())
    assert isinstance(back.__cause__, KeyError)
    assert isinstance(back.__cause__.__cause__, RemoteTraceback)
    assert "raise KeyError" in str(back.__cause__.__cause__)
    assert "raise ValueError" in failure.traceback


def test_a_long_chain_of_causes_is_cut() -> None:
    """A chain that never ends is sent as eight."""
    first = error = ValueError(0)
    for number in range(1, 50):
        error.__cause__ = ValueError(number)
        error = error.__cause__
    error.__cause__ = first
    failure, depth = _failures.failure_from(first), 0
    while failure.HasField("cause"):
        failure, depth = failure.cause, depth + 1
    assert depth == _failures.CAUSES_MAX


def test_what_cannot_be_shown_or_encoded_still_says_that_it_failed() -> None:
    """A broken __str__, arguments JSON lacks, and lone surrogates do not raise."""
    assert "cannot be shown" in _failures.failure_from(Mute()).message
    assert there_and_back(ValueError(object)).args == (repr(object),)
    assert there_and_back(ValueError("\ud800")).args == ("\ud800",)
    assert len(_failures.failure_from(ValueError("x" * 10**6)).args.data) < 2000


def test_a_long_traceback_keeps_its_end() -> None:
    """The last lines say what happened."""
    failure = _failures.failure_from(ValueError(), "start" + "x" * 10**6 + "the end")
    assert failure.traceback.startswith("[... cut ...]")
    assert failure.traceback.endswith("the end")
    assert len(failure.traceback.encode()) <= _failures.TRACEBACK_BYTES_MAX


def test_messages_and_mappings_are_failures_too() -> None:
    """As with Celery's dicts, and workers that only have a text."""
    assert str(there_and_back("boom")) == "resultd.errors.TaskError: boom"
    back = there_and_back({"exc_type": "KeyError", "exc_message": ["k"], "exc_module": "builtins"})
    assert isinstance(back, KeyError)
    with pytest.raises(TypeError, match="not a int"):
        _failures.failure_from(7)


def test_a_failure_passed_on_keeps_its_name() -> None:
    """A TaskError stored again is what it was, not a TaskError of a TaskError."""
    again = _failures.failure_from(TaskError("HTTPError", "404", "stack", "requests", (1,)))
    assert (again.type, again.module, again.traceback) == ("HTTPError", "requests", "stack")


def test_revoked_is_its_own_class() -> None:
    """Unless the application registered one for it."""
    registry = Registry()
    failure = value_pb2.Failure(type="TaskRevokedError", module="celery.exceptions", message="why")
    assert str(_failures.revoked_from(failure, registry)) == "why"
    assert isinstance(_failures.exception_from(failure, registry), TaskRevokedError)
    assert str(_failures.revoked_from(None, registry)) == "revoked"
    registry.register_exception(Refused, name="Gone", module="m")
    assert isinstance(
        _failures.revoked_from(value_pb2.Failure(type="Gone", module="m"), registry), Refused
    )
