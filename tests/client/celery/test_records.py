"""What a Celery result is in the store, and what is read there: values and metas."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import kombu.compression
import pytest
from celery import states
from celery.result import result_from_tuple
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kombu.exceptions import ContentDisallowed, DecodeError, EncodeError
from kombu.serialization import registry

from resultd import _ids
from resultd.celery._records import text_id
from resultd.client import Client
from resultd.v1 import result_service_pb2, state_pb2, task_pb2, value_pb2
from tests.client.celery.conftest import MakeApp
from tests.support.celery_backend import request_of

NewId = Callable[[], str]

SERIALIZERS = ("json", "pickle", "yaml", "msgpack")
PLAIN: tuple[Any, ...] = (
    None,
    True,
    0,
    -(2**53),
    1.5,
    "",
    "snow ☃ \x00 and more",
    [],
    {},
    [1, [2, {"three": None}]],
    {"current": 1, "total": "unknown"},
    "x" * 100_000,
)
ODD_IDS = (uuid.UUID(int=1), b"bytes", 7, "a" * 300, "a\nb", "\ud800", "")
STORED = ("RECEIVED", "STARTED", "PROGRESS", "REJECTED", "LEFT", "with spaces", "SUCCESS")


def raw(client: Client, **fields: Any) -> None:
    """A report as some other language's worker writes it."""
    store = result_service_pb2.StoreResultRequest(meta=task_pb2.TaskMeta(**fields))
    client.run(client.operations.call("StoreResult", store))


def record(client: Client, task_id: str) -> task_pb2.TaskMeta:
    """The record itself."""
    (found,) = client.run(client.operations.read([task_id]))
    return found


# Pieces that make values, and pieces that make some only together.
_PIECES = st.lists(st.sampled_from('[]{},:"\\ 1aé\ufeff') | st.just("null"), max_size=4)


def _record(data: bytes, **fields: Any) -> task_pb2.TaskMeta:
    """What a task that succeeded left, of these bytes."""
    known: dict[str, Any] = {
        "state": state_pb2.STATE_SUCCESS,
        "existence": state_pb2.EXISTENCE_KNOWN,
    }
    value = value_pb2.Payload(content_type="application/json", data=data)
    return task_pb2.TaskMeta(**{**known, "value": value, **fields})


class TestManyValues:
    @given(
        st.lists(
            st.binary(max_size=3)
            | _PIECES.map(lambda pieces: "".join(pieces).encode())
            | st.recursive(st.integers() | st.text(max_size=2), st.lists).map(
                lambda value: json.dumps(value).encode()
            ),
            max_size=5,
        )
    )
    @example([b"1,2", b"[3", b"4]"])
    @example([b'"', b'"', b"1"])
    @example([b"", b"1"])
    @example([b"[", b"]"])
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_are_those_of_each_alone_or_left_to_be_read_alone(
        self, backend: Any, datas: list[bytes]
    ) -> None:
        """Bytes that are values only beside others' are not taken for any."""
        read = backend.codec.values([_record(data) for data in datas])
        if read is not None:
            alone = [backend.codec.decode(_record(data).value) for data in datas]
            assert repr(read) == repr(alone)

    def test_of_json_are_read_at_once(self, backend: Any) -> None:
        """In their order, kombu's types among them."""
        written = [backend.codec.encode(value) for value in (1, uuid.UUID(int=1), {"a": [None]})]
        records = [_record(b"", value=payload) for payload in written]
        assert backend.codec.values(records) == [1, uuid.UUID(int=1), {"a": [None]}]

    @pytest.mark.parametrize(
        "other",
        [
            {"state": state_pb2.STATE_FAILURE},
            {"existence": state_pb2.EXISTENCE_FORGOTTEN},
            {"value": value_pb2.Payload(content_type="application/octet-stream", data=b"1")},
            {"value": value_pb2.Payload(content_encoding="gzip", data=b"1")},
            {"extra": {"celery.part": value_pb2.Payload(data=b'"SUCCESS"')}},
        ],
        ids=lambda fields: next(iter(fields)),
    )
    def test_among_which_is_anything_else_are_left(
        self, backend: Any, other: dict[str, Any]
    ) -> None:
        """Whoever asks reads them one by one."""
        assert backend.codec.values([_record(b"1"), _record(b"1", **other)]) is None

    def test_of_a_type_that_is_not_accepted_are_left(self, make_app: MakeApp) -> None:
        """Read alone, each is refused."""
        app = make_app(result_serializer="pickle", result_accept_content=["pickle"])
        assert app.backend.codec.values([_record(b"1")]) is None


