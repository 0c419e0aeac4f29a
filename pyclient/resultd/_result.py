"""What a task's result is and does, for threads and asyncio alike.

Identity, cache and callbacks are plain methods; what needs the server is an operation, which
`results.AsyncResult` and `aio.AsyncResult` drive.
"""

from __future__ import annotations

import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from resultd import _blocking, _failures, _records, states
from resultd._deadline import Deadline
from resultd._effects import Emit, Op, each
from resultd._graph import DependencyGraph
from resultd._pending import Pending, read_limit
from resultd._promise import Promise
from resultd._watcher import Callback
from resultd.errors import IncompleteStream, ResultdError, SerializationError
from resultd.errors import TimeoutError as WaitTimeout
from resultd.v1 import task_pb2

if TYPE_CHECKING:
    from resultd._core import ClientCore

Meta = dict[str, Any]

#: What a task nobody has reported looks like.
UNKNOWN: Mapping[str, Any] = types.MappingProxyType({"status": states.PENDING, "result": None})

STAMPS_ARE_THE_BROKERS = (
    "stamped headers are known to the broker only: revoke by id, or list_results() first"
)


class ResultBase:
    """Base of all results, as in Celery: `isinstance(x, ResultBase)` says what x is."""

    parent: Any = None


class ResultCore(ResultBase):
    """The result of one task."""

    TimeoutError = WaitTimeout

    app: Any = None
    id: Any = None
    backend: Any = None

    def __init__(
        self,
        id: str,  # noqa: A002 (Celery's name)
        backend: Any = None,
        task_name: str | None = None,
        app: Any = None,
        parent: Any = None,
    ) -> None:
        if id is None:
            raise ValueError(f"AsyncResult requires valid id, not {type(id)}")
        self.app = app
        self.id = id
        self.backend = backend if backend is not None else getattr(app, "backend", app)
        self._parent = parent
        self._cache: Meta | None = None
        self._ignored = False
        self._callback: Callback | None = None

    # Who this is

    @property
    def task_id(self) -> Any:
        """The id; may be assigned."""
        return self.id

    @task_id.setter
    def task_id(self, id: str) -> None:  # noqa: A002 (Celery's name)
        self.id = id

    @property
    def ignored(self) -> bool:
        """Whether nobody will store a result; `get()` then returns None at once."""
        return self._ignored

    @ignored.setter
    def ignored(self, value: bool) -> None:
        self._ignored = value

    @property
    def supports_native_join(self) -> bool:
        """True: many results are waited for on one stream."""
        return True

    def as_tuple(self) -> tuple[Any, None]:
        """Return what `result_from_tuple` takes."""
        parent = self._parent
        return (self.id, parent.as_tuple() if parent is not None else None), None

    def as_list(self) -> list[str]:
        """Return the id, then those of the parents this result was given."""
        return [self.id, *(parent.id for parent in self._ancestors())]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ResultCore):
            return bool(other.id == self.id)
        if isinstance(other, str):
            return bool(other == self.id)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __copy__(self) -> Any:
        return type(self)(self.id, self.backend, None, self.app, self._parent)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.__reduce_args__()

    def __reduce_args__(self) -> tuple[Any, ...]:
        return self.id, self.backend, None, None, self._parent

    __class_getitem__: Any = classmethod(types.GenericAlias)

    def _ancestors(self) -> Iterator[Any]:
        """Iterate over the parents this result was given, nearest first."""
        node = self._parent
        while node is not None:
            yield node
            node = node._parent

    def _leaves(self) -> list[ResultCore]:
        """Return this one: for sets, the results of single tasks."""
        return [self]

    # What is known here

    def _accept(self, meta: task_pb2.TaskMeta) -> Meta:
        """Take a record; keeps it if it is terminal."""
        found = self._client.meta_of(meta)
        if meta.terminal:
            self._settle(found)
        return found

    def _settle(self, meta: Meta) -> None:
        self._cache = meta
        promise = self.__dict__.get("_on_ready")
        if promise is not None:
            self._close_callback()
            promise(self)

    def _unsettle(self) -> None:
        """Take it that the task was forgotten: it is ready again with its next report."""
        self._cache = None
        self._close_callback()
        promise = self.__dict__.get("_on_ready")
        if promise is not None:
            promise.renew()

    @property
    def _client(self) -> ClientCore:
        return self.backend  # type: ignore[no-any-return]  # Celery's name for what it is here

    @property
    def on_ready(self) -> Promise:
        """The promise behind `then()`."""
        # setdefault is one step: two threads get the same one.
        return self.__dict__.setdefault("_on_ready", Promise())  # type: ignore[no-any-return]  # typed above

    def then(
        self,
        callback: Callable[[Any], object],
        on_error: Callable[[BaseException], object] | None = None,
        weak: bool = False,
    ) -> Promise:
        """Call `callback(result)` once the task is ready; by itself, nobody has to wait.

        It is called from the thread (for asyncio: the task) that brings results, at once if
        the task is known to be ready. It must be short and must not wait for results. What it
        raises goes to `on_error`, else to the log. `weak` lets the callback go with the result.

        After `forget()` the task is ready with its next report, as for `get()`.
        """
        promise = self.on_ready
        if self._cache is not None and not promise.ready:
            promise(self)
        promise.then(callback, on_error)
        if promise.has_listeners:
            if self._callback is None:
                self._callback = self._listen(weak)
            else:
                self._callback.join()
        return promise

    def throw(self, *args: Any, **kwargs: Any) -> None:
        """Throw an exception into the promise behind `then()`."""
        self.on_ready.throw(*args, **kwargs)

    def _listen(self, weak: bool) -> Callback:
        watcher, owner = self._client.watcher(), self._client.owner
        if not weak:
            return Callback(watcher, [self.id], self._accept, self.on_ready.throw, owner)
        me = weakref.ref(self)

        def accept(meta: task_pb2.TaskMeta) -> None:
            result = me()
            if result is not None:
                result._accept(meta)

        callback = Callback(watcher, [self.id], accept, self.on_ready.throw, owner)
        weakref.finalize(self, callback.close).atexit = False
        return callback

    def _close_callback(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback.close()

    # What needs the server: operations

    def _read(self) -> Op[Meta]:
        if self._cache is not None:
            return self._cache
        metas = yield from self._client.operations.read([self.id])
        return self._accept(metas[0])

    def _field(self, key: str) -> Op[Any]:
        return (yield from self._read()).get(key)

    def _is_ready(self) -> Op[bool]:
        yield from self._read()
        return self._cache is not None

    def _is_in(self, state: str) -> Op[bool]:
        return (yield from self._read())["status"] == state  # type: ignore[no-any-return]  # typed above

    def _exists(self) -> Op[bool]:
        return (yield from self._read()).get("existence") == "KNOWN"

    def _result(self) -> Op[Any]:
        meta = yield from self._read()
        return meta["result"]

    def _get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], object] | None = None,
        on_message: Callable[[Meta], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        disable_sync_subtasks: bool = True,
        EXCEPTION_STATES: frozenset[str] | None = None,  # noqa: N803 (Celery's name)
        PROPAGATE_STATES: frozenset[str] | None = None,  # noqa: N803 (Celery's name)
    ) -> Op[Any]:
        if self._ignored:
            return None
        if disable_sync_subtasks:
            _blocking.assert_will_not_block()
        deadline = Deadline(timeout)
        # Oldest first: the first failure is the one that says why the others never ran.
        # A group fails with its members.
        ancestors = list(self._ancestors())[::-1] if follow_parents and propagate else []
        parents = [leaf for ancestor in ancestors for leaf in ancestor._leaves()]
        pending = Pending(
            self._client,
            [*parents, self],
            on_message=self._only_mine(on_message),
            on_interval=on_interval,
            interval=interval,
        )
        try:
            if parents and self._cache is not None:
                yield from pending.read(deadline)
            while True:
                for parent in parents:
                    if id(parent) in pending.metas:
                        parent._outcome(pending.metas[id(parent)], True)
                if id(self) in pending.metas:
                    break
                yield from pending.next(deadline)
        finally:
            pending.close()
        value = self._outcome(pending.metas[id(self)], propagate, PROPAGATE_STATES)
        if callback is not None:
            callback(self.id, value)
        return value

    def _only_mine(
        self, on_message: Callable[[Meta], object] | None
    ) -> Callable[[Meta], object] | None:
        if on_message is None:
            return None
        return lambda meta: on_message(meta) if meta["task_id"] == self.id else None

    def _outcome(
        self,
        meta: Mapping[str, Any],
        propagate: bool,
        propagate_states: frozenset[str] | None = None,
    ) -> Any:
        """Return or raise what a meta holds."""
        value = meta["result"]
        if isinstance(value, SerializationError):
            raise value.with_traceback(None)  # it cannot be read, whatever the task's state
        if propagate and meta["status"] in (propagate_states or states.PROPAGATE_STATES):
            _raise(value)
        return value

    def _maybe_throw(
        self, propagate: bool, callback: Callable[[str, Any], object] | None
    ) -> Op[Any]:
        value = self._outcome((yield from self._read()), propagate)
        if callback is not None:
            callback(self.id, value)
        return value

    def _forget(self) -> Op[None]:
        yield from forget_all(self._client, [self])

    def _revoke(
        self, terminate: bool, signal: object, wait: bool, timeout: float | None
    ) -> Op[None]:
        yield from revoke_all(self._client, [self], terminate, signal, wait, timeout)

    def _find_parent(self) -> Op[Any]:
        """Give the parent this result was made with, else the one its record names."""
        if self._parent is not None:
            return self._parent
        parent_id = (yield from self._read()).get("parent_id")
        return self._client.AsyncResult(parent_id) if parent_id else None

    def _children(self) -> Op[list[Any] | None]:
        """Give results for what the record names as children; None if it names none."""
        pairs = (yield from self._read()).get("children") or []
        found: list[Any] = []
        for child_id, kind in pairs:
            if _records.is_group(kind):
                found.append((yield from self._client.groups.load(child_id)))
            else:
                found.append(self._client.AsyncResult(child_id))
        return found or None

    def _iterdeps(self, intermediate: bool) -> Op[None]:
        """Emit (parent, node) pairs, breadth first."""
        todo: deque[tuple[Any, Any]] = deque([(None, self)])
        expanded: set[Any] = set()
        while todo:
            parent, node = todo.popleft()
            yield Emit((parent, node))
            if node in expanded:
                continue  # stored children can form a circle; each is entered once
            expanded.add(node)
            if (yield from node._is_ready()):
                children = yield from node._children()
                todo.extend((node, child) for child in children or ())
            elif not intermediate:
                raise IncompleteStream(f"{node} is not ready: pass intermediate=True, or wait")

    def _collect(self, intermediate: bool, **kwargs: Any) -> Op[None]:
        """Emit (node, value) pairs, breadth first, waiting for each."""
        op = self._iterdeps(intermediate)
        outcome: Any = None
        error: BaseException | None = None
        try:
            while True:
                try:
                    effect = op.send(outcome) if error is None else op.throw(error)
                except StopIteration:
                    return
                outcome = error = None
                if isinstance(effect, Emit):
                    node = effect.value[1]
                    yield Emit((node, (yield from node._get(**kwargs))))
                    continue
                try:
                    outcome = yield effect
                except BaseException as thrown:  # noqa: BLE001 (handed on: it may be tried again)
                    error = thrown
        finally:
            del error  # its traceback holds this frame
            op.close()

    def _leaf(self) -> Op[Any]:
        """Give the value of the last node."""
        values: list[Any] = [None]
        yield from each(self._collect(False), lambda pair: values.append(pair[1]))
        return values[-1]

    def _build_graph(
        self, intermediate: bool, formatter: Callable[[Any], str] | None
    ) -> Op[DependencyGraph]:
        graph = DependencyGraph(formatter=formatter)

        def add(pair: tuple[Any, Any]) -> None:
            parent, node = pair
            graph.add_arc(node)
            if parent is not None:
                graph.add_edge(parent, node)

        yield from each(self._iterdeps(intermediate), add)
        return graph


