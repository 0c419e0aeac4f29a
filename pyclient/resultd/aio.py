"""The client for asyncio: the names of `resultd.Client`, awaited.

    async with resultd.aio.Client("resultd://127.0.0.1:7758") as client:
        await client.store_result("t1", {"sum": 30})
        value = await client.AsyncResult("t1")
        async for value in client.GroupResult("g1", results).iterate(timeout=60): ...

What is a property of the blocking results and asks the server is a method here:
`await result.state()`. Arguments, answers and errors are those of `resultd.client` and
`resultd.results`; a client belongs to the event loop it is first used in.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from resultd import _aio_results, _core, _effects
from resultd._core import ClientCore, ReturnWhen, ServerInfo, WaitOutcome, ids_of
from resultd._effects import Op
from resultd._group import from_tuple
from resultd._group_handle import ClaimOutcome, GroupHandleCore, GroupInfo, Order
from resultd._iterate import MemberResult
from resultd._operations import RevokeOutcome
from resultd._records import Report, StoreOutcome
from resultd._revocations import Revocation, Revocations, tell
from resultd._watcher import Watcher
from resultd.errors import ClientClosedError
from resultd.serialization import Registry
from resultd.v1 import group_pb2

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from resultd._aio_channel import AioEndpoint
    from resultd._records import ReportFields

AsyncResult = _aio_results.AsyncResult
ResultSet = _aio_results.ResultSet
GroupResult = _aio_results.GroupResult

__all__ = ["AsyncResult", "Client", "Group", "GroupResult", "ResultSet", "RevocationWatch"]


class Client(ClientCore):
    """A server, from a program that awaits. The arguments are those of `resultd.Client`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        serializer: str = "json",
        serializers: Registry | None = None,
    ) -> None:
        super().__init__(url, serializer=serializer, serializers=serializers)
        self._endpoint: AioEndpoint | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; what waits here, or asks, is told `ClientClosedError`."""
        self.owner.closed = True
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            await endpoint.close()

    async def store_result(
        self,
        task_id: str,
        result: Any,
        state: str = "SUCCESS",
        **fields: Unpack[ReportFields],
    ) -> StoreOutcome:
        """Store what happened to a task; durable when this returns."""
        return await self.run(self.operations.store(Report(task_id, result, state, **fields)))

    async def store_results(
        self, reports: Iterable[Report | Mapping[str, Any] | tuple[Any, ...]]
    ) -> list[StoreOutcome]:
        """Store any number of reports in few calls; each has an outcome of its own."""
        return await self.run(self.operations.store_many(reports))

    def AsyncResult(  # noqa: N802 (Celery's name)
        self,
        id: str,  # noqa: A002 (Celery's name)
        parent: Any = None,
    ) -> _aio_results.AsyncResult:
        """Return the result of a task; nothing is asked yet."""
        return _aio_results.AsyncResult(id, self, None, self, parent)

    def ResultSet(self, results: Iterable[Any]) -> _aio_results.ResultSet:  # noqa: N802  (Celery's name)
        """Return a set of results."""
        return _aio_results.ResultSet(list(results), app=self)

    def GroupResult(  # noqa: N802 (Celery's name)
        self,
        id: str | None = None,  # noqa: A002 (Celery's name)
        results: Iterable[Any] = (),
        parent: Any = None,
    ) -> _aio_results.GroupResult:
        """Return a group of results; it is not on the server before `save()`."""
        return _aio_results.GroupResult(id, list(results), parent, app=self)

    def result_from_tuple(self, r: Any) -> Any:
        """Build the result that `as_tuple()` described."""
        return from_tuple(r, self)

    async def restore_group(self, id: str) -> _aio_results.GroupResult | None:  # noqa: A002  (Celery's name)
        """Return the group saved under an id, None if there is none."""
        group: _aio_results.GroupResult | None = await self.run(self.groups.restore(id))
        return group

    def group(self, id: str) -> Group:  # noqa: A002 (as everywhere)
        """Return a handle on a group of any size; nothing is asked yet."""
        return Group(self, id)

    def as_completed(
        self, results: Iterable[Any], timeout: float | None = None
    ) -> AsyncIterator[_aio_results.AsyncResult]:
        """Iterate over results as they become ready, failed ones included."""
        return self.iterate(self._completed(results, timeout))

    async def wait(
        self,
        results: Iterable[Any],
        return_when: ReturnWhen = _core.ALL_COMPLETED,
        timeout: float | None = None,
    ) -> WaitOutcome:
        """Wait for results; gives (done, pending) and never raises for the time."""
        return await self.run(self._wait(results, return_when, timeout))

    async def forget(self, results: Any) -> int:
        """Delete records, given as ids or results; gives how many there were."""
        return await self.run(self.operations.forget(ids_of(results)))

    async def revoke(
        self,
        results: Any,
        terminate: bool = False,
        signal: Any = None,
        reason: str = "",
    ) -> RevokeOutcome:
        """Ask that tasks be stopped, given as ids or results."""
        return await self.run(self.operations.revoke(ids_of(results), terminate, signal, reason))

    def list_results(
        self,
        states: Iterable[str] = (),
        name: str = "",
        group_id: str = "",
        since: datetime.datetime | float | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[dict[str, Any]]:
        """Iterate over the metas of all records that match, by id."""
        return self.iterate(self._list_results(states, name, group_id, since, page_size))

    def list_groups(
        self,
        incomplete: bool = False,
        claimable: bool = False,
        unchanged_since: datetime.datetime | float | None = None,
        claim_scope: str = "",
        page_size: int = 0,
    ) -> AsyncIterator[group_pb2.GroupMeta]:
        """Iterate over all groups that match, by id."""
        return self.iterate(
            self._list_groups(incomplete, claimable, unchanged_since, claim_scope, page_size)
        )

    async def server_info(self) -> ServerInfo:
        """Ask who answers."""
        return await self.run(self._server_info())

    def watch_revocations(
        self,
        task_ids: Iterable[str] = (),
        callback: Callable[[Revocation], object] | None = None,
    ) -> RevocationWatch:
        """Hear of tasks that are to stop; iterate over it, or let it call back from a task."""
        return RevocationWatch(self, task_ids, callback)

    async def run(self, op: Op[_effects.T]) -> _effects.T:
        """Drive an operation; not for users."""
        return await _effects.run_async(op, self._handle)

    def iterate(self, op: Op[None]) -> AsyncIterator[Any]:
        """Drive an operation that emits values; not for users."""
        return _effects.iterate_async(op, self._handle)

    def watcher(self) -> Watcher:
        """Return what waits for this client; not for users."""
        return self._open().watcher

    async def _handle(self, effect: _effects.Effect) -> Any:
        return await self._open().handle(effect)

    def _open(self) -> AioEndpoint:
        if self.owner.closed:
            raise ClientClosedError
        if self._endpoint is None:
            from resultd._aio_channel import AioEndpoint

            self._endpoint = AioEndpoint(self.url)
        return self._endpoint.enter()


class Group(GroupHandleCore):
    """A group on the server, of any size, held by its name; see `resultd.client.Group`."""

    client: Client

    async def create(
        self,
        members: Iterable[Any] = (),
        *,
        continuation: Any = None,
        claim_scope: str = "",
        ttl: float | datetime.timedelta | None = None,
        labels: Mapping[str, str] | None = None,
        seal: bool = True,
        new_epoch: bool = False,
    ) -> Group:
        """Declare the group with its members: ids, results or groups, of any number."""
        await self.client.run(
            self._create(members, continuation, claim_scope, ttl, labels, seal, new_epoch)
        )
        return self

    async def add(self, members: Iterable[Any], start: int | None = None) -> GroupInfo:
        """Add members, from index `start`, or from the next free one if None."""
        return await self.client.run(self._add(members, start))

    async def add_to_total(self, delta: int, request_id: str | None = None) -> GroupInfo:
        """Expect more members."""
        return await self.client.run(self._add_to_total(delta, request_id))

    async def seal(self, total: int | None = None) -> GroupInfo:
        """Say how many members there will be."""
        return await self.client.run(self._seal(total))

    async def get_info(self) -> GroupInfo:
        """Read the group's numbers."""
        return await self.client.run(self._read())

    async def exists(self) -> bool:
        """Say whether there is such a group."""
        return (await self.get_info()).exists

    async def ready(self) -> bool:
        """Say whether it is complete."""
        return (await self.get_info()).complete

    def members(self) -> AsyncIterator[group_pb2.GroupMember]:
        """Iterate over the members by index, a page at a time."""
        return self.client.iterate(self._members())

    def as_completed(
        self,
        timeout: float | None = None,
        *,
        order: Order = "completed",
        require_known: bool = False,
    ) -> AsyncIterator[MemberResult]:
        """Iterate over members as they are done, with index, id, state and result."""
        return self.client.iterate(self._as_completed(timeout, order, require_known))

    def iterate(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        order: Order = "completed",
        require_known: bool = False,
    ) -> AsyncIterator[Any]:
        """Iterate over values as members are done."""
        return self.client.iterate(self._iterate(timeout, propagate, order, require_known))

    async def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        require_known: bool = False,
    ) -> list[Any]:
        """Wait for all and return the values by index."""
        return await self.client.run(self._get(timeout, propagate, require_known))

    async def delete(self) -> bool:
        """Delete the group, not its members' records."""
        return await self.client.run(self._delete())

    async def claim(
        self, token: str | None = None, lease: float | None = None, holder: str = ""
    ) -> ClaimOutcome:
        """Take the exclusive right to act on the complete group, or renew it."""
        return await self.client.run(self._claim("ACQUIRE", token, lease, holder))

    async def claim_done(self, token: str) -> ClaimOutcome:
        """Say that the group was acted on, for good. The answer lacks continuation and extra."""
        return await self.client.run(self._claim("DONE", token, None, ""))

    async def claim_release(self, token: str) -> ClaimOutcome:
        """Give the right back, undone. The answer lacks continuation and extra."""
        return await self.client.run(self._claim("RELEASE", token, None, ""))


