"""Results as Celery knows them, blocking: `AsyncResult`, `ResultSet`, `GroupResult`.

    result = client.AsyncResult("t1")
    result.get(timeout=10)                  # the value, or the task's exception is raised
    result.state, result.info               # each read asks the server until the task is ready

    group = client.GroupResult("g1", [client.AsyncResult(i) for i in ids]).save()
    for value in group.iterate(timeout=60): ...   # values, as they complete

Signatures and behaviour are those of Celery 5.7. On purpose different: IGNORED is ready, and
its value None; `then()` fires by itself, and after `forget()` with the next report; timeouts
are exact; `parent` is found through the record; `join()` takes on_message; `interval` only paces
on_interval, nothing is polled.
All that asks the server may raise `UnavailableError` (nobody answered within the address's
`timeout`), `AuthenticationError` and `PermissionDeniedError`.

A set may change while it is waited for: each call is about what it held, nested sets included,
when the call began (for an iteration: when the first value was asked for).

A `get()` of a task that was forgotten, or whose record has expired, waits for the next report,
as with Celery: pass a timeout, or ask `exists()`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from resultd import _blocking, states
from resultd._effects import Op
from resultd._graph import DependencyGraph
from resultd._group import GroupCore, from_tuple
from resultd._records import Progress
from resultd._result import STAMPS_ARE_THE_BROKERS, Meta, ResultBase, ResultCore
from resultd._set import SetCore

__all__ = [
    "AsyncResult",
    "EagerResult",
    "GroupResult",
    "ResultBase",
    "ResultSet",
    "allow_join_result",
    "assert_will_not_block",
    "denied_join_result",
    "result_from_tuple",
]

allow_join_result = _blocking.allow_join_result
denied_join_result = _blocking.denied_join_result
assert_will_not_block = _blocking.assert_will_not_block

if TYPE_CHECKING:
    from resultd._eager import EagerResult

_Callback = Callable[[str, Any], object] | None
_OnMessage = Callable[[Meta], object] | None
_OnInterval = Callable[[], object] | None


def _client_of(given: Any) -> Any:
    """Return the client behind a `backend` or `app`; the process's default one for None."""
    if given is None:
        from resultd.client import default_client

        return default_client()
    return getattr(given, "backend", given)


