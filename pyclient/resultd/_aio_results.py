"""Results for asyncio: what `resultd.results` has, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, NoReturn

from resultd import _effects, states
from resultd._effects import Effect, Op
from resultd._graph import DependencyGraph
from resultd._group import GroupCore
from resultd._result import STAMPS_ARE_THE_BROKERS, Meta, ResultCore
from resultd._set import SetCore

if TYPE_CHECKING:
    from resultd.aio import Client

_Callback = Callable[[str, Any], object] | None
_OnMessage = Callable[[Meta], object] | None
_OnInterval = Callable[[], object] | None


def _reader(key: str, doc: str) -> Callable[[AsyncResult], Coroutine[Any, Any, Any]]:
    """Return a method that reads one key of the record."""

    async def read(self: AsyncResult) -> Any:
        return await self.backend.run(self._field(key))

    read.__name__ = key
    read.__doc__ = doc
    return read


class AsyncResult(ResultCore):
    """The result of one task: `value = await client.AsyncResult("t1")`."""

    backend: Client

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.get().__await__()

    @property
    def parent(self) -> Any:
        """The parent this result was given; `find_parent()` asks the record."""
        return self._parent

    @parent.setter
    def parent(self, parent: Any) -> None:
        self._parent = parent

    async def get(
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
        """Wait for the value; arguments and errors are those of `results.AsyncResult.get`."""
        op = self._get(
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
        return await self.backend.run(op)

    wait = get

    async def meta(self) -> Meta:
        """Read the whole record."""
        return await self.backend.run(self._read())

    async def ready(self) -> bool:
        """Say whether the task is in a terminal state."""
        return await self.backend.run(self._is_ready())

    async def successful(self) -> bool:
        """Say whether it is in SUCCESS."""
        return await self.backend.run(self._is_in(states.SUCCESS))

    async def failed(self) -> bool:
        """Say whether it is in FAILURE."""
        return await self.backend.run(self._is_in(states.FAILURE))

    async def retry(self) -> bool:
        """Say whether it failed and will be tried again."""
        return await self.backend.run(self._is_in(states.RETRY))

    async def exists(self) -> bool:
        """Say whether there is a record."""
        return await self.backend.run(self._exists())

    async def maybe_throw(self, propagate: bool = True, callback: _Callback = None) -> Any:
        """Raise the task's exception if it failed; else return what there is, at once."""
        return await self.backend.run(self._maybe_throw(propagate, callback))

    maybe_reraise = maybe_throw

    async def forget(self) -> None:
        """Delete the record, and those of the parents this result was given."""
        await self.backend.run(self._forget())

    async def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Ask that the task be stopped."""
        await self.backend.run(self._revoke(terminate, signal, wait, timeout))

    async def revoke_by_stamped_headers(
        self,
        headers: Any,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Celery's; raises NotImplementedError, as `results.AsyncResult` does."""
        raise NotImplementedError(STAMPS_ARE_THE_BROKERS)

    async def find_parent(self) -> Any:
        """Return the parent given, else the one the record names, or None."""
        return await self.backend.run(self._find_parent())

    async def children(self) -> list[Any] | None:
        """Return results of what the task called; None if nothing is stored."""
        return await self.backend.run(self._children())

    def iterdeps(self, intermediate: bool = False) -> AsyncIterator[tuple[Any, Any]]:
        """Iterate over (parent, node) pairs, breadth first."""
        return self.backend.iterate(self._iterdeps(intermediate))

    def collect(self, intermediate: bool = False, **kwargs: Any) -> AsyncIterator[tuple[Any, Any]]:
        """Iterate over (node, value) pairs, breadth first; `kwargs` go to `get()`."""
        return self.backend.iterate(self._collect(intermediate, **kwargs))

    async def get_leaf(self) -> Any:
        """Return the value of the last node."""
        return await self.backend.run(self._leaf())

    async def build_graph(
        self, intermediate: bool = False, formatter: Callable[[Any], str] | None = None
    ) -> DependencyGraph:
        """Return the graph of this result and its children."""
        return await self.backend.run(self._build_graph(intermediate, formatter))

    async def graph(self) -> DependencyGraph:
        """Return `build_graph()`, made once."""
        if "_graph" not in self.__dict__:
            self.__dict__["_graph"] = await self.build_graph()
        graph: DependencyGraph = self.__dict__["_graph"]
        return graph

    # The properties of the blocking results, one each: they differ in a key and a sentence.
    state = status = _reader("status", "Read the state; PENDING of a task nobody has reported.")
    result = info = return_value = _reader("result", "Read the value, or the exception.")
    traceback = _reader("traceback", "Read the worker's stack as text.")
    progress = _reader("progress", "Read how far the task has come.")
    name = _reader("name", "Read the task's name.")
    args = _reader("args", "Read its positional arguments.")
    kwargs = _reader("kwargs", "Read its keyword arguments.")
    worker = _reader("worker", "Read who worked on it.")
    date_done = _reader("date_done", "Read when it became terminal, in UTC.")
    retries = _reader("retries", "Read how often it was retried.")
    queue = _reader("queue", "Read the queue it came through.")


