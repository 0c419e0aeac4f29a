"""`AsyncResult`, `ResultSet` and `GroupResult` as a blocking program uses them."""

from __future__ import annotations

import copy
import datetime
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import resultd
from resultd import states
from resultd._effects import Call, Effect
from resultd.client import Client
from resultd.errors import IncompleteStream, TaskError, TaskRevokedError, UnavailableError
from resultd.results import AsyncResult
from tests.support.results import failed, later
from tests.support.timing import check_takes

NewId = Callable[[], str]


class TestGet:
    def test_a_value_that_is_there_is_returned(self, client: Client, new_id: NewId) -> None:
        """At once, and from the cache afterwards."""
        task_id = new_id()
        client.store_result(task_id, {"sum": 30})
        result = client.AsyncResult(task_id)
        assert result.get() == {"sum": 30}
        client.forget(task_id)
        assert result.get(timeout=0) == {"sum": 30}

    def test_a_value_that_comes_is_waited_for(self, client: Client, new_id: NewId) -> None:
        """Whatever states come before it."""
        task_id = new_id()
        client.store_result(task_id, None, "STARTED")
        later(0.1, lambda: client.store_result(task_id, 1, "PROGRESS"))
        later(0.2, lambda: client.store_result(task_id, ValueError(), "RETRY"))
        later(0.3, lambda: client.store_result(task_id, 7))
        assert client.AsyncResult(task_id).get(timeout=5) == 7

    @pytest.mark.parametrize("timeout", [0.05, 0.2, 0.35])
    def test_timeouts_are_exact(self, client: Client, new_id: NewId, timeout: float) -> None:
        """To some milliseconds, and never early."""
        client.server_info()

        def wait() -> None:
            with pytest.raises(resultd.TimeoutError):
                client.AsyncResult(new_id()).get(timeout=timeout)

        check_takes(timeout, timeout + 0.05, wait)

    def test_timeout_zero_looks_once(self, client: Client, new_id: NewId) -> None:
        """It finds what is there, and raises for what is not."""
        task_id = new_id()
        with pytest.raises(TimeoutError):
            client.AsyncResult(task_id).get(timeout=0)
        client.store_result(task_id, 1)
        assert client.AsyncResult(task_id).get(timeout=0) == 1

    def test_a_failure_is_raised_as_its_class(self, client: Client, new_id: NewId) -> None:
        """Or returned, without propagate; its traceback is the worker's."""
        result = failed(client, new_id(), ValueError("bad", 7))
        with pytest.raises(ValueError, match="bad") as caught:
            result.get()
        assert caught.value.args == ("bad", 7)
        assert isinstance(result.get(propagate=False), ValueError)
        assert "raise error" in (result.traceback or "")

    def test_an_unknown_class_is_a_task_error(self, client: Client, new_id: NewId) -> None:
        """With what the worker said."""

        class Local(Exception):
            pass

        with pytest.raises(TaskError, match="Local: no"):
            failed(client, new_id(), Local("no")).get()

    def test_stop_iteration_does_not_end_anything(self, client: Client, new_id: NewId) -> None:
        """A task that fails with it raises, where a bare one would end a generator silently."""
        ids = [new_id(), new_id()]
        failed(client, ids[0], StopIteration(5))
        client.store_result(ids[1], 1)
        with pytest.raises(TaskError, match="StopIteration"):
            list(client.ResultSet([client.AsyncResult(i) for i in ids]).iterate(timeout=5))

    def test_ignored_gives_none(self, client: Client, new_id: NewId) -> None:
        """Stored as IGNORED, or said to be ignored: nothing is waited for."""
        result = client.AsyncResult(new_id())
        client.store_result(result.id, None, "IGNORED")
        assert result.get(timeout=5) is None
        assert result.ready()
        unknown = client.AsyncResult(new_id())
        unknown.ignored = True
        assert unknown.get() is None

    def test_a_failed_parent_is_raised_while_waiting(self, client: Client, new_id: NewId) -> None:
        """Oldest first; unless follow_parents or propagate says otherwise."""
        root = client.AsyncResult(new_id())
        child = client.AsyncResult(new_id(), parent=client.AsyncResult(new_id(), parent=root))
        with pytest.raises(TimeoutError):
            child.get(timeout=0.05)
        later(0.1, lambda: failed(client, root.id, KeyError("root")))
        with pytest.raises(KeyError, match="root"):
            child.get(timeout=5)
        with pytest.raises(KeyError):
            child.get(timeout=5)
        with pytest.raises(TimeoutError):
            child.get(timeout=0.05, follow_parents=False)
        with pytest.raises(TimeoutError):
            child.get(timeout=0.05, propagate=False)

    def test_callbacks_are_called(self, client: Client, new_id: NewId) -> None:
        """callback with id and value, on_message with each state, on_interval while waiting."""
        task_id = new_id()
        client.store_result(task_id, None, "STARTED")
        for seconds, state in ((0.1, "PROGRESS"), (0.2, "SUCCESS")):
            later(seconds, partial(client.store_result, task_id, state, state))
        called: list[tuple[str, Any]] = []
        messages: list[str] = []
        ticks: list[float] = []
        value = client.AsyncResult(task_id).get(
            timeout=5,
            interval=0.02,
            callback=lambda *pair: called.append(pair),
            on_message=lambda meta: messages.append(meta["status"]),
            on_interval=lambda: ticks.append(time.monotonic()),
        )
        assert value == "SUCCESS"
        assert called == [(task_id, "SUCCESS")]
        assert messages == ["STARTED", "PROGRESS", "SUCCESS"]
        assert 4 <= len(ticks) <= 12

    def test_waiting_can_be_forbidden(self, client: Client, new_id: NewId) -> None:
        """As inside a task; allowed again in a block."""
        result = client.AsyncResult(new_id())
        client.store_result(result.id, 1)
        with resultd.denied_join_result():
            with pytest.raises(RuntimeError, match="within a task"):
                result.get()
            with pytest.raises(RuntimeError):
                client.ResultSet([result]).get()
            assert result.get(disable_sync_subtasks=False) == 1
            with resultd.allow_join_result():
                assert result.get() == 1

    def test_after_forget_it_waits_for_the_next_report(self, client: Client, new_id: NewId) -> None:
        """And the record does not exist meanwhile."""
        result = client.AsyncResult(new_id())
        client.store_result(result.id, 1)
        assert result.get() == 1
        result.forget()
        assert not result.exists()
        assert result.state == "PENDING"
        with pytest.raises(TimeoutError):
            result.get(timeout=0.05)
        later(0.05, lambda: client.store_result(result.id, 2))
        assert result.get(timeout=5) == 2

    def test_a_value_that_cannot_be_read_raises(self, client: Client, new_id: NewId) -> None:
        """But does not spoil the batch it came in."""
        registry = resultd.serialization.Registry()
        registry.enable_pickle()
        ids = [new_id(), new_id()]
        with Client(client.url.shown, serializers=registry, serializer="pickle") as other:
            other.store_result(ids[0], {1})
        client.store_result(ids[1], 1)
        results = client.ResultSet([client.AsyncResult(i) for i in ids])
        assert results.ready()
        assert results[1].get() == 1
        with pytest.raises(resultd.SecurityError):
            results[0].get(propagate=False)

    def test_threads_wait_on_one_stream(self, client: Client, new_id: NewId) -> None:
        """Fifty threads, each with its own task, and the same task for all."""
        shared, ids = new_id(), [new_id() for _ in range(50)]
        values: list[Any] = []

        def wait(task_id: str) -> None:
            values.append(client.AsyncResult(task_id).get(timeout=20))
            values.append(client.AsyncResult(shared).get(timeout=20))

        threads = [threading.Thread(target=wait, args=(i,)) for i in ids]
        for thread in threads:
            thread.start()
        client.store_results([(task_id, n) for n, task_id in enumerate(ids)])
        client.store_result(shared, "all")
        for thread in threads:
            thread.join(20)
        assert sorted(v for v in values if v != "all") == list(range(50))
        assert values.count("all") == 50