class TestValues:
    @pytest.mark.parametrize(
        "content_type", ["application/x-MyJson", "application/json; profile=mine", " x/y "]
    )
    def test_of_a_serializer_of_ones_own_come_back(
        self, make_app: MakeApp, new_id: NewId, content_type: str
    ) -> None:
        """By the very type that it was registered with."""

        def backwards(data: bytes) -> Any:
            return json.loads(data[::-1])

        def write(value: Any) -> bytes:
            return json.dumps(value).encode()[::-1]

        registry.register("mine", write, backwards, content_type, "binary")
        try:
            app = make_app(result_serializer="mine", result_accept_content=["mine"])
            task_id = new_id()
            app.backend.store_result(task_id, {"a": 1}, states.SUCCESS)
            assert app.AsyncResult(task_id).get(timeout=5) == {"a": 1}
        finally:
            registry.unregister("mine")

    @pytest.mark.parametrize("serializer", SERIALIZERS)
    @pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:20])
    def test_come_back_as_they_were(
        self, make_app: MakeApp, new_id: NewId, serializer: str, value: Any
    ) -> None:
        """Through each serializer."""
        app = make_app(result_serializer=serializer, result_accept_content=[serializer])
        task_id = new_id()
        app.backend.store_result(task_id, value, states.SUCCESS)
        assert app.AsyncResult(task_id).get(timeout=5) == value
        assert app.AsyncResult(task_id).result == value

    @pytest.mark.parametrize(
        "value",
        [
            datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.timezone.utc),
            uuid.UUID(int=5),
            Decimal("1.10"),
            b"bytes",
        ],
        ids=repr,
    )
    def test_of_kombus_json_keep_their_types(
        self, app: Any, backend: Any, new_id: NewId, value: Any
    ) -> None:
        """Dates, ids, decimals and bytes, as in any other backend."""
        task_id = new_id()
        backend.store_result(task_id, [value], states.SUCCESS)
        assert app.AsyncResult(task_id).get(timeout=5) == [value]

    def test_of_pickle_keep_their_types(self, make_app: MakeApp, new_id: NewId) -> None:
        """Sets, tuples and objects."""
        app = make_app(result_serializer="pickle", result_accept_content=["pickle"])
        task_id, value = new_id(), ({1, 2}, (3,), range(4))
        app.backend.store_result(task_id, value, states.SUCCESS)
        assert app.AsyncResult(task_id).get(timeout=5) == value

    @pytest.mark.parametrize("serializer", SERIALIZERS)
    def test_that_are_results_are_stored_as_their_tuples(
        self, make_app: MakeApp, new_id: NewId, serializer: str
    ) -> None:
        """A task that returns a result: its caller gets one it can wait for."""
        app = make_app(result_serializer=serializer, result_accept_content=[serializer])
        task_id, other = new_id(), new_id()
        app.set_current()
        app.backend.store_result(task_id, app.AsyncResult(other), states.SUCCESS)
        assert result_from_tuple(app.AsyncResult(task_id).get(timeout=5), app).id == other

    def test_that_cannot_be_written_are_refused(self, backend: Any, new_id: NewId) -> None:
        """With kombu's error, and nothing is stored."""
        task_id = new_id()
        with pytest.raises(EncodeError):
            backend.store_result(task_id, object(), states.SUCCESS)
        assert backend.get_state(task_id) == states.PENDING

    def test_that_are_too_large_are_refused(self, backend: Any, new_id: NewId) -> None:
        """The error names the size, the limit and what to do instead."""
        task_id = new_id()
        with pytest.raises(EncodeError, match=r" 4000\d\d\d bytes.*takes 3145728.*elsewhere"):
            backend.store_result(task_id, "x" * 4_000_000, states.SUCCESS)
        assert backend.get_state(task_id) == states.PENDING

    def test_up_to_the_limit_are_stored(self, app: Any, backend: Any, new_id: NewId) -> None:
        """Three million bytes are fine."""
        task_id = new_id()
        backend.store_result(task_id, "x" * 3_000_000, states.SUCCESS)
        assert len(app.AsyncResult(task_id).get(timeout=10)) == 3_000_000