class ResultSet(SetCore):
    """Results that are waited for and asked about together."""

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.get().__await__()

    async def _run(self, op: Op[_effects.T]) -> _effects.T:
        client = self.backend
        if client is None and not self._leaves():
            return await _effects.run_async(op, _no_client)
        return await _client_of(client).run(op)

    async def get(
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
        """Wait for all values, in the set's order; as `results.ResultSet.get`."""
        op = self._get(
            timeout,
            propagate,
            interval,
            callback,
            no_ack,
            on_message,
            disable_sync_subtasks,
            on_interval,
        )
        return await self._run(op)

    async def join(
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
        """Wait for all in the set's order; a failure is raised when its turn comes."""
        op = self._join(
            timeout, propagate, interval, callback, on_message, disable_sync_subtasks, on_interval
        )
        return await self._run(op)

    async def join_native(
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
        """Wait for all; a failure is raised as soon as it arrives."""
        op = self._join_native(
            timeout, propagate, interval, callback, on_message, on_interval, disable_sync_subtasks
        )
        return await self._run(op)

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float | None = 0.5,
        no_ack: bool = True,
        on_message: _OnMessage = None,
        on_interval: _OnInterval = None,
    ) -> AsyncIterator[tuple[str, Any]]:
        """Iterate over (id, meta) as tasks complete."""
        return self._emitted(self._iter_native(timeout, interval, on_message, on_interval))

    def iterate(
        self, timeout: float | None = None, propagate: bool = True, interval: float | None = 0.5
    ) -> AsyncIterator[Any]:
        """Iterate over values as tasks complete."""
        return self._emitted(self._iterate(timeout, propagate, interval))

    async def ready(self) -> bool:
        """Say whether all are ready."""
        return await self._run(self._is_ready())

    async def waiting(self) -> bool:
        """Say whether any is not ready."""
        return not await self.ready()

    async def successful(self) -> bool:
        """Say whether all are in SUCCESS."""
        return await self._run(self._is_successful())

    async def failed(self) -> bool:
        """Say whether any is in FAILURE."""
        return bool(await self._run(self._count(states.FAILURE)))

    async def completed_count(self) -> int:
        """Count those in SUCCESS."""
        return await self._run(self._completed())

    async def maybe_throw(self, callback: _Callback = None, propagate: bool = True) -> None:
        """Call `maybe_throw` of each."""
        await self._run(self._maybe_throw(callback, propagate))

    maybe_reraise = maybe_throw

    async def forget(self) -> None:
        """Delete every record."""
        await self._run(self._forget())

    async def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Ask that all be stopped, in one call."""
        await self._run(self._revoke(terminate, signal, wait, timeout))

    def _emitted(self, op: Op[None]) -> AsyncIterator[Any]:
        client = self.backend
        if client is None and not self._leaves():
            return _effects.iterate_async(op, _no_client)
        return _client_of(client).iterate(op)


class GroupResult(GroupCore, ResultSet):
    """A `ResultSet` with an id, which can be saved and restored."""

    async def save(self, backend: Any = None) -> GroupResult:
        """Keep the group on the server, sealed; returns it."""
        client = _client_of(self.backend if backend is None else backend)
        await client.run(client.groups.save(self))
        return self

    async def delete(self, backend: Any = None) -> None:
        """Delete what was saved."""
        client = _client_of(self.backend if backend is None else backend)
        await client.run(client.groups.delete(self.id))

    @classmethod
    async def restore(cls, id: str, backend: Any = None, app: Any = None) -> Any:  # noqa: A002  (Celery's name)
        """Return the group saved under an id, None if there is none.

        Raises:
            ValueError: no client is given: asyncio has no default one.
        """
        client: Client = _client_of(backend if backend is not None else app)
        return await client.run(client.groups.restore(id))


async def _no_client(_: Effect) -> NoReturn:
    """Do what an operation of a set asks for that is of no client, and empty: it asks nothing."""
    raise AssertionError("an empty set asks nobody")


def _client_of(given: Any) -> Client:
    """Return the client behind a `backend` or `app`.

    Raises:
        ValueError: none is given.
    """
    if given is None:
        raise ValueError("pass a client, as app or backend: every event loop has its own")
    client: Client = getattr(given, "backend", given)
    return client
