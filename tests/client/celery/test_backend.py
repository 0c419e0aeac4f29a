"""The backend as Celery's own code calls it: configuration, storing, reading, forgetting."""

from __future__ import annotations

import datetime
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, signals, states
from celery.app.backends import by_url
from celery.exceptions import ImproperlyConfigured, TaskRevokedError

from resultd.celery import ResultdBackend
from resultd.client import Client
from resultd.errors import InvalidArgumentError
from resultd.testing import Server
from tests.client.celery.conftest import MakeApp
from tests.client.celery.test_records import record
from tests.support.celery_backend import count_calls, request_of

NewId = Callable[[], str]


class TestDiscovery:
    @pytest.mark.parametrize("scheme", ["resultd", "resultds", "grpc", "grpcs"])
    def test_celery_finds_it_by_its_schemes(self, scheme: str) -> None:
        """An URL is all an app needs."""
        app = Celery("x", backend=f"{scheme}://localhost:1/ns", set_as_current=False)
        assert type(app.backend) is ResultdBackend
        app.close()

    def test_by_its_name_alone(self) -> None:
        """The address is the default, or RESULTD_URL."""
        assert by_url("resultd") == (ResultdBackend, None)

    def test_a_socket(self) -> None:
        """Celery cuts the scheme at the plus, and the rest is enough."""
        app = Celery("x", backend="resultd+unix:///run/x?namespace=ns", set_as_current=False)
        assert app.backend.options.text == "resultd+unix:///run/x?namespace=ns"
        assert app.backend.as_uri() == "resultd+unix:///run/x?namespace=ns"
        app.close()

    def test_making_it_opens_nothing(self, app: Any) -> None:
        """A worker makes it before it forks: no thread, no channel, no call."""
        before = set(threading.enumerate())
        app = Celery("x", backend="resultd://localhost:1/untouched", set_as_current=False)
        assert "untouched" in app.backend.as_uri()
        assert set(threading.enumerate()) == before
        app.close()

    def test_a_wrong_address_is_a_wrong_configuration(self, make_app: MakeApp) -> None:
        """At the first use, in Celery's words."""
        with pytest.raises(ImproperlyConfigured, match="result_backend"):
            _ = make_app("resultd://host/No Namespace").backend

    def test_wrong_options_too(self, make_app: MakeApp) -> None:
        """With what was meant."""
        wrong = make_app(result_backend_transport_options={"chord_leas": 1})
        with pytest.raises(ImproperlyConfigured, match="chord_lease"):
            _ = wrong.backend

    def test_an_unknown_compression_too(self, make_app: MakeApp) -> None:
        """With the methods there are."""
        with pytest.raises(ImproperlyConfigured, match="nosuch"):
            _ = make_app(result_compression="nosuch").backend


class TestIdentity:
    def test_all_threads_share_one(self, app: Any) -> None:
        """One client, one channel."""
        _ = app.backend  # Celery before 5.7 makes it where it is first asked for
        with ThreadPoolExecutor(8) as threads:
            found = set(threads.map(lambda _: id(app.backend), range(32)))
        assert found == {id(app.backend)}
        assert app.backend.thread_safe

    def test_one_client_for_an_address(self, make_app: MakeApp) -> None:
        """However many backends there are."""
        one, two = make_app().backend, make_app().backend
        assert one is not two
        assert one.client is two.client
        assert isinstance(one.client, Client)

    def test_shows_its_address_without_the_token(self, make_app: MakeApp) -> None:
        """In banners and reports; who asks for passwords gets them."""
        backend = make_app("resultds://host:1/ns?token=secret").backend
        assert backend.as_uri() == "resultds://host:1/ns?token=***"
        assert "secret" in backend.as_uri(include_password=True)

    def test_says_what_it_can(self, backend: Any) -> None:
        """What Celery asks of a class."""
        assert backend.supports_native_join
        assert backend.supports_autoexpire
        assert backend.persistent
        assert backend.is_async
        assert backend.supports_result_compression
        assert backend.supports_failure_expires

    def test_it_can_be_pickled(self, make_app: MakeApp) -> None:
        """With address and expiry; the copy belongs to the current app and shares the client."""
        app = make_app(result_expires=77)
        app.set_current()
        found = pickle.loads(pickle.dumps(app.backend))
        assert (found.url, found.expires, found.app) == (app.backend.url, 77, app)
        assert found.client is app.backend.client

    def test_results_can_be_pickled(self, app: Any, new_id: NewId) -> None:
        """And waited for where they arrive."""
        app.set_current()
        child = app.AsyncResult(new_id(), parent=app.AsyncResult(new_id()))
        found = pickle.loads(pickle.dumps([child, app.GroupResult(new_id(), [child])]))
        assert found[0] == child
        assert found[0].parent == child.parent
        app.backend.mark_as_done(child.id, 3)
        assert found[0].get(timeout=5) == 3
        assert found[1].get(timeout=5) == [3]

    def test_unpickling_piles_nothing_up(self, app: Any, new_id: NewId) -> None:
        """Each result brings a backend of its own, which goes with it."""
        import gc

        app.set_current()
        dumped = pickle.dumps(app.AsyncResult(new_id()))
        before = len(signals.worker_ready.receivers)
        for _ in range(200):
            pickle.loads(dumped)
        gc.collect()
        pickle.loads(dumped)
        assert len(signals.worker_ready.receivers) < before + 20