class TestCompression:
    @pytest.mark.parametrize("serializer", SERIALIZERS)
    @pytest.mark.parametrize("method", sorted(kombu.compression.encoders()))
    def test_is_undone_by_whoever_reads(
        self, make_app: MakeApp, client: Client, new_id: NewId, method: str, serializer: str
    ) -> None:
        """Each of kombu's methods; the reader need not be configured for it."""
        accept = {"result_accept_content": [serializer]}
        writer = make_app(result_compression=method, result_serializer=serializer, **accept)
        task_id, value = new_id(), {"long": "x" * 10_000}
        writer.backend.store_result(task_id, value, states.SUCCESS)
        assert make_app(**accept).AsyncResult(task_id).get(timeout=5) == value
        stored = record(client, task_id).value
        assert stored.content_encoding
        assert len(stored.data) < 1_000

    @pytest.mark.parametrize("method", ["zlib", "gzip", "application/x-gzip"])
    def test_by_deflate_is_read_by_the_native_client(
        self, make_app: MakeApp, client: Client, new_id: NewId, method: str
    ) -> None:
        """What kombu calls gzip is HTTP's deflate, and is named so."""
        task_id = new_id()
        make_app(result_compression=method).backend.store_result(task_id, [1], states.SUCCESS)
        assert record(client, task_id).value.content_encoding == "deflate"
        assert client.AsyncResult(task_id).get(timeout=5) == [1]

    def test_of_a_kind_nobody_knows_here(self, backend: Any, client: Client, new_id: NewId) -> None:
        """Is a decode error that names it."""
        task_id = new_id()
        value = value_pb2.Payload(content_encoding="snappiest", data=b"1")
        raw(client, task_id=task_id, state=state_pb2.STATE_SUCCESS, value=value)
        with pytest.raises(DecodeError, match="snappiest"):
            backend.get_result(task_id)

    @pytest.mark.parametrize("encoding", ["gzip", "deflate", "application/x-bz2"])
    def test_that_is_broken(
        self, backend: Any, client: Client, new_id: NewId, encoding: str
    ) -> None:
        """Is a decode error, not whatever the library raises."""
        task_id = new_id()
        value = value_pb2.Payload(content_encoding=encoding, data=b"not compressed")
        raw(client, task_id=task_id, state=state_pb2.STATE_SUCCESS, value=value)
        with pytest.raises(DecodeError):
            backend.get_result(task_id)


class TestAccept:
    @pytest.mark.parametrize("stored", SERIALIZERS)
    def test_other_content_is_refused(self, make_app: MakeApp, new_id: NewId, stored: str) -> None:
        """`result_accept_content` is the law for readers."""
        task_id = new_id()
        writer = make_app(result_serializer=stored, result_accept_content=[stored])
        writer.backend.store_result(task_id, 1, states.SUCCESS)
        reader = make_app(result_accept_content=["yaml" if stored == "json" else "json"])
        if stored == "json":
            with pytest.raises(ContentDisallowed):
                reader.AsyncResult(task_id).get(timeout=5)
        else:
            with pytest.raises(ContentDisallowed):
                reader.backend.get_result(task_id)

    def test_accept_content_is_what_counts_without_it(
        self, make_app: MakeApp, new_id: NewId
    ) -> None:
        """As everywhere in Celery."""
        task_id = new_id()
        writer = make_app(result_serializer="pickle", accept_content=["pickle"])
        writer.backend.store_result(task_id, {1}, states.SUCCESS)
        assert writer.AsyncResult(task_id).get(timeout=5) == {1}
        with pytest.raises(ContentDisallowed):
            make_app().AsyncResult(task_id).get(timeout=5)


