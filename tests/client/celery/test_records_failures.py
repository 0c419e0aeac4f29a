"""Exceptions in the store, and what a reader makes of them: always what Celery would."""

from __future__ import annotations

import datetime
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import celery.exceptions
import pytest
from celery import states
from celery.exceptions import SecurityError, TaskRevokedError
from celery.utils.serialization import UnpickleableExceptionWrapper
from kombu.exceptions import EncodeError

import resultd.errors
from resultd.celery._records import RECORD_BYTES_MAX
from resultd.v1 import state_pb2
from tests.client.celery.conftest import MakeApp
from tests.client.celery.test_records import record
from tests.support.celery_backend import request_of

NewId = Callable[[], str]


class Own(Exception):
    """Of a class that both sides have."""

    class Nested(Exception):
        """Of a class within."""


class Odd(Exception):
    """Whose constructor takes something else than `args` holds."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


class Unpicklable(Exception):
    """That no pickle holds."""

    def __reduce__(self) -> Any:
        raise pickle.PicklingError("never")


class Mute(Exception):
    """That cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def again(app: Any, task_id: str, error: Any, state: str = states.FAILURE) -> Any:
    """What a reader gets for what was stored."""
    app.backend.store_result(task_id, error, state, traceback="Traceback …")
    return app.AsyncResult(task_id).result


@pytest.mark.parametrize("state", [states.FAILURE, states.RETRY, states.REVOKED])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("one"),
        KeyError("brown", 2, None),
        Own(),
        Own.Nested("within", ["a", {"b": 1}]),
        TaskRevokedError("why"),
        SystemExit(3),
    ],
    ids=repr,
)
def test_come_back_as_they_were(app: Any, new_id: NewId, error: BaseException, state: str) -> None:
    """Class and arguments, in each of the states that have an exception."""
    found = again(app, new_id(), error, state)
    assert (type(found), found.args) == (type(error), error.args)


OURS = sorted(set(resultd.errors.__all__) - {"RemoteTraceback", "TaskError", "TaskRevokedError"})


@pytest.mark.parametrize("name", OURS)
def test_our_own_come_back_as_they_were(app: Any, new_id: NewId, name: str) -> None:
    """Of a task that used a client itself: only what its caller would have met there, too."""
    kind = getattr(resultd.errors, name)
    found = again(app, new_id(), kind("said"))
    assert (type(found), found.args) == (kind, ("said",))


@pytest.mark.parametrize(
    ("module", "args", "found_args"),
    [("my", ("said", 2), ["said", 2]), ("my", (), ["it said"]), ("", ("x",), ["x"])],
)
def test_what_another_tasks_was_is_passed_on(
    app: Any, new_id: NewId, module: str, args: tuple[object, ...], found_args: list[object]
) -> None:
    """A class that is known nowhere here, which a client of ours raised in a task."""
    error = resultd.errors.TaskError("OddError", "it said", "Traceback …", module, args)
    task_id = new_id()
    found = again(app, task_id, error)
    assert (type(found).__name__, list(found.args)) == ("OddError", found_args)
    native = app.backend.client.AsyncResult(task_id).result
    assert (native.type, native.module) == ("OddError", module or "celery.exceptions")


def test_a_task_error_comes_back_through_a_pickle(make_app: MakeApp, new_id: NewId) -> None:
    """As itself, with all it has."""
    app = make_app(result_serializer="pickle", result_accept_content=["pickle"])
    error = resultd.errors.TaskError("OddError", "it said", "Traceback …", "my", ("said", 2))
    found = again(app, new_id(), error)
    assert type(found) is resultd.errors.TaskError
    assert (found.type, found.message, found.args) == ("OddError", "it said", ("said", 2))


@pytest.mark.parametrize("serializer", ["json", "yaml", "msgpack", "pickle"])
def test_come_back_through_each_serializer(
    make_app: MakeApp, new_id: NewId, serializer: str
) -> None:
    """And `get` raises them."""
    app = make_app(result_serializer=serializer, result_accept_content=[serializer])
    task_id = new_id()
    app.backend.mark_as_failure(task_id, Own("x", 1))
    with pytest.raises(Own) as raised:
        app.AsyncResult(task_id).get(timeout=5)
    assert raised.value.args == ("x", 1)


def test_of_an_unknown_module_have_a_class_of_their_own(app: Any, new_id: NewId) -> None:
    """Made on the spot; nothing is imported for it."""
    strange = type("Strange", (Exception,), {"__module__": "colorsys_not.imported"})
    found = again(app, new_id(), strange("x", 2))
    assert (type(found).__name__, type(found).__module__) == ("Strange", "celery.exceptions")
    assert found.args == ("x", 2)
    assert "colorsys_not" not in sys.modules