class TestExpiry:
    def kept(self, app: Any, state: str = states.SUCCESS) -> float | None:
        """How long a result in a state is kept, in seconds."""
        task_id = str(uuid4())
        value = ValueError() if state in states.EXCEPTION_STATES else 1
        app.backend.store_result(task_id, value, state)
        found = record(app.backend.client, task_id)
        if not found.HasField("expire_time"):
            return None
        return (found.expire_time.ToDatetime() - found.updated_time.ToDatetime()).total_seconds()

    @pytest.mark.parametrize(
        ("setting", "kept"),
        [
            (60, 60),
            (90.9, 90),
            (datetime.timedelta(hours=2), 7200),
            (0, None),
            (None, None),
            (datetime.timedelta(days=366 * 11), None),
        ],
    )
    def test_is_what_result_expires_says(
        self, make_app: MakeApp, setting: Any, kept: float | None
    ) -> None:
        """Seconds or a timedelta; nothing, and what the server finds too long, is for ever."""
        assert self.kept(make_app(result_expires=setting)) == kept

    def test_is_a_day_unless_told(self, app: Any) -> None:
        """As everywhere in Celery."""
        assert self.kept(app) == 86_400

    def test_each_report_counts_anew(self, make_app: MakeApp) -> None:
        """A task that reports is kept, however it began."""
        assert self.kept(make_app(result_expires=60), states.STARTED) == 60

    @pytest.mark.parametrize(
        ("setting", "kept"), [(5, 5), (0, None), (datetime.timedelta(minutes=1), 60), (None, 900)]
    )
    def test_of_failures_may_differ(
        self, make_app: MakeApp, setting: Any, kept: float | None
    ) -> None:
        """`result_failure_expires` counts for FAILURE, and for nothing else."""
        app = make_app(result_expires=900, result_failure_expires=setting)
        assert self.kept(app, states.FAILURE) == kept
        assert self.kept(app, states.SUCCESS) == 900
        assert self.kept(app, states.RETRY) == 900
        assert self.kept(app, states.REVOKED) == 900

    @pytest.mark.parametrize(("setting", "kept"), [(None, 900.0), (5, 5.0), (0, 0.0)])
    def test_of_chords_may_differ(self, make_app: MakeApp, setting: Any, kept: float) -> None:
        """`result_chord_expires`, else `result_expires`."""
        app = make_app(result_expires=900, result_chord_expires=setting)
        assert app.backend.chord_expires == kept

    def test_an_expired_result_is_gone(self, make_app: MakeApp, new_id: NewId) -> None:
        """By the server's clock; nobody has to clean up."""
        app, task_id = make_app(result_expires=1), new_id()
        app.backend.mark_as_done(task_id, 1)
        gone = threading.Event()
        while app.AsyncResult(task_id).state != states.PENDING:
            gone.wait(0.05)
        assert not app.backend.task_result_exists(task_id)
        assert app.backend.cleanup() is None
        assert app.backend.process_cleanup() is None


