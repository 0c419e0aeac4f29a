"""One store, several languages: Celery's records read natively, and others' read by Celery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import states
from celery.exceptions import TaskError, TaskRevokedError

import resultd.errors
from resultd.client import Client
from resultd.v1 import state_pb2, task_pb2, value_pb2
from tests.client.celery.conftest import MakeApp
from tests.client.celery.test_records import raw, record
from tests.support.celery_backend import request_of

NewId = Callable[[], str]
JSON = "application/json"


class TestReadNatively:
    def test_a_value(self, backend: Any, client: Client, new_id: NewId) -> None:
        """Is a value."""
        task_id = new_id()
        backend.mark_as_done(task_id, {"sum": [1, None]})
        assert client.AsyncResult(task_id).get(timeout=5) == {"sum": [1, None]}

    def test_a_failure_is_raised(self, backend: Any, client: Client, new_id: NewId) -> None:
        """A builtin class as itself, with its traceback."""
        task_id = new_id()
        backend.mark_as_failure(task_id, ValueError("no", 2), traceback="Traceback …")
        result = client.AsyncResult(task_id)
        with pytest.raises(ValueError, match="no") as raised:
            result.get(timeout=5)
        assert raised.value.args == ("no", 2)
        assert "Traceback …" in str(result.traceback)

    def test_a_strange_failure_is_told(self, backend: Any, client: Client, new_id: NewId) -> None:
        """Of a class that is not there."""
        task_id = new_id()
        strange = type("StrangeError", (Exception,), {"__module__": "elsewhere"})
        backend.mark_as_failure(task_id, strange("what it says"))
        with pytest.raises(resultd.errors.TaskError, match="what it says") as raised:
            client.AsyncResult(task_id).get(timeout=5)
        assert raised.value.type == "StrangeError"

    @pytest.mark.parametrize("method", ["revoke", "retry"])
    def test_other_ends(self, backend: Any, client: Client, new_id: NewId, method: str) -> None:
        """Revoked ones raise, retried ones wait on."""
        task_id = new_id()
        if method == "revoke":
            backend.mark_as_revoked(task_id, "reason")
            with pytest.raises(resultd.errors.TaskRevokedError, match="reason"):
                client.AsyncResult(task_id).get(timeout=5)
        else:
            backend.mark_as_retry(task_id, ValueError("again"))
            assert client.AsyncResult(task_id).state == states.RETRY
            with pytest.raises(resultd.errors.TimeoutError):
                client.AsyncResult(task_id).get(timeout=0.1)

    def test_the_fields_of_an_extended_result(
        self, make_app: MakeApp, client: Client, new_id: NewId
    ) -> None:
        """Stand where anybody finds them."""
        app, task_id = make_app(result_extended=True), new_id()
        request = request_of(
            task_id,
            args=[1],
            kwargs={"k": 2},
            hostname="celery@here",
            retries=3,
            delivery_info={"routing_key": "q"},
            parent_id="parent",
            root_id="root",
        )
        app.backend.mark_as_done(task_id, 1, request=request)
        result = client.AsyncResult(task_id)
        assert (result.name, result.args, result.kwargs) == ("add", [1], {"k": 2})
        assert (result.worker, result.queue, result.retries) == ("celery@here", "q", 3)
        found = record(client, task_id)
        assert (found.parent_id, found.root_id) == ("parent", "root")
        assert found.value.content_type == JSON

    def test_progress(self, backend: Any, client: Client, new_id: NewId) -> None:
        """A custom state's current and total are the record's progress, too."""
        task_id = new_id()
        backend.store_result(task_id, {"current": 3, "total": 9, "who": "me"}, "PROGRESS")
        result = client.AsyncResult(task_id)
        assert result.state == "PROGRESS"
        assert record(client, task_id).progress.current == 3
        assert record(client, task_id).progress.total == 9
        assert result.info == {"current": 3, "total": 9, "who": "me"}

    def test_children(self, app: Any, client: Client, new_id: NewId) -> None:
        """By id and kind."""
        task_id = new_id()
        children = [app.AsyncResult("one"), app.GroupResult("many", [app.AsyncResult("two")])]
        request = request_of(task_id, _children=children)
        app.backend.mark_as_done(task_id, 1, request=request)
        found = record(client, task_id).children
        assert [(child.id, child.kind) for child in found] == [
            ("one", task_pb2.MEMBER_KIND_TASK),
            ("many", task_pb2.MEMBER_KIND_GROUP),
        ]

    def test_pickles_are_left_closed(
        self, make_app: MakeApp, client: Client, new_id: NewId
    ) -> None:
        """The native client opens no pickle unless it is told to; it says so."""
        app = make_app(result_serializer="pickle", result_accept_content=["pickle"])
        task_id = new_id()
        app.backend.mark_as_done(task_id, {1})
        with pytest.raises(resultd.errors.SerializationError, match="python-serialize"):
            client.AsyncResult(task_id).get(timeout=5)
        task_id = new_id()
        app.backend.mark_as_failure(task_id, ValueError("in a pickle"))
        with pytest.raises((ValueError, resultd.errors.TaskError), match="in a pickle"):
            client.AsyncResult(task_id).get(timeout=5)


class TestReadByCelery:
    def test_a_native_value(self, app: Any, client: Client, new_id: NewId) -> None:
        """With its fields."""
        task_id = new_id()
        client.store_result(
            task_id, [1, {"a": None}], name="n", worker="w", queue="q", args=[1], kwargs={"k": 1}
        )
        result = app.AsyncResult(task_id)
        assert result.get(timeout=5) == [1, {"a": None}]
        assert (result.name, result.worker, result.queue) == ("n", "w", "q")
        assert (result.args, result.kwargs) == ([1], {"k": 1})
        assert result.date_done is not None

    def test_native_bytes(self, app: Any, client: Client, new_id: NewId) -> None:
        """Are bytes."""
        task_id = new_id()
        client.store_result(task_id, b"\x00\xff")
        assert app.AsyncResult(task_id).get(timeout=5) == b"\x00\xff"

    def test_a_native_failure(self, app: Any, client: Client, new_id: NewId) -> None:
        """Its class, if it is known here, and its traceback."""
        task_id = new_id()
        try:
            raise KeyError("brown")
        except KeyError as error:
            client.store_result(task_id, error, "FAILURE")
        result = app.AsyncResult(task_id)
        with pytest.raises(KeyError) as raised:
            result.get(timeout=5)
        assert raised.value.args == ("brown",)
        assert "KeyError" in result.traceback

    def test_a_failure_without_arguments(self, app: Any, client: Client, new_id: NewId) -> None:
        """As Go would report it: a type of module "main" that says something."""
        task_id = new_id()
        failure = value_pb2.Failure(
            type="*os.PathError", module="main", message="no such file", language="go"
        )
        raw(client, task_id=task_id, state=state_pb2.STATE_FAILURE, failure=failure)
        with pytest.raises(Exception, match="no such file") as raised:
            app.AsyncResult(task_id).get(timeout=5)
        assert type(raised.value).__name__ == "*os.PathError"

    @pytest.mark.parametrize("args", [b'{"no": "list"}', b"17", b"broken {"])
    def test_a_failure_whose_arguments_are_no_list(
        self, app: Any, client: Client, new_id: NewId, args: bytes
    ) -> None:
        """Says its message."""
        task_id = new_id()
        failure = value_pb2.Failure(
            type="Error", module="node", message="it broke", args=value_pb2.Payload(data=args)
        )
        raw(client, task_id=task_id, state=state_pb2.STATE_FAILURE, failure=failure)
        assert app.AsyncResult(task_id).result.args == ("it broke",)

    def test_a_failure_in_content_that_is_not_accepted(
        self, app: Any, client: Client, new_id: NewId
    ) -> None:
        """Says its message; the rest stays closed."""
        task_id = new_id()
        args = value_pb2.Payload(content_type="application/x-python-serialize", data=b"cos\n")
        failure = value_pb2.Failure(type="E", module="m", message="it broke", args=args)
        raw(client, task_id=task_id, state=state_pb2.STATE_FAILURE, failure=failure)
        assert app.AsyncResult(task_id).result.args == ("it broke",)

    @pytest.mark.parametrize(
        "named", [("builtins", "eval"), ("os", "system"), ("types", "FunctionType")]
    )
    def test_a_failure_cannot_call_anything(
        self, app: Any, client: Client, new_id: NewId, named: tuple[str, str]
    ) -> None:
        """Only exceptions are made."""
        task_id = new_id()
        failure = value_pb2.Failure(type=named[1], module=named[0], message="print(1)")
        raw(client, task_id=task_id, state=state_pb2.STATE_FAILURE, failure=failure)
        with pytest.raises(Exception, match="Expected an exception class"):
            app.AsyncResult(task_id).get(timeout=5)

    @pytest.mark.parametrize("state", ["FAILURE", "RETRY"])
    def test_a_message_is_enough(self, app: Any, client: Client, new_id: NewId, state: str) -> None:
        """Of who has no exceptions."""
        task_id = new_id()
        client.store_result(task_id, "out of paper", state)
        result = app.AsyncResult(task_id)
        assert result.state == state
        assert isinstance(result.result, Exception)
        assert "out of paper" in str(result.result)

    def test_a_retry_that_says_nothing(self, app: Any, client: Client, new_id: NewId) -> None:
        """Is an error without words."""
        task_id = new_id()
        raw(client, task_id=task_id, state=state_pb2.STATE_RETRY)
        assert isinstance(app.AsyncResult(task_id).result, TaskError)

    def test_revoked_natively(self, app: Any, client: Client, new_id: NewId) -> None:
        """Whether by the server or by a worker's report, with and without a reason."""
        revoked, reported, silent = new_id(), new_id(), new_id()
        client.revoke([revoked], reason="enough")
        client.store_result(reported, "enough", "REVOKED")
        raw(client, task_id=silent, state=state_pb2.STATE_REVOKED)
        for task_id, said in ((revoked, "enough"), (reported, "enough"), (silent, "")):
            with pytest.raises(TaskRevokedError) as raised:
                app.AsyncResult(task_id).get(timeout=5)
            assert str(raised.value) == said

    def test_only_progress(self, app: Any, client: Client, new_id: NewId) -> None:
        """Is what Celery's workers report by hand."""
        task_id = new_id()
        client.store_result(task_id, None, "PROGRESS", progress=(3, 9, "half"))
        result = app.AsyncResult(task_id)
        assert result.state == "PROGRESS"
        assert (result.info["current"], result.info["total"]) == (3, 9)

    def test_a_state_of_the_applications_own(self, app: Any, client: Client, new_id: NewId) -> None:
        """With its name and its value, or without one."""
        task_id, silent = new_id(), new_id()
        client.store_result(task_id, {"a": 1}, "PAINTING")
        raw(client, task_id=silent, state=state_pb2.STATE_CUSTOM, custom_state="LOST")
        assert (app.AsyncResult(task_id).state, app.AsyncResult(task_id).info) == (
            "PAINTING",
            {"a": 1},
        )
        assert (app.AsyncResult(silent).state, app.AsyncResult(silent).info) == ("LOST", None)

    def test_ignored(self, app: Any, client: Client, new_id: NewId) -> None:
        """Is a state without a value."""
        task_id = new_id()
        client.store_result(task_id, None, "IGNORED")
        assert (app.AsyncResult(task_id).state, app.AsyncResult(task_id).result) == (
            "IGNORED",
            None,
        )

    @pytest.mark.parametrize(
        "content_type",
        ["", "application/json", "application/json; charset=utf-8", "Application/JSON"],
    )
    def test_json_by_any_name(
        self, app: Any, client: Client, new_id: NewId, content_type: str
    ) -> None:
        """Parameters and case mean nothing, and JSON is what is meant without a name."""
        task_id = new_id()
        value = value_pb2.Payload(content_type=content_type, data='"☃"'.encode())
        raw(client, task_id=task_id, state=state_pb2.STATE_SUCCESS, value=value)
        assert app.AsyncResult(task_id).get(timeout=5) == "☃"

    @pytest.mark.parametrize("content_type", ["", "application/json"])
    def test_no_bytes_are_null(
        self, app: Any, client: Client, new_id: NewId, content_type: str
    ) -> None:
        """Of a worker that has no value, as they are for native clients."""
        task_id = new_id()
        value = value_pb2.Payload(content_type=content_type)
        raw(client, task_id=task_id, state=state_pb2.STATE_SUCCESS, value=value)
        assert app.AsyncResult(task_id).get(timeout=5) is None
        assert client.AsyncResult(task_id).get(timeout=5) is None

    def test_another_content_type_is_refused(self, app: Any, client: Client, new_id: NewId) -> None:
        """With kombu's error."""
        task_id = new_id()
        value = value_pb2.Payload(content_type="text/html", data=b"<p>")
        raw(client, task_id=task_id, state=state_pb2.STATE_SUCCESS, value=value)
        with pytest.raises(Exception, match="text/html"):
            app.AsyncResult(task_id).get(timeout=5)

    def test_a_group_given_natively(self, app: Any, client: Client, new_id: NewId) -> None:
        """Is the meta's group id."""
        task_id, group = new_id(), new_id()
        client.store_result(task_id, 1, group_id=group)
        assert app.backend.get_task_meta(task_id)["group_id"] == group