class TestStates:
    @pytest.mark.parametrize("state", STORED)
    def test_come_back_with_their_values(self, app: Any, backend: Any, state: str) -> None:
        """Those that Celery knows and those of an application."""
        task_id = uuid.uuid4().hex
        backend.store_result(task_id, {"of": state}, state)
        result = app.AsyncResult(task_id)
        assert (result.state, result.info) == (state, {"of": state})
        assert result.ready() == (state in states.READY_STATES)

    def test_ignored_is_stored_and_is_not_ready(
        self, app: Any, backend: Any, new_id: NewId
    ) -> None:
        """It is in none of Celery's sets: nobody who waits is let go."""
        task_id = new_id()
        backend.store_result(task_id, None, states.IGNORED)
        assert app.AsyncResult(task_id).state == states.IGNORED
        with pytest.raises(backend.TimeoutError):
            app.AsyncResult(task_id).get(timeout=0.2)

    def test_an_unknown_task_is_pending(self, app: Any, backend: Any, new_id: NewId) -> None:
        """Without a value, a traceback, children; asking is no error."""
        task_id = new_id()
        assert backend.get_task_meta(task_id) == {"status": states.PENDING, "result": None}
        assert backend.get_traceback(task_id) is None
        assert backend.get_children(task_id) is None
        result = app.AsyncResult(task_id)
        assert (result.result, result.date_done, result.name) == (None, None, None)

    def test_a_success_stays(self, backend: Any, new_id: NewId) -> None:
        """Whatever a lost twin of the task reports afterwards."""
        task_id = new_id()
        backend.store_result(task_id, 1, states.SUCCESS)
        backend.store_result(task_id, 2, states.SUCCESS)
        backend.store_result(task_id, ValueError("late"), states.FAILURE)
        backend.store_result(task_id, None, states.STARTED)
        meta = backend.get_task_meta(task_id)
        assert (meta["status"], meta["result"]) == (states.SUCCESS, 1)

    def test_a_failure_is_mended_by_a_success(self, backend: Any, new_id: NewId) -> None:
        """A task that is run again may succeed."""
        task_id = new_id()
        backend.store_result(task_id, ValueError("first"), states.FAILURE)
        backend.store_result(task_id, 1, states.SUCCESS)
        assert backend.get_result(task_id) == 1

    def test_a_whole_life(self, backend: Any, new_id: NewId) -> None:
        """Each report is what the next look sees."""
        task_id, seen = new_id(), []
        for state in ("STARTED", "PROGRESS", "RETRY", "STARTED", "SUCCESS"):
            value = ValueError(state) if state == "RETRY" else {"in": state}
            backend.store_result(task_id, value, state)
            seen.append(backend.get_state(task_id))
        assert seen == ["STARTED", "PROGRESS", "RETRY", "STARTED", "SUCCESS"]
        assert backend.get_traceback(task_id) is None