class TestMarking:
    def test_started(self, app: Any, backend: Any, new_id: NewId) -> None:
        """With what the worker says of itself."""
        task_id = new_id()
        backend.mark_as_started(task_id, pid=7, hostname="celery@here")
        assert app.AsyncResult(task_id).state == states.STARTED
        assert app.AsyncResult(task_id).info == {"pid": 7, "hostname": "celery@here"}

    def test_done(self, backend: Any, new_id: NewId) -> None:
        """A task may be done in another state as well, or without a trace."""
        done, other, unstored = new_id(), new_id(), new_id()
        backend.mark_as_done(done, 1)
        backend.mark_as_done(other, 1, state="CUSTOM")
        backend.mark_as_done(unstored, 1, store_result=False)
        assert [backend.get_state(each) for each in (done, other, unstored)] == [
            states.SUCCESS,
            "CUSTOM",
            states.PENDING,
        ]

    @pytest.mark.parametrize("state", ["", "x" * 65, "ü" * 33, "two\nlines"])
    def test_in_a_state_of_an_unfit_name_is_refused(
        self, backend: Any, new_id: NewId, state: str
    ) -> None:
        """A name has 1 to 64 bytes and no control characters: nothing is cut in silence."""
        task_id = new_id()
        with pytest.raises(InvalidArgumentError, match="state"):
            backend.store_result(task_id, {}, state)
        assert not backend.task_result_exists(task_id)
        backend.store_result(task_id, {}, "x" * 64)
        assert backend.get_state(task_id) == "x" * 64

    def test_of_tasks_that_ignore_their_result(self, backend: Any, new_id: NewId) -> None:
        """Nothing is stored."""
        task_id = new_id()
        backend.mark_as_done(task_id, 1, request=request_of(task_id, ignore_result=True))
        assert not backend.task_result_exists(task_id)

    def test_retried(self, app: Any, backend: Any, new_id: NewId) -> None:
        """With the reason, and how often, for whoever looks."""
        task_id = new_id()
        request = request_of(task_id, retries=2)
        backend.mark_as_retry(task_id, KeyError("k"), traceback="Traceback", request=request)
        result = app.AsyncResult(task_id)
        assert result.state == states.RETRY
        assert isinstance(result.result, KeyError)
        assert result.traceback == "Traceback"
        assert record(backend.client, task_id).retries == 2

    def test_revoked(self, app: Any, backend: Any, new_id: NewId) -> None:
        """With the reason."""
        task_id = new_id()
        backend.mark_as_revoked(task_id, "enough", request=request_of(task_id))
        result = app.AsyncResult(task_id)
        assert result.state == states.REVOKED
        assert isinstance(result.result, TaskRevokedError)
        assert (result.ready(), result.successful(), result.failed()) == (True, False, False)

    def test_failed_fails_the_rest_of_its_chain(self, app: Any, backend: Any) -> None:
        """Whoever waits for the end of a chain hears of it."""
        chain = [dict(app.tasks["add"].si(1, 2).set(task_id=name)) for name in ("last", "middle")]
        backend.mark_as_failure("first", ValueError("no"), request=request_of("first", chain=chain))
        for task_id in ("first", "middle", "last"):
            with pytest.raises(ValueError, match="no"):
                app.AsyncResult(task_id).get(timeout=5)

    def test_failed_calls_errbacks(self, make_app: MakeApp, new_id: NewId) -> None:
        """After the failure was stored: an errback may read it."""
        app, seen = make_app(), []

        def errback(request: Any, error: Any, traceback: Any) -> None:
            seen.append((request.id, str(error), app.AsyncResult(request.id).state))

        task = app.task(name="errback", shared=False)(errback)
        task_id = new_id()
        request = request_of(task_id, errbacks=[task.s()])
        app.backend.mark_as_failure(task_id, ValueError("no"), request=request)
        assert seen == [(task_id, "no", states.FAILURE)]


class TestReading:
    def test_by_each_getter(self, backend: Any, new_id: NewId) -> None:
        """State, status, result, traceback, children."""
        task_id = new_id()
        backend.store_result(task_id, ValueError("x"), states.FAILURE, traceback="T")
        assert backend.get_state(task_id) == backend.get_status(task_id) == states.FAILURE
        assert isinstance(backend.get_result(task_id), ValueError)
        assert backend.get_traceback(task_id) == "T"
        assert backend.get_children(task_id) is None

    def test_the_parameter_is_called_task_id(self, backend: Any, new_id: NewId) -> None:
        """Celery's worker names it."""
        assert backend._get_task_meta_for(task_id=new_id())["status"] == states.PENDING

    def test_ids_may_be_uuids_or_bytes(self, app: Any, backend: Any) -> None:
        """As other backends take them, also where they are waited for."""
        import uuid

        task_id = uuid.uuid4()
        backend.store_result(task_id, 1, states.SUCCESS)
        for each in (task_id, str(task_id), str(task_id).encode()):
            assert backend.get_result(each) == 1
            assert app.AsyncResult(each).get(timeout=5) == 1
        backend.forget(task_id)
        assert backend.get_state(str(task_id)) == states.PENDING

    def test_exists_whatever_the_state(self, app: Any, backend: Any, new_id: NewId) -> None:
        """As soon as anybody has reported, and until it is forgotten."""
        task_id = new_id()
        assert not backend.task_result_exists(task_id)
        for state in (states.STARTED, states.RETRY, states.SUCCESS):
            backend.store_result(task_id, ValueError(), state) if state == states.RETRY else (
                backend.store_result(task_id, 1, state)
            )
            assert backend.task_result_exists(task_id)
        backend.forget(task_id)
        assert not backend.task_result_exists(task_id)

    def test_results_say_whether_they_exist(self, app: Any, backend: Any, new_id: NewId) -> None:
        """`AsyncResult.exists`."""
        result = app.AsyncResult(new_id())
        if not hasattr(result, "exists"):
            pytest.skip("AsyncResult.exists is new in Celery 5.7")
        assert not result.exists()
        backend.mark_as_done(result.id, 1)
        assert result.exists()