class TestState:
    def test_a_task_nobody_reported_is_pending(self, client: Client, new_id: NewId) -> None:
        """It has no fields, it is not ready, it raises nothing."""
        result = client.AsyncResult(new_id())
        assert result.state == result.status == "PENDING"
        assert (result.result, result.info, result.return_value) == (None, None, None)
        for asked in (result.ready, result.successful, result.failed, result.retry, result.exists):
            assert asked() is False
        for field in ("traceback", "children", "name", "args", "kwargs", "worker", "date_done"):
            assert getattr(result, field) is None
        assert (result.retries, result.queue, result.progress, result.parent) == (None,) * 4
        assert result.maybe_throw() is None

    @pytest.mark.parametrize(
        ("state", "ready", "successful", "failed", "retry"),
        [
            ("RECEIVED", False, False, False, False),
            ("STARTED", False, False, False, False),
            ("PROGRESS", False, False, False, False),
            ("CUSTOM_ONE", False, False, False, False),
            ("RETRY", False, False, False, True),
            ("REJECTED", False, False, False, False),
            ("SUCCESS", True, True, False, False),
            ("FAILURE", True, False, True, False),
            ("REVOKED", True, False, False, False),
            ("IGNORED", True, False, False, False),
        ],
    )
    def test_states_answer_as_in_celery(
        self,
        client: Client,
        new_id: NewId,
        state: str,
        ready: bool,
        successful: bool,
        failed: bool,
        retry: bool,
    ) -> None:
        """REVOKED is not failed, IGNORED is ready, a custom state is neither."""
        result = client.AsyncResult(new_id())
        client.store_result(result.id, None, state)
        assert result.state == state
        assert result.exists()
        asked = (result.ready(), result.successful(), result.failed(), result.retry())
        assert asked == (ready, successful, failed, retry)

    def test_what_a_worker_says_is_there(self, client: Client, new_id: NewId) -> None:
        """Every field of a report has its property."""
        parent, result = new_id(), client.AsyncResult(new_id())
        client.store_result(
            result.id,
            5,
            name="add",
            args=[2, 3],
            kwargs={"k": 1},
            worker="w@h",
            queue="q",
            retries=2,
            parent_id=parent,
            root_id=parent,
            labels={"a": "b"},
            attempt=3,
            progress=(1, 2, "half"),
        )
        assert (result.name, result.args, result.kwargs) == ("add", [2, 3], {"k": 1})
        assert (result.worker, result.queue, result.retries) == ("w@h", "q", 2)
        assert result.progress == (1, 2, "half")
        assert isinstance(result.date_done, datetime.datetime)
        assert abs(result.date_done.timestamp() - time.time()) < 60
        assert result.parent == parent
        (listed,) = [m for m in client.list_results(name="add") if m["task_id"] == result.id]
        assert (listed["labels"], listed["attempt"], listed["root_id"]) == ({"a": "b"}, 3, parent)

    def test_progress_is_read_from_a_dict(self, client: Client, new_id: NewId) -> None:
        """info is the dict, progress its current and total."""
        result = client.AsyncResult(new_id())
        client.store_result(result.id, {"current": 3, "total": 10}, "PROGRESS")
        assert result.info == {"current": 3, "total": 10}
        assert result.progress == (3, 10, "")

    def test_retry_carries_the_exception(self, client: Client, new_id: NewId) -> None:
        """As result, while it is not raised."""
        result = client.AsyncResult(new_id())
        client.store_result(result.id, KeyError("again"), "RETRY")
        assert isinstance(result.result, KeyError)
        assert isinstance(result.maybe_throw(), KeyError)

    def test_maybe_throw_raises_failures_only(self, client: Client, new_id: NewId) -> None:
        """And calls back otherwise."""
        called: list[Any] = []
        good = client.AsyncResult(new_id())
        client.store_result(good.id, 1)
        assert good.maybe_reraise(callback=lambda *pair: called.append(pair)) == 1
        assert called == [(good.id, 1)]
        with pytest.raises(OSError, match="x"):
            failed(client, new_id(), OSError("x")).maybe_throw()