class TestMeta:
    def test_has_what_celerys_own_has(self, backend: Any, new_id: NewId) -> None:
        """Status, result, traceback, children, the time, and the id."""
        task_id = new_id()
        before = datetime.datetime.now(datetime.timezone.utc)
        backend.store_result(task_id, 1, states.SUCCESS)
        meta = backend.get_task_meta(task_id)
        assert meta["task_id"] == task_id
        assert meta["children"] is None
        done = datetime.datetime.fromisoformat(meta["date_done"])
        assert before <= done <= datetime.datetime.now(datetime.timezone.utc)
        assert "group_id" not in meta
        assert "parent_id" not in meta

    @pytest.mark.parametrize(
        "clock",
        [
            {"timezone": "Asia/Kolkata"},
            {"timezone": "UTC"},
            {"timezone": "America/New_York", "enable_utc": False},
            {"enable_utc": False},
        ],
        ids=repr,
    )
    def test_date_done_is_in_the_apps_time_zone(
        self, make_app: MakeApp, new_id: NewId, clock: dict[str, Any]
    ) -> None:
        """The one that Celery's own backends store it in: to the same offset, at the same time."""
        app, task_id = make_app(**clock), new_id()
        before = app.now()
        app.backend.store_result(task_id, 1, states.SUCCESS)
        done = app.AsyncResult(task_id).date_done
        assert before <= done <= app.now()
        assert done.utcoffset() == before.utcoffset()
        text = app.backend.get_task_meta(task_id)["date_done"]
        assert text[-6:] == before.isoformat()[-6:]

    def test_is_of_the_last_run(self, app: Any, new_id: NewId) -> None:
        """One under an id that was used before has a result again, though it is the same."""
        result = app.AsyncResult(new_id())
        ends = []
        for _ in range(2):
            app.backend.store_result(result.id, None, states.SUCCESS)
            assert result.get(timeout=5) is None
            ends.append(result.date_done)
            result.forget()
        assert ends[0] < ends[1]

    def test_date_done_is_there_once_it_is_done(self, app: Any, backend: Any) -> None:
        """And not while it runs."""
        task_id = uuid.uuid4().hex
        backend.store_result(task_id, None, states.STARTED)
        assert app.AsyncResult(task_id).date_done is None
        backend.store_result(task_id, None, states.SUCCESS)
        assert isinstance(app.AsyncResult(task_id).date_done, datetime.datetime)

    def test_a_traceback_stays_with_its_state(self, app: Any, backend: Any, new_id: NewId) -> None:
        """Of an exception, and of what was stored with one all the same."""
        failed, custom = new_id(), new_id()
        backend.store_result(failed, ValueError(), states.FAILURE, traceback="Traceback …")
        backend.store_result(custom, 1, "CUSTOM", traceback="more")
        assert app.AsyncResult(failed).traceback == "Traceback …"
        assert app.AsyncResult(custom).traceback == "more"
        backend.store_result(custom, 1, states.SUCCESS)
        assert app.AsyncResult(custom).traceback is None

    def test_group_and_parent_come_from_the_request(self, backend: Any, new_id: NewId) -> None:
        """Whether or not results are extended; the record's own fields name the root, too."""
        task_id = new_id()
        request = request_of(task_id, group="G", parent_id="P", root_id="R")
        backend.store_result(task_id, 1, states.SUCCESS, request=request)
        meta = backend.get_task_meta(task_id)
        assert (meta["group_id"], meta["parent_id"]) == ("G", "P")
        assert record(backend.client, task_id).root_id == "R"

    def test_extended_results_have_all_of_the_request(
        self, make_app: MakeApp, new_id: NewId
    ) -> None:
        """Name, args, kwargs, worker, retries, queue."""
        app, task_id = make_app(result_extended=True), new_id()
        request = request_of(
            task_id,
            args=[1, "two"],
            kwargs={"z": [3]},
            hostname="celery@here",
            retries=2,
            delivery_info={"routing_key": "queue"},
        )
        app.backend.store_result(task_id, 1, states.SUCCESS, request=request)
        result = app.AsyncResult(task_id)
        assert (result.name, result.args, result.kwargs) == ("add", [1, "two"], {"z": [3]})
        assert (result.worker, result.retries, result.queue) == ("celery@here", 2, "queue")

    def test_arguments_are_stored_in_extended_results_only(
        self, app: Any, backend: Any, new_id: NewId
    ) -> None:
        """They may be secrets; what else is in the record is no one's."""
        task_id = new_id()
        request = request_of(task_id, args=["secret"], kwargs={"password": "secret"})
        backend.store_result(task_id, 1, states.SUCCESS, request=request)
        assert b"secret" not in record(backend.client, task_id).SerializeToString()
        assert (app.AsyncResult(task_id).args, app.AsyncResult(task_id).kwargs) == (None, None)

    def test_stamps_come_back(self, make_app: MakeApp, new_id: NewId) -> None:
        """Those that the stamped headers name."""
        app, task_id = make_app(result_extended=True), new_id()
        request = request_of(
            task_id, stamped_headers=["mine"], stamps={"mine": ["v", {"w": 1}], "other": 1}
        )
        app.backend.store_result(task_id, 1, states.SUCCESS, request=request)
        meta = app.backend.get_task_meta(task_id)
        assert (meta["stamped_headers"], meta["mine"]) == (["mine"], ["v", {"w": 1}])
        assert "other" not in meta