def test_of_a_module_that_is_not_loaded_import_nothing(app: Any, new_id: NewId) -> None:
    """Even if it could be imported: who writes results must not run code here."""
    assert "this" not in sys.modules
    again(app, new_id(), {"exc_type": "E", "exc_message": [], "exc_module": "this"})
    assert "this" not in sys.modules


def test_that_cannot_be_made_again_are_exceptions_all_the_same(app: Any, new_id: NewId) -> None:
    """A constructor that takes something else: what it was, in words."""
    found = again(app, new_id(), Odd(7, "odd"))
    assert type(found) is Exception
    assert "Odd" in str(found)
    assert "odd (7)" in str(found)


def test_that_hold_what_cannot_be_serialised_hold_its_repr(app: Any, new_id: NewId) -> None:
    """The rest stays as it was."""
    found = again(app, new_id(), ValueError("holds", object, 3))
    assert found.args == ("holds", repr(object), 3)


def test_that_cannot_be_pickled_are_wrapped(make_app: MakeApp, new_id: NewId) -> None:
    """And the reader is told class and message; so is whoever reads the record's fields."""
    app, task_id = make_app(result_serializer="pickle", result_accept_content=["pickle"]), new_id()
    found = again(app, task_id, Unpicklable("never mind"))
    assert "never mind" in str(found)
    assert isinstance(found, (Unpicklable, UnpickleableExceptionWrapper, Exception))
    failure = record(app.backend.client, task_id).failure
    assert failure.type == "Unpicklable"
    assert failure.module == Unpicklable.__module__


def test_that_are_mute_are_stored(app: Any, new_id: NewId) -> None:
    """Whatever `str` of them does."""
    assert type(again(app, new_id(), Mute())) is Mute


def test_a_class_that_is_no_exception_is_refused(app: Any, new_id: NewId) -> None:
    """A stranger could have anything called with arguments of his choice."""
    task_id = new_id()
    payload = {"exc_type": "system", "exc_module": "os", "exc_message": "true"}
    app.backend.store_result(task_id, payload, states.FAILURE)
    with pytest.raises(SecurityError):
        app.backend.get_task_meta(task_id)
    task_id = new_id()
    app.backend.store_result(task_id, {**payload, "exc_message": ["true"]}, states.FAILURE)
    with pytest.raises(SecurityError):
        app.AsyncResult(task_id).get(timeout=5)


def test_a_message_that_is_no_list_is_the_only_argument(app: Any, new_id: NewId) -> None:
    """As older Celerys wrote it."""
    payload = {"exc_type": "ValueError", "exc_module": "builtins", "exc_message": "all of it"}
    found = again(app, new_id(), payload)
    assert (type(found), found.args) == (ValueError, ("all of it",))


@pytest.mark.parametrize(
    ("stored", "raised"),
    [({"custom": "info"}, ValueError), ({}, None), (None, None), (17, TypeError), ([1], TypeError)],
    ids=repr,
)
def test_what_is_no_exception_reads_as_in_any_backend(
    app: Any, new_id: NewId, stored: Any, raised: type[Exception] | None
) -> None:
    """`update_state(state="FAILURE", meta=…)` with something else is Celery's to judge."""
    task_id = new_id()
    app.backend.store_result(task_id, stored, states.FAILURE)
    if raised is None:
        assert app.AsyncResult(task_id).result is None
        return
    with pytest.raises(raised):
        app.backend.get_task_meta(task_id)
    with pytest.raises(raised):
        app.AsyncResult(task_id).get(timeout=5)


def test_an_exception_without_a_name_is_not_refused(app: Any, new_id: NewId) -> None:
    """The record's own field may not be empty; what was stored comes back."""
    for kind in ("", "x" * 2000):
        payload = {"exc_type": kind, "exc_module": "nowhere", "exc_message": ["m"]}
        assert again(app, new_id(), payload).args == ("m",)


def test_text_that_is_no_utf8_is_escaped(app: Any, new_id: NewId) -> None:
    """A traceback may name a file whose name is bytes; the failure is stored all the same."""
    task_id = new_id()
    app.backend.store_result(
        task_id,
        ValueError("bad \ud800 text"),
        states.FAILURE,
        traceback='File "\udcff.py"',
        request=request_of(task_id, hostname="celery@\udcff"),
    )
    result = app.AsyncResult(task_id)
    assert result.result.args == ("bad \ud800 text",)
    assert result.traceback == 'File "\\udcff.py"'