class TestForgetting:
    def test_may_be_repeated(self, app: Any, backend: Any, new_id: NewId) -> None:
        """Also of what never was."""
        task_id = new_id()
        backend.forget(task_id)
        backend.mark_as_done(task_id, 1)
        for _ in range(3):
            backend.forget(task_id)
        assert app.AsyncResult(task_id).state == states.PENDING

    def test_of_a_result_forgets_its_parents(self, app: Any, backend: Any, new_id: NewId) -> None:
        """The whole chain."""
        parent = app.AsyncResult(new_id())
        child = app.AsyncResult(new_id(), parent=parent)
        for result in (parent, child):
            backend.mark_as_done(result.id, 1)
        child.forget()
        assert not backend.task_result_exists(parent.id)
        assert not backend.task_result_exists(child.id)

    def test_what_is_stored_again_is_there_again(self, backend: Any, new_id: NewId) -> None:
        """A tombstone keeps nobody from running the task once more."""
        task_id = new_id()
        backend.mark_as_done(task_id, 1)
        backend.forget(task_id)
        backend.mark_as_done(task_id, 2)
        assert backend.get_result(task_id) == 2


class TestCache:
    def test_is_off_unless_told(
        self, backend: Any, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`result_cache_max` is -1."""
        task_id = new_id()
        backend.mark_as_done(task_id, 1)
        calls = count_calls(monkeypatch)
        backend.get_result(task_id)
        backend.get_result(task_id)
        assert calls["GetResult"] == 2
        assert not backend.is_cached(task_id)

    def test_serves_what_is_done(
        self, make_app: MakeApp, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One read, whoever asks; `reload_task_result` reads again, `forget` forgets."""
        app, task_id = make_app(result_cache_max=10), new_id()
        backend = app.backend
        backend.mark_as_done(task_id, 1)
        calls = count_calls(monkeypatch)
        assert [backend.get_result(task_id) for _ in range(3)] == [1, 1, 1]
        assert app.AsyncResult(task_id).get(timeout=5) == 1
        assert next(iter(backend.get_many([task_id])))[1]["result"] == 1
        assert dict(calls) == {"GetResult": 1}
        assert backend.is_cached(task_id)
        backend.reload_task_result(task_id)
        assert calls["GetResult"] == 2
        backend.forget(task_id)
        assert not backend.is_cached(task_id)
        assert backend.get_state(task_id) == states.PENDING

    def test_holds_as_many_as_told(self, make_app: MakeApp, new_id: NewId) -> None:
        """The oldest go."""
        backend = make_app(result_cache_max=2).backend
        ids = [new_id() for _ in range(3)]
        for task_id in ids:
            backend.mark_as_done(task_id, 1)
            backend.get_result(task_id)
        assert [backend.is_cached(task_id) for task_id in ids] == [False, True, True]


class TestEager:
    def test_results_that_are_not_stored_are_not_asked_for(
        self, make_app: MakeApp, new_id: NewId
    ) -> None:
        """Celery warns, as with any backend."""
        app = make_app(task_always_eager=True)
        with pytest.warns(RuntimeWarning, match="eager"):
            app.backend.get_task_meta(new_id())

    def test_results_are_stored_if_wanted(self, make_app: MakeApp, server: Server) -> None:
        """`task_store_eager_result`."""
        app = make_app(task_always_eager=True, task_store_eager_result=True)
        result = app.tasks["add"].delay(1, 2)
        assert app.AsyncResult(result.id).get(timeout=5) == 3