class TestIdentity:
    def test_it_is_its_id(self, client: Client) -> None:
        """Equal to results of the same id and to the id; hashed, shown, copied by it."""
        result = client.AsyncResult("x")
        assert result == client.AsyncResult("x") == "x"
        assert result != client.AsyncResult("y")
        assert result != 1
        assert {result: 1}["x"] == 1  # type: ignore[index]  # equal to the str by design
        assert (str(result), repr(result)) == ("x", "<AsyncResult: x>")
        assert copy.copy(result) == result
        result.task_id = "z"
        assert result.id == "z"
        assert AsyncResult[int]  # type: ignore[misc]  # at run time, as with Celery
        with pytest.raises(ValueError, match="valid id, not <class 'NoneType'>"):
            AsyncResult(None)  # type: ignore[arg-type]  # the mistake it is about

    def test_it_can_be_pickled(self, client: Client, new_id: NewId) -> None:
        """With its client and parent; what comes out works."""
        result = client.AsyncResult(new_id(), parent=client.AsyncResult("p"))
        client.store_result(result.id, 9)
        back = pickle.loads(pickle.dumps(result))
        assert back.get(follow_parents=False) == 9
        assert back.parent == "p"
        back.backend.close()

    def test_it_survives_tuples(self, client: Client) -> None:
        """as_tuple and result_from_tuple are inverse, JSON's lists included."""
        import json

        result = client.AsyncResult("c", parent=client.AsyncResult("p"))
        group = client.GroupResult("g", [result, client.GroupResult("n", [])], parent=result)
        for thing in (result, group):
            as_json = json.loads(json.dumps(thing.as_tuple()))
            for form in (thing.as_tuple(), as_json):
                back = resultd.result_from_tuple(form, app=client)
                assert back == thing
                assert back.as_tuple() == thing.as_tuple()
        assert result.as_list() == ["c", "p"]
        assert resultd.result_from_tuple(result) is result
        assert resultd.result_from_tuple(("bare", None), client) == "bare"
        for wrong in ((1, 2, 3), "ab", None):
            with pytest.raises(ValueError, match="tuple"):
                resultd.result_from_tuple(wrong, client)

    def test_the_five_tuple_is_taken_as_said(self, client: Client, new_id: NewId) -> None:
        """A final state without asking the server; any other is asked for."""
        done = resultd.result_from_tuple((new_id(), "SUCCESS", 3, None, [("kid", None)]), client)
        assert (done.get(), done.state, done.children) == (3, "SUCCESS", ["kid"])
        bad = resultd.result_from_tuple((new_id(), "FAILURE", "boom", "tb", None), client)
        with pytest.raises(TaskError, match="boom"):
            bad.get()
        assert bad.traceback == "tb"
        assert resultd.result_from_tuple((new_id(), "STARTED", None, None, []), client).state == (
            "PENDING"
        )