class AsyncResult(ResultCore):
    """The result of one task.

        result = resultd.AsyncResult("t1", backend=client)
        value = result.get(timeout=10)

    `backend` and `app` take a `Client`; without either, the process's default client is used.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 (Celery's name)
        backend: Any = None,
        task_name: str | None = None,
        app: Any = None,
        parent: Any = None,
    ) -> None:
        super().__init__(id, backend, task_name, app, parent)
        if self.backend is None:
            self.backend = _client_of(None)

    def _run(self, op: Op[Any]) -> Any:
        return self.backend.run(op)

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: _Callback = None,
        on_message: _OnMessage = None,
        on_interval: _OnInterval = None,
        disable_sync_subtasks: bool = True,
        EXCEPTION_STATES: frozenset[str] = states.EXCEPTION_STATES,  # noqa: N803  (Celery's name)
        PROPAGATE_STATES: frozenset[str] = states.PROPAGATE_STATES,  # noqa: N803  (Celery's name)
    ) -> Any:
        """Wait until the task is ready and return its value; None for IGNORED.

        Args:
            timeout: seconds, exact to milliseconds; None waits for ever, 0 looks once.
            propagate: raise the task's exception; else it is returned.
            interval: seconds between calls of `on_interval`, None for 0.5; nothing is polled.
            no_ack: without meaning here.
            follow_parents: raise the exception of a parent that failed, oldest first.
            callback: called with the id and the value.
            on_message: called with the meta of every state seen on the way.
            on_interval: called without arguments while waiting.
            disable_sync_subtasks: raise where waiting is forbidden: inside a task.
            EXCEPTION_STATES: without meaning here, as in Celery.
            PROPAGATE_STATES: states whose exception is raised.

        Raises:
            TimeoutError: the task was not ready in time.
            TaskRevokedError: it was revoked.
            TaskError: it failed with a class not known here; otherwise that class.
            SerializationError: its value cannot be read here.
            RuntimeError: waiting is forbidden here.
        """
        return self._run(
            self._get(
                timeout,
                propagate,
                interval,
                no_ack,
                follow_parents,
                callback,
                on_message,
                on_interval,
                disable_sync_subtasks,
                EXCEPTION_STATES,
                PROPAGATE_STATES,
            )
        )

    wait = get

    def ready(self) -> bool:
        """Say whether the task is in a terminal state, IGNORED included."""
        return bool(self._run(self._is_ready()))

    def successful(self) -> bool:
        """Say whether it is in SUCCESS; False before it is ready."""
        return bool(self._run(self._is_in(states.SUCCESS)))

    def failed(self) -> bool:
        """Say whether it is in FAILURE; False before it is ready, and when revoked."""
        return bool(self._run(self._is_in(states.FAILURE)))

    def retry(self) -> bool:
        """Say whether it failed and will be tried again."""
        return bool(self._run(self._is_in(states.RETRY)))

    def exists(self) -> bool:
        """Say whether anybody has reported this task, and the record is still there."""
        return bool(self._run(self._exists()))

    def maybe_throw(self, propagate: bool = True, callback: _Callback = None) -> Any:
        """Raise the task's exception if it failed; else return what there is, at once."""
        return self._run(self._maybe_throw(propagate, callback))

    maybe_reraise = maybe_throw

    def forget(self) -> None:
        """Delete the record, and those of the parents this result was given."""
        self._run(self._forget())

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Ask that the task be stopped; one that nobody has started is REVOKED at once.

        Args:
            connection: without meaning here.
            terminate: end the work even if it has begun.
            signal: with what: 'SIGTERM', 'TERM', `signal.SIGTERM`.
            wait: return only when the task is in a terminal state.
            timeout: seconds to wait at most, with `wait`, for the server to take it and then for
                that state. That it was not reached is no error.

        Raises:
            UnavailableError: no server took it.
        """
        self._run(self._revoke(terminate, signal, wait, timeout))

    def revoke_by_stamped_headers(
        self,
        headers: Any,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Celery's; stamps are the broker's affair.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(STAMPS_ARE_THE_BROKERS)

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[Any, Any]]:
        """Iterate over (parent, node) pairs, breadth first, from (None, self).

        Raises:
            IncompleteStream: a node is not ready, and `intermediate` is false.
        """
        return self._iterate_op(self._iterdeps(intermediate))

    def collect(self, intermediate: bool = False, **kwargs: Any) -> Iterator[tuple[Any, Any]]:
        """Iterate over (node, value) pairs, breadth first; `kwargs` go to `get()`."""
        return self._iterate_op(self._collect(intermediate, **kwargs))

    def get_leaf(self) -> Any:
        """Return the value of the last node."""
        return self._run(self._leaf())

    def build_graph(
        self, intermediate: bool = False, formatter: Callable[[Any], str] | None = None
    ) -> DependencyGraph:
        """Return the graph of this result and its children.

        Raises:
            IncompleteStream: as `iterdeps`.
        """
        graph: DependencyGraph = self._run(self._build_graph(intermediate, formatter))
        return graph

    def _iterate_op(self, op: Op[None]) -> Iterator[Any]:
        return self.backend.iterate(op)  # type: ignore[no-any-return]  # a Client

    def _get_task_meta(self) -> Meta:
        meta: Meta = self._run(self._read())
        return meta

    @property
    def parent(self) -> Any:
        """The parent given, else the one the record names (asked at each access); or None."""
        return self._run(self._find_parent())

    @parent.setter
    def parent(self, parent: Any) -> None:
        self._parent = parent

    @property
    def graph(self) -> DependencyGraph:
        """`build_graph()`, made once."""
        if "_graph" not in self.__dict__:
            self.__dict__["_graph"] = self.build_graph()
        graph: DependencyGraph = self.__dict__["_graph"]
        return graph

    @property
    def state(self) -> str:
        """The state, asked until it is terminal; PENDING of a task nobody has reported."""
        return str(self._get_task_meta()["status"])

    status = state

    @property
    def result(self) -> Any:
        """The value; the exception with RETRY, FAILURE, REVOKED; else what the state carries."""
        return self._get_task_meta()["result"]

    info = result
    return_value = result

    @property
    def traceback(self) -> str | None:
        """The worker's stack as text."""
        return self._get_task_meta().get("traceback")

    @property
    def children(self) -> list[Any] | None:
        """Results of what the task called; None if nothing is stored."""
        found: list[Any] | None = self._run(self._children())
        return found

    @property
    def progress(self) -> Progress | None:
        """How far the task has come: current, total, message."""
        return self._get_task_meta().get("progress")

    @property
    def name(self) -> str | None:
        """The task's name."""
        return self._get_task_meta().get("name")

    @property
    def args(self) -> Any:
        """Its positional arguments."""
        return self._get_task_meta().get("args")

    @property
    def kwargs(self) -> Any:
        """Its keyword arguments."""
        return self._get_task_meta().get("kwargs")

    @property
    def worker(self) -> str | None:
        """Who worked on it."""
        return self._get_task_meta().get("worker")

    @property
    def date_done(self) -> datetime.datetime | None:
        """When it became terminal, in UTC."""
        return self._get_task_meta().get("date_done")

    @property
    def retries(self) -> int | None:
        """How often it was retried."""
        return self._get_task_meta().get("retries")

    @property
    def queue(self) -> str | None:
        """The queue it came through."""
        return self._get_task_meta().get("queue")


