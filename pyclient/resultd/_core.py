"""What the sync and the asyncio client have in common: configuration and decoding."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from resultd import _records, _url, states
from resultd._deadline import Deadline
from resultd._effects import Emit, Op
from resultd._group import Groups
from resultd._operations import Operations
from resultd._pending import Pending
from resultd._set import leaves
from resultd._watcher import Owner, Watcher
from resultd.errors import TimeoutError as WaitTimeout
from resultd.serialization import Registry, default_registry
from resultd.v1 import group_service_pb2, result_service_pb2, task_pb2

ReturnWhen = Literal["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"]
ALL_COMPLETED: ReturnWhen = "ALL_COMPLETED"
FIRST_COMPLETED: ReturnWhen = "FIRST_COMPLETED"
FIRST_EXCEPTION: ReturnWhen = "FIRST_EXCEPTION"


class WaitOutcome(NamedTuple):
    """Which results are ready and which are not, in the order they were given."""

    done: list[Any]
    pending: list[Any]


class ServerInfo(NamedTuple):
    """Who answers."""

    version: str
    engine: str
    limits: dict[str, int]
    features: tuple[str, ...]
    start_time: datetime.datetime | None
    store_id: str


class ClientCore:
    """A client's configuration. Nothing is opened here."""

    #: States after which a record normally does not change.
    terminal_states = frozenset({*states.READY_STATES, states.IGNORED})

    AsyncResult: Callable[..., Any]
    GroupResult: Callable[..., Any]

    def __init__(
        self,
        url: str | None = None,
        *,
        serializer: str = "json",
        serializers: Registry | None = None,
    ) -> None:
        self._url_text = url
        self.url = _url.parse(url)
        self.serializers = serializers if serializers is not None else default_registry
        self.operations = Operations(self.url, self.serializers, serializer)
        self.groups = Groups(self)
        self.owner = Owner()

    @property
    def backend(self) -> Any:
        """The client itself, so that it can stand wherever Celery wants an app."""
        return self

    def watcher(self) -> Watcher:
        """Return what waits for this client."""
        raise NotImplementedError

    def meta_of(self, meta: task_pb2.TaskMeta) -> dict[str, Any]:
        """Read a record into the dict Celery calls a task's meta."""
        return _records.meta_dict(meta, self.serializers)

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} {self.url.shown}>"

    # Operations over several results

    def _completed(self, results: Iterable[Any], timeout: float | None) -> Op[None]:
        """Emit results as they become ready."""
        deadline = Deadline(timeout)
        pending = Pending(self, leaves(results))
        try:
            while pending:
                for result in (yield from pending.next(deadline)):
                    yield Emit(result)
        finally:
            pending.close()

    def _wait(
        self, results: Iterable[Any], return_when: ReturnWhen, timeout: float | None
    ) -> Op[WaitOutcome]:
        if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
            raise ValueError(f"return_when is ALL_COMPLETED, FIRST_... , not {return_when!r}")
        waited = leaves(results)
        pending = Pending(self, waited)
        deadline = Deadline(timeout)
        try:
            while pending:
                ready = yield from pending.next(deadline)
                if return_when == FIRST_COMPLETED and ready:
                    break
                if return_when == FIRST_EXCEPTION and any(map(_failed, ready)):
                    break
        except WaitTimeout:
            pass  # said by what is pending, as in concurrent.futures
        finally:
            pending.close()
        done = [result for result in waited if result._cache is not None]
        return WaitOutcome(done, [result for result in waited if result._cache is None])

    def _server_info(self) -> Op[ServerInfo]:
        request = result_service_pb2.GetServerInfoRequest()
        info = yield from self.operations.call("GetServerInfo", request)
        return ServerInfo(
            info.version,
            info.engine,
            dict(info.limits),
            tuple(info.features),
            _records.moment(info, "start_time"),
            info.store_id,
        )

    def _list_results(
        self,
        states: Iterable[str],
        name: str,
        group_id: str,
        since: datetime.datetime | float | None,
        page_size: int,
    ) -> Op[None]:
        request = result_service_pb2.ListResultsRequest(
            states=[_records.state_fields(state)[0] for state in states],
            name=name,
            group_id=group_id,
            since=None if since is None else _records.timestamp(since),
            page_size=page_size,
        )
        return self.operations.list_results(request)

    def _list_groups(
        self,
        incomplete: bool,
        claimable: bool,
        unchanged_since: datetime.datetime | float | None,
        claim_scope: str,
        page_size: int,
    ) -> Op[None]:
        since = None if unchanged_since is None else _records.timestamp(unchanged_since)
        request = group_service_pb2.ListGroupsRequest(
            incomplete=incomplete,
            claimable=claimable,
            unchanged_since=since,
            claim_scope=claim_scope,
            page_size=page_size,
        )
        return self.operations.list_groups(request)


def ids_of(results: Any) -> list[str]:
    """Return the ids of results, given as results, sets of them, or ids."""
    if isinstance(results, str):
        return [results]
    found: list[str] = []
    for result in [results] if hasattr(results, "id") else results:
        if isinstance(result, str):
            found.append(result)
        elif hasattr(result, "results"):
            found += ids_of(result.results)
        else:
            found.append(result.id)
    return found


def _failed(result: Any) -> bool:
    return result._cache["status"] in states.PROPAGATE_STATES