class TestGraph:
    def family(self, client: Client, new_id: NewId) -> list[AsyncResult]:
        """A task that called two, one of which called a group of two."""
        root, left, right, one, two = (client.AsyncResult(new_id()) for _ in range(5))
        group = client.GroupResult(new_id(), [one, two]).save()
        client.store_result(one.id, 1)
        client.store_result(two.id, 2)
        client.store_result(right.id, "right", children=[group])
        client.store_result(left.id, "left")
        client.store_result(root.id, "root", children=[left, right])
        return [root, left, right, one, two]

    def test_children_come_from_what_is_stored(self, client: Client, new_id: NewId) -> None:
        """Tasks as results, groups with their members."""
        root, left, right, one, two = self.family(client, new_id)
        assert root.children == [left, right]
        assert left.children is None
        assert right.children is not None
        assert right.children[0].results == [one, two]

    def test_the_graph_is_walked_breadth_first(self, client: Client, new_id: NewId) -> None:
        """iterdeps, collect, get_leaf and build_graph agree."""
        root, left, right, one, two = self.family(client, new_id)
        (group,) = right.children or []
        nodes = [root, left, right, group, one, two]
        assert [node for _, node in root.iterdeps()] == nodes
        assert [parent for parent, _ in root.iterdeps()] == [None, root, root, right, group, group]
        values = ["root", "left", "right", [1, 2], 1, 2]
        assert list(root.collect(timeout=5)) == list(zip(nodes, values, strict=True))
        assert root.get_leaf() == 2
        graph = root.build_graph()
        assert graph[root] == [left, right]
        assert graph.topsort()[-1] == root
        assert root.graph is root.graph

    def test_a_node_that_is_not_ready_is_said(self, client: Client, new_id: NewId) -> None:
        """Unless intermediate results are wanted."""
        root = client.AsyncResult(new_id())
        client.store_result(root.id, 1, children=[new_id()])
        with pytest.raises(IncompleteStream):
            list(root.iterdeps())
        assert len(list(root.iterdeps(intermediate=True))) == 2

    def test_children_in_a_circle_end(self, client: Client, new_id: NewId) -> None:
        """What is stored may be nonsense; each node is entered once."""
        one, two = new_id(), new_id()
        client.store_result(one, 1, children=[two])
        client.store_result(two, 2, children=[one])
        assert [str(node) for _, node in client.AsyncResult(one).iterdeps()] == [one, two, one]

    def test_collecting_outlives_a_break(
        self, client: Client, new_id: NewId, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A read in the middle that gets no answer is tried again, as every read."""
        child_id, task_id = new_id(), new_id()
        client.store_result(child_id, "leaf")
        client.store_result(task_id, "top", children=[child_id])
        pairs = client.AsyncResult(task_id).collect()
        assert next(pairs)[1] == "top"
        endpoint = client._open()
        handle = endpoint.handle
        cut = UnavailableError("cut")
        cut.code = "UNAVAILABLE"
        breaks = [cut]

        def breaking(effect: Effect) -> Any:
            if breaks and isinstance(effect, Call):
                raise breaks.pop()
            return handle(effect)

        monkeypatch.setattr(endpoint, "handle", breaking)
        assert next(pairs)[1] == "leaf"
        assert not breaks

    def test_parents_are_found_through_the_record(self, client: Client, new_id: NewId) -> None:
        """result.parent.parent.get(), of a result built from its id alone."""
        ids = [new_id() for _ in range(3)]
        client.store_result(ids[0], 5)
        client.store_result(ids[1], 15, parent_id=ids[0])
        client.store_result(ids[2], 20, parent_id=ids[1])
        result = client.AsyncResult(ids[2])
        assert result.get(timeout=5) == 20
        assert result.parent.get() == 15
        assert result.parent.parent.get() == 5
        assert result.parent.parent.parent is None
        assert result.as_list() == [ids[2]]  # found is not given: forget() leaves them alone
        result.forget()
        assert client.AsyncResult(ids[1]).exists()

    def test_forget_takes_given_parents_along(self, client: Client, new_id: NewId) -> None:
        """As in Celery."""
        parent = client.AsyncResult(new_id())
        child = client.AsyncResult(new_id(), parent=parent)
        client.store_results([(parent.id, 1), (child.id, 2)])
        child.forget()
        assert not parent.exists()

    def test_a_group_can_be_the_parent(self, client: Client, new_id: NewId) -> None:
        """Its failed member is raised while the child waits; forget takes its members along."""
        members = [client.AsyncResult(new_id()) for _ in range(2)]
        body = client.AsyncResult(new_id(), parent=client.GroupResult(new_id(), members))
        client.store_result(members[0].id, 1)
        failed(client, members[1].id, KeyError("header"))
        with pytest.raises(KeyError, match="header"):
            body.get(timeout=5)
        body.forget()
        assert not any(member.exists() for member in members)


class TestRevoke:
    def test_a_task_nobody_started_is_revoked_at_once(self, client: Client, new_id: NewId) -> None:
        """And get() raises, or returns, TaskRevokedError."""
        result = client.AsyncResult(new_id())
        result.revoke(terminate=True, signal="SIGTERM", wait=True, timeout=5)
        assert result.state == "REVOKED"
        with pytest.raises(TaskRevokedError):
            result.get(timeout=5)
        assert isinstance(result.get(propagate=False), TaskRevokedError)
        assert not result.failed()

    def test_a_running_task_is_revoked_by_its_worker(self, client: Client, new_id: NewId) -> None:
        """wait returns when the time is up, or when it is terminal."""
        result = client.AsyncResult(new_id())
        client.store_result(result.id, None, "STARTED")
        result.revoke(signal=signal.SIGKILL, wait=True, timeout=0.05)
        assert result.state == "STARTED"
        later(0.1, lambda: client.store_result(result.id, "stopped", "REVOKED"))
        result.revoke(wait=True, timeout=5)
        assert result.state == "REVOKED"
        with pytest.raises(TaskRevokedError, match="stopped"):
            result.get()

    def test_stamps_are_the_brokers(self, client: Client) -> None:
        """Said, not ignored."""
        with pytest.raises(NotImplementedError, match="stamped"):
            client.AsyncResult("x").revoke_by_stamped_headers({"a": "b"})


@pytest.fixture
def default(
    client: Client, server: resultd.testing.Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """RESULTD_URL names the server, and no default client was made yet."""
    from resultd import client as module

    monkeypatch.setenv("RESULTD_URL", server.url)
    monkeypatch.setattr(module, "_default", None)
    yield
    module.default_client().close()


@pytest.mark.usefixtures("default")
def test_without_a_client_the_default_one_is_used(client: Client, new_id: NewId) -> None:
    """`resultd.AsyncResult(id)` and its family go to RESULTD_URL."""
    task_id = new_id()
    client.store_result(task_id, 3)
    result = resultd.AsyncResult(task_id)
    assert result.get(timeout=5) == 3
    assert resultd.ResultSet([result]).get() == [3]
    group = resultd.GroupResult(new_id(), [result]).save()
    assert resultd.GroupResult.restore(group.id).get() == [3]
    assert resultd.result_from_tuple(group.as_tuple()) == group
    group.delete()
    assert list(resultd.ResultSet([])) == []
    assert resultd.AsyncResult(task_id, app=client).backend is client
    assert result.state == states.SUCCESS