class TestTooLarge:
    @pytest.mark.parametrize("serializer", ["json", "pickle"])
    def test_its_message_is_cut(self, make_app: MakeApp, new_id: NewId, serializer: str) -> None:
        """A failure is always stored, and its class is what it was."""
        app = make_app(result_serializer=serializer, result_accept_content=[serializer, "json"])
        task_id = new_id()
        app.backend.mark_as_failure(task_id, ValueError("x" * 4_000_000))
        result = app.AsyncResult(task_id)
        with pytest.raises(ValueError, match=r"xxx …$") as raised:
            result.get(timeout=5)
        assert 60_000 < len(str(raised.value)) < 70_000

    def test_its_traceback_is_cut(self, app: Any, new_id: NewId) -> None:
        """Whoever else is too large; both are told apart."""
        task_id = new_id()
        app.backend.store_result(task_id, Own("short"), states.FAILURE, traceback="y" * 4_000_000)
        result = app.AsyncResult(task_id)
        assert result.result.args == ("short",)
        assert 30_000 < len(result.traceback) < 70_000

    def test_arguments_go_first(self, make_app: MakeApp, new_id: NewId) -> None:
        """Of extended results: the value needs no cutting then, nor does the exception."""
        app = make_app(result_extended=True)
        for state, value in ((states.FAILURE, Own("short")), (states.SUCCESS, "short")):
            task_id = new_id()
            request = request_of(task_id, args=["z" * 4_000_000], kwargs={})
            app.backend.store_result(task_id, value, state, request=request)
            result = app.AsyncResult(task_id)
            assert (result.state, str(result.result), result.args) == (state, "short", None)

    def test_what_is_no_exception_becomes_one(self, app: Any, new_id: NewId) -> None:
        """That says it in short."""
        task_id = new_id()
        app.backend.store_result(task_id, {"long": "x" * 4_000_000}, states.FAILURE)
        found = app.AsyncResult(task_id).result
        assert isinstance(found, celery.exceptions.TaskError)
        assert "'long'" in str(found)

    @pytest.mark.parametrize(
        ("count", "length", "kept"), [(10_001, 20, 10_001), (12_000, 200, 10_000)]
    )
    def test_a_task_of_many_children(
        self, app: Any, new_id: NewId, count: int, length: int, kept: int
    ) -> None:
        """Its result is stored, with all children if they fit a record, else with the first."""
        task_id, prefix = new_id(), "c" * length
        children = [app.AsyncResult(f"{prefix}-{number}") for number in range(count)]
        request = request_of(task_id, _children=children)
        app.backend.store_result(task_id, "done", states.SUCCESS, request=request)
        result = app.AsyncResult(task_id)
        assert result.get(timeout=5) == "done"
        found = [child.id for child in result.children]
        assert found == [child.id for child in children][:kept]

    def test_a_chords_part_is_cut_too(self, app: Any, new_id: NewId) -> None:
        """Of a task that ignores its result: the chord is told of the failure."""
        codec, task_id = app.backend.codec, new_id()
        for error in (ValueError("x" * 4_000_000), {"no": "x" * 4_000_000}):
            store = codec.unstored_part(task_id, error, states.FAILURE, request_of(task_id))
            store.meta.existence = state_pb2.EXISTENCE_KNOWN
            assert store.meta.ByteSize() < RECORD_BYTES_MAX
            assert not store.meta.HasField("failure")
            assert isinstance(codec.part_of(store.meta)["result"], Exception)
        with pytest.raises(EncodeError):
            codec.unstored_part(task_id, "x" * 4_000_000, states.SUCCESS, request_of(task_id))


def test_revoked_is_a_revoked_error(app: Any, new_id: NewId) -> None:
    """With its reason; without one, with none."""
    for reason in ("terminated", ""):
        task_id = new_id()
        app.backend.mark_as_revoked(task_id, reason)
        with pytest.raises(TaskRevokedError) as raised:
            app.AsyncResult(task_id).get(timeout=5)
        assert raised.value.args == (reason,)
        assert app.AsyncResult(task_id).traceback is None


def test_the_class_is_found_wherever_its_module_is_loaded(
    app: Any, new_id: NewId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`__main__` is a module as well."""
    module = types.ModuleType("a_module_of_the_worker")
    kind = type("Kind", (Exception,), {"__module__": module.__name__})
    vars(module)["Kind"] = kind
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert type(again(app, new_id(), kind("x"))) is kind


def test_arguments_keep_their_types(app: Any, new_id: NewId) -> None:
    """As far as kombu's JSON has them."""
    when = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    assert again(app, new_id(), Own(when, {"a": [1]})).args == (when, {"a": [1]})