class RevocationWatch:
    """What `watch_revocations` returns: iterate over it, or let it call back."""

    def __init__(
        self,
        client: Client,
        task_ids: Iterable[str],
        callback: Callable[[Revocation], object] | None,
    ) -> None:
        bell = client.watcher().port.new_mailbox()
        self._revocations = Revocations(task_ids, client.url.heartbeat, bell)
        self._iterator = client.iterate(self._revocations.listen())
        self._task: asyncio.Task[None] | None = None
        if callback is not None:
            self._task = asyncio.get_running_loop().create_task(self._call_back(callback))

    def add(self, task_ids: Iterable[str]) -> None:
        """Run more tasks."""
        self._revocations.add(task_ids)

    def remove(self, task_ids: Iterable[str]) -> None:
        """Run tasks no longer."""
        self._revocations.remove(task_ids)

    async def close(self) -> None:
        """Listen no longer; an iteration ends."""
        self._revocations.close()
        if self._task is not None:
            await asyncio.wait({self._task})

    def __aiter__(self) -> AsyncIterator[Revocation]:
        return self._iterator

    async def __aenter__(self) -> RevocationWatch:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _call_back(self, callback: Callable[[Revocation], object]) -> None:
        # Nobody awaits this task: what it raised would be said by the garbage collector.
        with contextlib.suppress(ClientClosedError):
            async for revocation in self._iterator:
                tell(callback, revocation)