class TestRelated:
    @pytest.mark.parametrize("odd", ODD_IDS)
    def test_an_odd_parent_costs_no_result(self, app: Any, odd: Any) -> None:
        """A task whose own id is good has its result, whatever its parent and root are called."""
        task_id = uuid.uuid4().hex
        request = request_of(task_id, parent_id=odd, root_id=odd)
        app.backend.store_result(task_id, 1, states.SUCCESS, request=request)
        meta = app.backend.get_task_meta(task_id)
        said = text_id(odd)
        assert meta["result"] == 1
        assert meta.get("parent_id") == (said if _ids.fits(said) else None)


class TestChildren:
    def stored(self, app: Any, children: Any) -> Any:
        """What a reader finds for a task that called these."""
        task_id = uuid.uuid4().hex
        request = request_of(task_id, _children=children)
        app.backend.store_result(task_id, 1, states.SUCCESS, request=request)
        return app.AsyncResult(task_id).children

    @pytest.mark.parametrize("children", [[], ()])
    def test_none_called_is_an_empty_list(self, app: Any, children: Any) -> None:
        """Not None: the task could have called some."""
        assert self.stored(app, children) == []

    def test_not_known_is_none(self, app: Any, backend: Any, new_id: NewId) -> None:
        """Nobody said which it called."""
        task_id = new_id()
        backend.store_result(task_id, 1, states.SUCCESS)
        assert app.AsyncResult(task_id).children is None

    def test_tasks_and_groups_come_back(self, app: Any) -> None:
        """With their parents and members, in their order."""
        parent = app.AsyncResult("parent", parent=app.AsyncResult("grandparent"))
        single = app.AsyncResult("single", parent=parent)
        group = app.GroupResult("group", [app.AsyncResult("a"), app.AsyncResult("b")])
        nested = app.GroupResult("nested", [group, single], parent=parent)
        found = self.stored(app, [app.AsyncResult("first"), single, group, nested])
        assert [child.as_tuple() for child in found] == [
            app.AsyncResult("first").as_tuple(),
            single.as_tuple(),
            group.as_tuple(),
            nested.as_tuple(),
        ]

    @pytest.mark.parametrize("state", [states.SUCCESS, states.RETRY])
    @pytest.mark.parametrize("odd", ODD_IDS)
    def test_an_odd_id_costs_no_result(self, app: Any, odd: Any, state: str) -> None:
        """Whoever called a task chose its id; what came of the caller is stored all the same."""
        task_id = uuid.uuid4().hex
        member = app.GroupResult("group", [app.AsyncResult(odd, parent=app.AsyncResult(odd))])
        children = [app.AsyncResult("good"), app.AsyncResult(odd), member]
        result = ValueError("again") if state == states.RETRY else 1
        request = request_of(task_id, _children=children)
        app.backend.store_result(task_id, result, state, request=request)
        assert app.AsyncResult(task_id).state == state
        found = app.backend.get_task_meta(task_id)["children"]
        said = text_id(odd)
        inner = ((said, ((said, None), None)), None)
        assert found == [(("good", None), None), ((said, None), None), (("group", None), [inner])]

    def test_an_empty_group_is_a_group(self, app: Any) -> None:
        """And not a task."""
        (child,) = self.stored(app, [app.GroupResult("empty", [])])
        assert isinstance(child, app.GroupResult)
        assert child.results == []

    def test_a_task_of_a_native_worker_has_them_too(
        self, app: Any, client: Client, new_id: NewId
    ) -> None:
        """Ids and kinds are all there is then."""
        task_id = new_id()
        client.store_result(task_id, 1, children=["child"])
        (child,) = app.AsyncResult(task_id).children
        assert child == app.AsyncResult("child")