def forget_all(client: ClientCore, results: Iterable[ResultCore]) -> Op[None]:
    """Forget results, and the parents they were given; of groups among these the members."""
    ids: dict[str, None] = {}
    for result in results:
        for relative in (result, *result._ancestors()):
            for leaf in relative._leaves():
                if leaf.backend is not None:  # else it was run in place
                    leaf._unsettle()
                    ids[leaf.id] = None
    if ids:
        yield from client.operations.forget(ids)


def wait_all(client: ClientCore, results: list[ResultCore], timeout: float | None) -> Op[bool]:
    """Wait until all are ready or the time is up; says which it was."""
    pending = Pending(client, results)
    deadline = Deadline(timeout)
    try:
        while pending:
            yield from pending.next(deadline)
    except WaitTimeout:
        return False
    finally:
        pending.close()
    return True


def revoke_all(
    client: ClientCore,
    results: list[ResultCore],
    terminate: bool,
    signal: object,
    wait: bool,
    timeout: float | None,
) -> Op[None]:
    """Ask that all be stopped; with `wait`, wait for that too. `timeout` is for both, then."""
    deadline = Deadline(timeout if wait else None)
    ids = dict.fromkeys(result.id for result in results)
    if ids:
        limit = read_limit(deadline)
        yield from client.operations.revoke(ids, terminate, signal, "", limit)
    if wait:
        yield from wait_all(client, results, deadline.left())


def _raise(value: Any) -> NoReturn:
    """Raise a task's exception, without the stack of the last time it was raised."""
    if isinstance(value, Exception):
        raise value.with_traceback(None)
    raise _rebuilt(value)


def _rebuilt(value: Any) -> Exception:
    """Make an exception of what stands for one in a tuple somebody else wrote."""
    from resultd.serialization import default_registry

    error: Exception = ResultdError(str(value))
    if value is None or isinstance(value, (str, Mapping)):
        error = _failures.exception_from(_failures.failure_from(value), default_registry)
    return error