class ResultSet(SetCore):
    """Results that are waited for and asked about together.

    results = resultd.ResultSet([client.AsyncResult(i) for i in ids])
    values = results.get(timeout=60)        # in the set's order
    """

    def _run(self, op: Op[Any]) -> Any:
        return self.backend.run(op)

    def _default_backend(self) -> Any:
        return _client_of(None)

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = 0.5,
        callback: _Callback = None,
        no_ack: bool = True,
        on_message: _OnMessage = None,
        disable_sync_subtasks: bool = True,
        on_interval: _OnInterval = None,
    ) -> Any:
        """Wait for all and return their values in the set's order; as `join_native`.

        Raises:
            TimeoutError: not all were ready in time.
            Exception: a task's own, as soon as it arrives, with `propagate`.
        """
        return self._run(
            self._get(
                timeout,
                propagate,
                interval,
                callback,
                no_ack,
                on_message,
                disable_sync_subtasks,
                on_interval,
            )
        )

    def join(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = 0.5,
        callback: _Callback = None,
        no_ack: bool = True,
        on_message: _OnMessage = None,
        disable_sync_subtasks: bool = True,
        on_interval: _OnInterval = None,
    ) -> list[Any]:
        """Wait for all in the set's order; a failure is raised when its turn comes.

        With `callback` it is called in that order and an empty list is returned.
        """
        op = self._join(
            timeout, propagate, interval, callback, on_message, disable_sync_subtasks, on_interval
        )
        values: list[Any] = self._run(op)
        return values

    def join_native(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = 0.5,
        callback: _Callback = None,
        no_ack: bool = True,
        on_message: _OnMessage = None,
        on_interval: _OnInterval = None,
        disable_sync_subtasks: bool = True,
    ) -> list[Any] | None:
        """Wait for all on one stream; a failure is raised as soon as it arrives.

        With `callback` it is called in the order of completion and None is returned.
        """
        op = self._join_native(
            timeout, propagate, interval, callback, on_message, on_interval, disable_sync_subtasks
        )
        values: list[Any] | None = self._run(op)
        return values

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: _OnMessage = None,
        on_interval: _OnInterval = None,
    ) -> Iterator[tuple[str, Any]]:
        """Iterate over (id, meta) as tasks complete; of a nested set, its id and results."""
        return self._iterate_op(self._iter_native(timeout, interval, on_message, on_interval))

    def iterate(
        self, timeout: float | None = None, propagate: bool = True, interval: float | None = 0.5
    ) -> Iterator[Any]:
        """Iterate over values as tasks complete.

        Raises:
            TimeoutError: `timeout` seconds after the first value was asked for.
            Exception: a task's own, with `propagate`; the iteration is over then.
        """
        return self._iterate_op(self._iterate(timeout, propagate, interval))

    def ready(self) -> bool:
        """Say whether all are ready; True of an empty set."""
        return bool(self._run(self._is_ready()))

    def waiting(self) -> bool:
        """Say whether any is not ready."""
        return not self.ready()

    def successful(self) -> bool:
        """Say whether all are in SUCCESS; True of an empty set."""
        return bool(self._run(self._is_successful()))

    def failed(self) -> bool:
        """Say whether any is in FAILURE."""
        return bool(self._run(self._count(states.FAILURE)))

    def completed_count(self) -> int:
        """Count those in SUCCESS (Celery's meaning of completed)."""
        return int(self._run(self._completed()))

    def maybe_throw(self, callback: _Callback = None, propagate: bool = True) -> None:
        """Call `maybe_throw` of each."""
        self._run(self._maybe_throw(callback, propagate))

    maybe_reraise = maybe_throw

    def forget(self) -> None:
        """Delete every record, and those of the parents the results were given."""
        self._run(self._forget())

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Ask that all be stopped, in one call; see `AsyncResult.revoke`."""
        self._run(self._revoke(terminate, signal, wait, timeout))

    def _iterate_op(self, op: Op[None]) -> Iterator[Any]:
        if not self.results:
            return iter(())
        return self.backend.iterate(op)  # type: ignore[no-any-return]  # a Client


class GroupResult(GroupCore, ResultSet):
    """A `ResultSet` with an id, which can be saved and restored.

    group = client.GroupResult("g1", results).save()
    client.restore_group("g1").get(timeout=60)
    """

    def save(self, backend: Any = None) -> GroupResult:
        """Keep the group on the server, sealed; returns it.

        Nested groups are kept as groups of their own. What was kept under the same id with
        other members is replaced.

        Raises:
            ValueError: the group has no id.
            TypeError: it holds a set without id.
        """
        client = _client_of(backend) if backend is not None else self.backend
        client.run(client.groups.save(self))
        return self

    def delete(self, backend: Any = None) -> None:
        """Delete what was saved; no result is forgotten, no nested group deleted."""
        client = _client_of(backend) if backend is not None else self.backend
        client.run(client.groups.delete(self.id))

    @classmethod
    def restore(cls, id: str, backend: Any = None, app: Any = None) -> Any:  # noqa: A002  (Celery's name)
        """Return the group saved under an id, None if there is none."""
        client = _client_of(backend if backend is not None else app)
        return client.run(client.groups.restore(id))


def result_from_tuple(r: Any, app: Any = None) -> Any:
    """Build the result that `as_tuple()` described; a result is returned as it is.

    Takes `((id, parent), nodes)` with tuples or lists, and
    `(task_id, status, result, traceback, children)`, whose final states are taken as said.

    Raises:
        ValueError: `r` is neither.
    """
    if isinstance(r, ResultBase):
        return r
    return from_tuple(r, _client_of(app))


def __getattr__(name: str) -> Any:
    if name == "EagerResult":  # derives from AsyncResult: loaded after it
        from resultd._eager import EagerResult

        return EagerResult
    raise AttributeError(f"module 'resultd.results' has no attribute {name!r}")
